"""Scene classification: one class an image, read from a folder of class folders.

Layouts: ``<set>/<Class>/<file>`` or ``<set>/Images/<Class>/<file>`` (JPEG, PNG or TIFF, 8-bit RGB), beside them
``split_train.txt`` and ``split_test.txt`` with lines ``<Class>/<file>``. Without split files every class is halved: so
EuroSAT, UC Merced, AID and NWPU-RESISC45 come from their archives (a folder that holds nothing but one folder, as
archives like to, is stepped into). ``<set>/train/<Class>/<file>`` beside ``test`` or ``val``, as in RSD46-WHU, is a split.
Reading, drawing labels and scoring are here; networks and classifiers are in ``probe`` and ``finetune``.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn

from geokr_core import backbone, finetune, probe
from geokr_core.augment import Normalisation
from geokr_core.config import EvaluationConfig, TaskConfig
from geokr_core.errors import EvaluationError
from geokr_core.files import data_version
from geokr_core.runtime import Runtime
from geokr_core.statistics import bootstrap_rows, macro_f1_interval, wilson_interval
from geokr_core.tasks import RGB, Cell, Features, Labels, Measurement, Score, Start, fraction_of_labels

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
BANDS = RGB
DEFAULT_SIZE_PX = 64
_SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, read whole into memory.

    Attributes:
        classes: class names in alphabetical order.
        images: uint8 (N, S, S, 3), red, green, blue.
        labels: int64 (N,), index into `classes`.
        train_rows: int64, items of the training split.
        test_rows: int64, items of the test split; disjoint from `train_rows`.
        notes: what a person should know, e.g. how many images were resized.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train_rows: np.ndarray
    test_rows: np.ndarray
    notes: tuple[str, ...]


def read_image_set(folder: Path, image_size_px: int, threads: int = 2) -> ImageSet:
    """Read a labelled set.

    Args:
        folder: see the module's docstring for the layout.
        image_size_px: images of another width or height are resized to this square, bilinear with antialiasing.
        threads: images decoded at a time.

    Returns:
        The set.

    Raises:
        EvaluationError: the folder is missing or empty, a split file names an image that is not there, an image cannot
            be read or is not 8-bit RGB, one is in both splits, or a class lacks training or test images.
    """
    folder, root = _roots(folder)
    split_folders = _split_folders(root)
    if split_folders:
        classes = _classes(split_folders[0])
        train, test = (_listed(part, classes, f"{part.name}/") for part in split_folders)
        notes = [f"split by its folders {split_folders[0].name} and {split_folders[1].name}"]
    else:
        classes = _classes(root)
        train, test, notes = _splits(folder, root, classes)
    _require_every_class(folder, classes, train, test)
    names = [*train, *test]
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda name: _read_image(root / name, image_size_px), names))
    sizes = Counter(size for _, size in decoded)
    labels = np.array([classes.index(name.split("/")[-2]) for name in names], dtype=np.int64)
    return ImageSet(
        classes=classes,
        images=np.stack([pixels for pixels, _ in decoded]),
        labels=labels,
        train_rows=np.arange(len(train), dtype=np.int64),
        test_rows=np.arange(len(train), len(names), dtype=np.int64),
        notes=(*notes, *_size_notes(sizes, image_size_px)),
    )


def _roots(folder: Path) -> tuple[Path, Path]:
    """The set's folder, and that of its class folders."""
    if (folder / "Images").is_dir():
        return folder, folder / "Images"
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if len(inside) == 1 and inside[0].is_dir() and any(path.is_dir() for path in inside[0].iterdir()):
        return _roots(inside[0])
    return folder, folder


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of training and test images, where the set is laid out like that."""
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return root / "train", root / test
    return None


def _listed(root: Path, classes: tuple[str, ...], prefix: str) -> list[str]:
    unknown = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in classes)
    if unknown:
        raise EvaluationError(
            f"{root}: found the class folder {unknown[0]!r}, which the training folder lacks; expected the same classes "
            "in both. Complete the set, or remove the folder."
        )
    return [
        f"{prefix}{name}/{path.name}"
        for name in classes if (root / name).is_dir()
        for path in sorted((root / name).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES
    ]  # fmt: skip


def _classes(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise EvaluationError(
            f"{root}: no such folder; expected one folder of images a class. "
            "Point `evaluation.folder` at the folder of the labelled sets and name subfolders in `evaluation.tasks`."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise EvaluationError(
            f"{root}: found {len(folders)} class folder(s), expected at least 2 with images in them. "
            "Lay the set out as <set>/<Class>/<image>, and fetch it again if it should be full."
        )
    return tuple(p.name for p in folders)


def _splits(folder: Path, root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    files = [folder / "split_train.txt", folder / "split_test.txt"]
    there = [path for path in files if path.is_file()]
    if not there:
        train, test = _halves(root, classes)
        return train, test, ["no split files: every class was halved into training and test images"]
    if len(there) == 1:
        raise EvaluationError(
            f"{folder}: found {there[0].name} alone, expected split_train.txt and split_test.txt, or neither. "
            "Add the other one, or remove this one to have every class halved."
        )
    train, test = (_read_split(path, classes) for path in files)
    both = sorted(set(train) & set(test))
    if both:
        raise EvaluationError(
            f"{folder}: {len(both)} image(s) are listed for training and for testing (first: {both[0]}); expected "
            "disjoint splits. Remove them from split_train.txt: a test image must never be learnt from."
        )
    return train, test, []


def _read_split(path: Path, classes: tuple[str, ...]) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise EvaluationError(f"{path}: the split is empty; expected a line <Class>/<file> an image. Write it again.")
    for number, name in enumerate(names, start=1):
        parts = PurePosixPath(name).parts
        if len(parts) != 2 or parts[0] not in classes:
            raise EvaluationError(
                f"{path}, entry {number}: found {name!r}, expected <Class>/<file> with one of the classes "
                f"{', '.join(classes)}. Correct the line."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise EvaluationError(
            f"{path}: {twice[0]!r} is listed more than once; expected every image once. Remove the repetition."
        )
    return names


def _halves(root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    train: list[str] = []
    test: list[str] = []
    for index, name in enumerate(classes):
        files = sorted(f"{name}/{p.name}" for p in (root / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        order = np.random.default_rng([_SPLIT_SEED, index]).permutation(len(files))
        half = -(-len(files) // 2)
        train += sorted(files[k] for k in order[:half])
        test += sorted(files[k] for k in order[half:])
    return train, test


def _require_every_class(folder: Path, classes: tuple[str, ...], train: Sequence[str], test: Sequence[str]) -> None:
    for split, names in (("training", train), ("test", test)):
        counts = Counter(name.split("/")[-2] for name in names)
        empty = [name for name in classes if not counts[name]]
        if empty:
            raise EvaluationError(
                f"{folder}: class {empty[0]!r} has no {split} image (so have {len(empty)} of {len(classes)} classes); "
                "expected at least one of every class. Complete the set or its split files, or remove the class folder."
            )


def _read_image(path: Path, size_px: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels uint8 (S, S, 3), and the width and height that the file has."""
    try:
        with Image.open(path) as image:
            image.load()
            mode, size = image.mode, image.size
            fits = size == (size_px, size_px) or mode != "RGB"
            pixels = np.asarray(image if fits else image.resize((size_px, size_px), Image.Resampling.BILINEAR))
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{path}: the split lists this image, but there is no such file; expected every listed image to be there. "
            "Fetch the set again, or take the line out of the split file."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as an image ({error}); expected a whole JPEG, PNG or TIFF file. "
            "Fetch the file again, or take it out of the set and its split file."
        ) from error
    if mode != "RGB" or pixels.dtype != np.uint8:
        raise EvaluationError(
            f"{path}: found an image of mode {mode} ({pixels.dtype}), expected 8-bit RGB. Convert it to 8-bit RGB."
        )
    return pixels, size


