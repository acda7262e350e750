"""The values that the evaluation is made of: where a network starts, a cell of the comparison, what measuring it gives.

A downstream task is what satisfies `DownstreamTask`. Which kinds there are stands in ``evaluation.task_kinds``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from geokr_core.evaluation.config import Initialisation
from geokr_core.step.digests import file_md5

EvaluationProtocol = Literal["linear_probe", "knn", "fine_tune", "torchgeo_bench_knn5", "torchgeo_bench_linear"]
Features = Literal["last", "multi", "histogram"]
"""What the classifier sees: pooled last stage, all pooled stages, or the 54 numbers of the colour histogram."""
Labels = int | str
"""Labelled images of each class, a share of the training images such as ``10%``, a number of chips such as ``4 chips``, or
``all``."""
Choice = tuple[EvaluationProtocol, Features, Labels]
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Start:
    """Where a network starts from, and how its input is scaled.

    Attributes:
        initialisation: what is judged.
        seed: of a random network.
        architecture: a name of ``networks.architectures``.
        weights: ``backbone.safetensors``, or None for a random network or no network at all.
        mean: channel means of Levir-KR, 0–1, in the order of `bands`.
        std: channel standard deviations of Levir-KR, 0–1, in the order of `bands`.
        bands: common names of the bands the network reads, in its order.
        beside: other starts whose features lie beside those of this one; see `alone`.
    """

    initialisation: Initialisation
    seed: int
    architecture: str
    weights: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...] = RGB
    beside: tuple["Start", ...] = ()

    @property
    def alone(self) -> tuple["Start", ...]:
        """This start and those beside it, each by itself."""
        return (replace(self, beside=()), *self.beside)

    def identity(self) -> dict[str, object]:
        """What the features are a function of. Two starts with equal identity give the same network.

        Raises:
            OSError: the weights cannot be read.
        """
        if self.beside:
            return {"side_by_side": [start.identity() for start in self.alone]}
        if self.initialisation == "colour_histogram":
            return {"initialisation": self.initialisation}
        shared: dict[str, object] = {
            "architecture": self.architecture,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.bands != RGB:
            shared["bands"] = list(self.bands)
        if self.weights is None:
            return shared | {"random_seed": self.seed}
        known = self.weights.stat()
        return shared | {"weights_md5": _weights_md5(self.weights, known.st_size, known.st_mtime_ns, known.st_ino)}


@lru_cache(maxsize=256)
def _weights_md5(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """The md5 of a file, read once as long as it is the same: every cell asks for it, and weights have 45 MB and more."""
    return file_md5(path)


@dataclass(frozen=True)
class Cell:
    """One cell of the comparison: an initialisation, a protocol, features, an amount of labels and a seed."""

    task: str
    initialisation: Initialisation
    protocol: EvaluationProtocol
    features: Features
    labels_per_class: Labels
    seed: int


@dataclass(frozen=True)
class Score:
    """One metric of a cell, 0–1, with the 95 % interval that the number of test items allows."""

    metric: str
    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Measurement:
    """What measuring a cell gives.

    Attributes:
        scores: one entry a metric.
        n: number of test items.
        label_fraction: labelled training items used, as a share of the training split.
        classes: class names.
        confusion: test items (or pixels) by true class (row) and predicted class (column), in the order of `classes`;
            empty where a task has none.
        per_class: metric → one value a class in the order of `classes`, None where the test split has none of it.
        replicates: the task's first metric on resampled test items. The resamples depend on the number of items
            alone, so that those of two initialisations are pairs.
        details: whatever else matters about the cell, e.g. the learning rate that was chosen.
        gallery: pictures for the report, PNG in base64; empty where images must not be shown.
    """

    scores: tuple[Score, ...]
    n: int
    label_fraction: float
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_class: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    replicates: tuple[float, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    gallery: tuple[str, ...] = ()


class DownstreamTask(Protocol):
    """A labelled set that can score a network."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def data_version(self) -> str:
        """DVC's hash of the set's folder."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Common names of the bands its images have."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader needs to know about the set, e.g. how many images were resized."""

    @property
    def budget(self) -> Mapping[str, object]:
        """Augmentation, schedule and steps that every initialisation gets alike, for the report."""

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""

    def require(self, cell: Cell) -> None:
        """Check that ``cell`` can be measured at all, before hours are spent on others.

        Raises:
            EvaluationError: it cannot, and why.
        """

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the training items that ``cell`` allows and score on the test items.

        The draw of labelled items depends on ``cell.seed`` alone, so that initialisations are compared in pairs.

        Raises:
            EvaluationError: the cell cannot be measured. It never becomes a score.
        """


def labels_of_fraction(fraction: float) -> Labels:
    """A share of the training images as results name it: ``10%``, or ``all``."""
    return "all" if fraction == 1.0 else f"{100 * fraction:.12g}%"


def fraction_of_labels(labels: Labels) -> float:
    """The share of the training images that ``10%`` or ``all`` names.

    Raises:
        ValueError: a number of images, which is no share.
    """
    if labels == "all":
        return 1.0
    if not isinstance(labels, str) or not labels.endswith("%"):
        raise ValueError(f"{labels!r} is no share of the training images")
    return float(labels[:-1]) / 100.0


_CHIPS = " chips"


def labels_of_chips(chips: int | str) -> Labels:
    """A number of labelled chips as results name it: ``4 chips``; ``all`` stays."""
    return chips if isinstance(chips, str) else f"{chips}{_CHIPS}"


def chips_of_labels(labels: Labels) -> int | None:
    """The number of chips that ``4 chips`` names; None for any other amount."""
    return int(labels.removesuffix(_CHIPS)) if isinstance(labels, str) and labels.endswith(_CHIPS) else None


def labels_name(labels: str) -> str:
    """How an amount of labels is written."""
    chips = chips_of_labels(labels)
    if chips is not None:
        return "1 labelled chip" if chips == 1 else f"{chips} labelled chips"
    if labels == "all":
        return "all labels"
    if labels.endswith("%"):
        return f"{labels} of the labels"
    return "1 label a class" if labels == "1" else f"{labels} labels a class"
