"""How many labels the least certain chips save on EuroSAT, and what 8 bits cost there: the tables of ``docs/studies/few-labels.md``.

python -m geokr_core.bench.few_labels ../shared/data docs/studies/few-labels.md
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from PIL import Image

from geokr_core.bench.page import written_between
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.encoder import open_encoder, usable_workers
from geokr_core.embeddings.quantisation import quantise
from geokr_core.embeddings.read import Embeddings
from geokr_core.evaluation.protocols.probe import nearest_neighbours
from geokr_core.evaluation.statistics import Estimate, t_interval
from geokr_core.networks.architectures import Features
from geokr_core.search.index import Index, build_index
from geokr_core.search.labels import Learned, learn
from geokr_core.step.reporter import LOG, Reporter

BEGIN: Final = "<!-- results: begin -->"
END: Final = "<!-- results: end -->"

FIRST_LABELS: Final = 10
STEP: Final = 5
MOST_LABELS: Final = 100
SEEDS: Final = tuple(range(10))
FEATURES: Final[tuple[Features, ...]] = ("last", "multi")
NUM_NEIGHBOURS: Final = 5

_WEIGHTS: Final = "weights/imagenet_efficientnet_lite0/tf_efficientnet_lite0_features.safetensors"


@dataclass(frozen=True)
class Labelled:
    """Images with their vectors and classes.

    Attributes:
        vectors: float32 (N, D), as the network gave them.
        classes: int64 (N,).
        in_training: bool (N,), images that may be labelled; the others judge.
    """

    vectors: np.ndarray
    classes: np.ndarray
    in_training: np.ndarray

    def as_archive(self) -> Embeddings:
        """The same as an archive in int8 has them: training and test images are a scene each."""
        restored = np.empty_like(self.vectors)
        for part in (self.in_training, ~self.in_training):
            restored[part] = quantise(self.vectors[part]).restored()
        ids = [f"chip-{k:06d}" for k in range(len(restored))]
        return Embeddings(pd.DataFrame({"chip_id": ids}), restored, {})


@dataclass(frozen=True)
class Course:
    """How good a classifier is after so many labels.

    Attributes:
        balanced: by number of labels, the mean of the shares of yes and of no that are right.
        plain: by number of labels, the share that is right.
    """

    balanced: dict[int, float]
    plain: dict[int, float]


def read_eurosat(data: Path, features: Features) -> Labelled:
    """Embed the images of both splits.

    Args:
        data: the folder that ``geokr check-data`` looks at.
        features: last stage, or all of them.

    Raises:
        OSError: a file is missing.
        GeoKRError: the weights do not fit.
    """
    folder = data / "tasks" / "eurosat"
    names, in_training = [], []
    for split in ("train", "test"):
        found = (folder / f"split_{split}.txt").read_text(encoding="utf-8").split()
        names += found
        in_training += [split == "train"] * len(found)
    config = EmbeddingsConfig(
        architecture="tf_efficientnet_lite0", weights=data / _WEIGHTS, features=features, device="cpu"
    )
    encoder = open_encoder(config, None, ["red", "green", "blue"])
    images = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
    vectors = np.concatenate(list(encoder.batches(images, usable_workers(None))))
    classes = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    return Labelled(vectors, classes, np.array(in_training))


def courses(archive: Embeddings, index: Index, wanted: np.ndarray, pool: np.ndarray, seed: int) -> dict[str, Course]:
    """Label by both arms what is looked for, and judge on all that is not in the pool.

    Args:
        archive: all chips.
        index: of its vectors.
        wanted: bool (N,), chips that are what is looked for.
        pool: bool (N,), chips that may be labelled.
        seed: draws the order of the random arm, with which both begin.

    Returns:
        ``random`` at `MOST_LABELS`, ``uncertain`` at every `STEP` labels.
    """
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(pool))
    first = max(FIRST_LABELS, 1 + int(np.argmax(wanted[drawn])), 1 + int(np.argmax(~wanted[drawn])))

    def learned_from(positions: Sequence[int]) -> Learned:
        answers = np.where(wanted[list(positions)], "yes", "no")
        ids = archive.chips["chip_id"].to_numpy()[list(positions)]
        return learn(pd.DataFrame({"chip_id": ids, "label": answers}), archive, index)

    random, uncertain = Course({}, {}), Course({}, {})
    _judge(random, MOST_LABELS, learned_from(drawn[:MOST_LABELS].tolist()), wanted, ~pool)
    given = drawn[:first].tolist()
    while True:
        learned = learned_from(given)
        if len(given) % STEP == 0:
            _judge(uncertain, len(given), learned, wanted, ~pool)
        if len(given) >= MOST_LABELS:
            return {"random": random, "uncertain": uncertain}
        open_to_labels = pool.copy()
        open_to_labels[given] = False
        given.append(int(learned.least_certain(open_to_labels, 1)[0]))


def _judge(course: Course, num_labels: int, learned: Learned, wanted: np.ndarray, judging: np.ndarray) -> None:
    right, truth = ((learned.probability > 0.5) == wanted)[judging], wanted[judging]
    course.balanced[num_labels] = float((right[truth].mean() + right[~truth].mean()) / 2)
    course.plain[num_labels] = float(right.mean())


def labels_needed(level: float, course: dict[int, float]) -> int:
    """The least number of labels from which a course stays at or above a level; one step beyond the last if it does not.

    Args:
        level: to be reached.
        course: by number of labels, what is reached.
    """
    needed = max(course) + STEP
    for num_labels in sorted(course, reverse=True):
        if course[num_labels] < level:
            break
        needed = num_labels
    return needed


def mean_course(parts: Sequence[dict[int, float]]) -> dict[int, float]:
    """The mean over classes, at the numbers of labels that all of them have."""
    shared = set.intersection(*(set(part) for part in parts))
    return {num_labels: float(np.mean([part[num_labels] for part in parts])) for num_labels in sorted(shared)}


def eight_bits(labelled: Labelled) -> tuple[float, float]:
    """Accuracy of k-NN on the test images from float32 vectors, and from int8 ones."""
    training, test = labelled.in_training, ~labelled.in_training

    def accuracy(vectors: np.ndarray) -> float:
        known = vectors[training]
        said = nearest_neighbours(known, labelled.classes[training], vectors[test], known, NUM_NEIGHBOURS)
        return float((said == labelled.classes[test]).mean())

    return accuracy(labelled.vectors), accuracy(labelled.as_archive().vectors)


def study(labelled: Labelled, advance: Callable[[int], None], seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """Both arms for every class and seed.

    Args:
        labelled: images with vectors.
        advance: called with 1 after each seed.
        seeds: of the random order.

    Returns:
        A row a seed: ``random_100`` and ``uncertain_<n>`` (balanced accuracy, mean of classes), the same with ``plain_`` before
        them, ``needed`` and ``plain_needed`` (labels).
    """
    archive = labelled.as_archive()
    index, rows = build_index(archive), []
    for seed in seeds:
        found = [
            courses(archive, index, labelled.classes == k, labelled.in_training, seed * 1000 + int(k))
            for k in np.unique(labelled.classes)
        ]
        row: dict[str, float] = {}
        for prefix in ("", "plain_"):
            measure = "plain" if prefix else "balanced"
            level = float(np.mean([getattr(one["random"], measure)[MOST_LABELS] for one in found]))
            course = mean_course([getattr(one["uncertain"], measure) for one in found])
            row[f"{prefix}random_{MOST_LABELS}"] = level
            row |= {f"{prefix}uncertain_{num_labels}": value for num_labels, value in course.items()}
            row[f"{prefix}needed"] = labels_needed(level, course)
        rows.append(row)
        advance(1)
    return pd.DataFrame(rows)


def _percent(found: Estimate) -> str:
    return f"{100 * found.mean:.1f} ± {100 * (found.ci_high - found.mean):.1f}"


def table(found: Mapping[Features, pd.DataFrame], bits: Mapping[Features, tuple[float, float]], num_test: int) -> str:
    """Both tables as Markdown.

    Args:
        found: by features, what `study` gives.
        bits: by features, what `eight_bits` gives.
        num_test: test images.
    """
    shown = (50, 65, 80, MOST_LABELS)
    lines = [
        f"Balanced accuracy in percent, mean of ten classes and {len(next(iter(found.values())))} seeds ± half of the 95 % t-interval "
        f"over seeds; {num_test} test images.",
        "",
        f"| features | {MOST_LABELS} random labels | "
        + " | ".join(f"{n} uncertain" for n in shown)
        + " | labels needed | by plain accuracy |",
        "|---" * (4 + len(shown)) + "|",
    ]
    for features, frame in found.items():
        needed, plain = (t_interval(frame[name].tolist()) for name in ("needed", "plain_needed"))
        cells = [_percent(t_interval(frame[f"random_{MOST_LABELS}"].tolist()))]
        cells += [_percent(t_interval(frame[f"uncertain_{n}"].tolist())) for n in shown]
        cells += [f"{one.mean:.1f} [{one.ci_low:.1f}, {one.ci_high:.1f}]" for one in (needed, plain)]
        lines.append(f"| `{features}` | {' | '.join(cells)} |")
    lines += ["", "| features | k-NN, float32 | k-NN, int8 | difference, points |", "|---|---|---|---|"]
    for features, (exact, restored) in bits.items():
        lines.append(f"| `{features}` | {100 * exact:.2f} | {100 * restored:.2f} | {100 * (restored - exact):+.2f} |")
    return "\n".join(lines)


def write_page(data: Path, page: Path, reporter: Reporter) -> None:
    """Run the study and write its tables into a page, between its two marks.

    Args:
        data: the folder that ``geokr check-data`` looks at.
        page: a Markdown file that holds both marks.
        reporter: hears how far it is.

    Raises:
        GeoKRError: the weights do not fit.
        OSError: a file is missing.
        ValueError: the page lacks a mark.
    """
    write = written_between(page, BEGIN, END)
    found: dict[Features, pd.DataFrame] = {}
    bits: dict[Features, tuple[float, float]] = {}
    for features in FEATURES:
        labelled = read_eurosat(data, features)
        with reporter.progress(f"seeds, {features}", len(SEEDS)) as advance:
            found[features] = study(labelled, advance)
        bits[features] = eight_bits(labelled)
        shown = table(found, bits, int((~labelled.in_training).sum()))
        write(f"\n\n{shown}\n\n")  # after each: what is done is kept


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]), LOG)