def _size_notes(sizes: Counter[tuple[int, int]], size_px: int) -> list[str]:
    num_images = sizes.total()
    num_resized = num_images - sizes[(size_px, size_px)]
    if not num_resized:
        return []
    (width, height), count = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    note = f"{num_resized} of {num_images} images were resized to {size_px} × {size_px} px"
    if num_images - count and (width, height) != (size_px, size_px):
        note += f"; {num_images - count} of them are not {width} × {height} px like the others"
    return [note]


@dataclass(frozen=True)
class _Extracted:
    """Features of one start, kept until another start is asked for."""

    identity: Mapping[str, object]
    features: Features
    values: np.ndarray


class SceneClassification:
    """A scene-classification set that scores networks."""

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see `read_image_set`.
        """
        folder = evaluation.folder / task.name
        self.size_px = task.image_size_px or DEFAULT_SIZE_PX
        self.set = read_image_set(folder, self.size_px, evaluation.threads)
        self._data_version = data_version(folder)
        self._task = task
        self._evaluation = evaluation
        self._task_statistics = probe.channel_statistics(self.set.images[self.set.train_rows])
        self._extracted: _Extracted | None = None

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._task.name

    @property
    def data_version(self) -> str:
        """DVC's hash of the set's folder."""
        return self._data_version

    @property
    def bands(self) -> tuple[str, ...]:
        """Red, green, blue."""
        return BANDS

    @property
    def notes(self) -> Sequence[str]:
        """How many images were resized, and how the set was split where it has no split of its own."""
        return self.set.notes

    @property
    def budget(self) -> Mapping[str, object]:
        """What every initialisation gets alike."""
        config = self._evaluation
        return {
            "image size": f"{self.size_px} px",
            "frozen features": "standardised by all training images; logistic regression (C chosen on held-out labelled items); "
            f"{config.knn_neighbours} nearest neighbours by cosine similarity",
            "fine-tuning": f"{config.fine_tune_steps} steps of {config.batch_size} images",
            "schedule": finetune.SCHEDULE,
            "learning rates": list(config.fine_tune_learning_rates or (config.fine_tune_learning_rate,)),
            "augmentation": "flips and quarter turns",
            "BatchNorm of the backbone": "as pretrained" if self._task.batchnorm == "frozen" else "learns",
        }

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        config = self._evaluation
        settings: dict[str, object] = {"image_size_px": self.size_px, "threads": config.threads}
        if cell.features != "histogram":
            settings |= {
                "match_statistics": config.match_statistics,
                "precision": config.precision,
                "device": config.device,
            }
        if cell.protocol == "fine_tune":
            settings |= {
                "steps": config.fine_tune_steps,
                "learning_rate": config.fine_tune_learning_rate,
                "batch_size": config.batch_size,
                "weight_decay": finetune.WEIGHT_DECAY,
                "label_smoothing": finetune.LABEL_SMOOTHING,
                "head_learning_rate_factor": finetune.HEAD_LEARNING_RATE_FACTOR,
                "warmup_fraction": finetune.WARMUP_FRACTION,
            }
            if self._task.batchnorm == "frozen":
                settings["batchnorm"] = "frozen"
            if config.fine_tune_learning_rates:
                settings["learning_rates"] = config.fine_tune_learning_rates
                settings["validation_fraction"] = config.validation_fraction
        elif cell.protocol == "knn":
            settings |= {"neighbours": config.knn_neighbours, "standardised_by": "train"}
        else:
            settings |= {
                "strengths": probe.STRENGTHS,
                "holdouts": [probe.HOLDOUTS, probe.HOLDOUT_FRACTION, probe.MANY_ITEMS],
                "single_label_strength": probe.SINGLE_LABEL_STRENGTH,
                "standardised_by": "train",
            }
        return settings

    def require(self, cell: Cell) -> None:
        """Check that every class has the labels that ``cell`` asks for.

        Raises:
            EvaluationError: a class has fewer training images.
        """
        self.draw_labels(cell.labels_per_class, cell.seed)

    def draw_labels(self, labels_per_class: Labels, seed: int) -> np.ndarray:
        """The labelled training images of a cell.

        Args:
            labels_per_class: images drawn of each class, a share of each class such as ``10%``, or ``all``.
            seed: of the draw. With one seed, a larger draw contains every smaller one.

        Returns:
            int64, sorted item numbers.

        Raises:
            EvaluationError: a class has fewer training images than asked for.
        """
        rows = self.set.train_rows
        if labels_per_class == "all":
            return rows
        rng = np.random.default_rng(seed)
        drawn = []
        for index, name in enumerate(self.set.classes):
            available = rows[self.set.labels[rows] == index]
            if isinstance(labels_per_class, str):
                share = max(1, math.ceil(fraction_of_labels(labels_per_class) * len(available) - 1e-9))
                drawn.append(rng.permutation(available)[:share])
                continue
            if len(available) < labels_per_class:
                raise EvaluationError(
                    f"{self.name}: class {name!r} has {len(available)} training image(s), but "
                    f"{labels_per_class} labels a class are asked for. Lower `evaluation.labels_per_class` "
                    "(and `fine_tune_labels_per_class`), or add images to the training split."
                )
            drawn.append(rng.permutation(available)[:labels_per_class])
        return np.sort(np.concatenate(drawn))

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the drawn training images and score on all test images.

        Raises:
            EvaluationError: features, loss or predictions are not finite, or labels are too few.
            BackboneError: weights and architecture do not fit together.
        """
        rows = self.draw_labels(cell.labels_per_class, cell.seed)
        details: Mapping[str, object] = {}
        with probe.running(self._evaluation) as runtime:
            if cell.protocol == "fine_tune":
                learning_rate = self._chosen_learning_rate(cell, start, rows, runtime)
                predicted = self._learnt(cell, start, rows, self.set.test_rows, learning_rate, runtime)
                details = {"learning_rate": learning_rate}
            else:
                predicted = self._probe(cell, start, rows, runtime)
        return replace(self._score(predicted, len(rows), cell.seed), details=details)

    def _normalisation(self, start: Start, runtime: Runtime) -> Normalisation:
        # Moving the task's statistics onto those of Levir-KR and then standardising with the latter is standardising
        # with the former: a sharp, bright set and a dull one look alike to the network, whatever it starts from.
        if self._evaluation.match_statistics:
            order = [BANDS.index(band) for band in start.bands]
            statistics = self._task_statistics
            matched = Normalisation(statistics.mean[order], statistics.std[order])
            return probe.placed(matched, runtime.device)
        return probe.placed(Normalisation(torch.tensor(start.mean), torch.tensor(start.std)), runtime.device)

    def _start_network(self, start: Start, runtime: Runtime) -> tuple[nn.Module, Normalisation]:
        normalisation = self._normalisation(start, runtime)
        train = self._images(start)[self.set.train_rows]
        return probe.start_network(start, train, normalisation, runtime), normalisation

    def _images(self, start: Start) -> np.ndarray:
        """All images with their bands in the order that the network reads."""
        if start.bands == BANDS:
            return self.set.images
        return np.ascontiguousarray(self.set.images[..., [BANDS.index(band) for band in start.bands]])

    def _probe(self, cell: Cell, start: Start, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
        features = self._features(cell.features, start, runtime)
        labels, num_classes = self.set.labels[rows], len(self.set.classes)
        labelled, unlabelled, asked = (features[part] for part in (rows, self.set.train_rows, self.set.test_rows))
        if cell.protocol == "knn":
            num_neighbours = self._evaluation.knn_neighbours
            return probe.nearest_neighbours(labelled, labels, asked, num_classes, unlabelled, num_neighbours)
        return probe.fit_probe(labelled, labels, num_classes, unlabelled, seed=cell.seed).predict(asked)

    def _features(self, features: Features, start: Start, runtime: Runtime) -> np.ndarray:
        """Features float32 (N, D) of all images; a network's are computed once and kept until the next network."""
        identity = start.identity()
        kept = self._extracted
        if kept is not None and kept.identity == identity:
            if kept.features == features:
                return kept.values
            if (kept.features, features) == ("multi", "last"):
                # Stages lie side by side in order, the last one at the end.
                return kept.values[:, -backbone.feature_dim(start.architecture) :]
        if features == "histogram":
            values = probe.colour_histogram(self.set.images)
        else:
            network, normalisation = self._start_network(start, runtime)
            values = probe.extract_features(network, self._images(start), normalisation, features, runtime)
        self._extracted = _Extracted(identity, features, values)
        return values

    def _chosen_learning_rate(self, cell: Cell, start: Start, rows: np.ndarray, runtime: Runtime) -> float:
        candidates = self._evaluation.fine_tune_learning_rates or (self._evaluation.fine_tune_learning_rate,)
        fitting, held_out = probe.stratified_holdout(
            self.set.labels[rows], cell.seed, self._evaluation.validation_fraction
        )
        if not len(held_out):
            candidates = candidates[:1]  # one label a class: nothing can be held out, so nothing is chosen

        def held_out_accuracy(learning_rate: float) -> float:
            guessed = self._learnt(cell, start, rows[fitting], rows[held_out], learning_rate, runtime)
            return float((guessed == self.set.labels[rows[held_out]]).mean())

        return finetune.choose(candidates, held_out_accuracy)

    def _learnt(
        self, cell: Cell, start: Start, rows: np.ndarray, asked: np.ndarray, learning_rate: float, runtime: Runtime
    ) -> np.ndarray:
        """Predictions for the images `asked` of a network that learned from `rows`."""
        network, normalisation = self._start_network(start, runtime)
        images = self._images(start)
        model = finetune.fine_tune(
            network,
            start.architecture,
            images[rows],
            self.set.labels[rows],
            len(self.set.classes),
            normalisation,
            self._evaluation,
            cell.seed,
            runtime,
            learning_rate,
            frozen_batchnorm=self._task.batchnorm == "frozen",
        )
        return finetune.predict(model, images[asked], normalisation, runtime)

    def _score(self, predicted: np.ndarray, num_labelled: int, seed: int) -> Measurement:
        truth = self.set.labels[self.set.test_rows]
        indices = list(range(len(self.set.classes)))
        table = confusion_matrix(truth, predicted, labels=indices)
        accuracy = Score(
            "accuracy", float(accuracy_score(truth, predicted)), *wilson_interval(int(table.trace()), len(truth))
        )
        macro_f1 = Score(
            "macro_f1",
            float(f1_score(truth, predicted, labels=indices, average="macro", zero_division=0.0)),
            *macro_f1_interval(truth, predicted, len(indices), seed),
        )
        per_class = f1_score(truth, predicted, labels=indices, average=None, zero_division=0.0)
        correct = (truth == predicted).astype(np.float64)
        return Measurement(
            per_class={"f1": tuple(round(float(value), 6) for value in per_class)},
            replicates=tuple(correct[bootstrap_rows(len(truth))].mean(axis=1).round(6).tolist()),
            scores=(accuracy, macro_f1),
            n=len(truth),
            label_fraction=num_labelled / len(self.set.train_rows),
            classes=self.set.classes,
            confusion=tuple(tuple(int(v) for v in row) for row in table),
        )
