"""Downstream tasks: labelled sets on which a backbone is judged.

Here is what every task has in common: what a cell of the comparison is, what measuring it gives, and which kinds of
task there are. How a kind reads its files, learns and scores is written in its own module; which cells are run, and
what becomes of their scores, in ``evaluate``.

A new kind of task is a module with a class that satisfies `DownstreamTask`, a line in `KINDS` and its name in
``TaskConfig.kind``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from geokr_core.config import EvaluationConfig, Initialisation, TaskConfig
from geokr_core.files import file_md5

EvaluationProtocol = Literal["linear_probe", "knn", "fine_tune"]
Features = Literal["last", "multi", "histogram"]
"""What the classifier sees: pooled last stage, all pooled stages, or the 54 numbers of the colour histogram."""
Labels = int | str
"""Labelled images of each class, a share of the training images such as ``10%``, or ``all``."""
Choice = tuple[EvaluationProtocol, Features, Labels]
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Start:
    """Where a network starts from, and how its input is scaled.

    Attributes:
        initialisation: what is judged.
        seed: of a random network.
        architecture: a name ``backbone.build`` knows.
        weights: ``backbone.safetensors``, or None for a random network or no network at all.
        mean: channel means of Levir-KR, 0–1, in the order of `bands`.
        std: channel standard deviations of Levir-KR, 0–1, in the order of `bands`.
        bands: common names of the bands the network reads, in its order.
    """

    initialisation: Initialisation
    seed: int
    architecture: str
    weights: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...] = RGB

    def identity(self) -> dict[str, object]:
        """What the network is a function of. Two starts with equal identity give the same network.

        Raises:
            OSError: the weights cannot be read.
        """
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
        return shared | {"weights_md5": file_md5(self.weights)}


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
        details: whatever else a person should know of the cell, e.g. the learning rate that was chosen.
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
        """What a person should know about the set, e.g. how many images were resized."""

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


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        opens: opens a set of this kind.
        choices: protocols, features and labels that an initialisation is judged by.
    """

    opens: Callable[[TaskConfig, EvaluationConfig], DownstreamTask]
    choices: Callable[[TaskConfig, EvaluationConfig, Initialisation], Iterator[Choice]]


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


def _classification_choices(
    task: TaskConfig, config: EvaluationConfig, initialisation: Initialisation
) -> Iterator[Choice]:
    probed: Sequence[Features] = ("histogram",)
    if initialisation != "colour_histogram":
        # All stages first: the last one is part of them.
        probed = sorted(set(config.features), key=("multi", "last").index)
    frozen: tuple[EvaluationProtocol, ...] = ("linear_probe", "knn")
    for features in probed:
        for protocol in frozen:
            for labels in dict.fromkeys(config.labels_per_class) if protocol in config.protocols else ():
                yield protocol, features, labels
    if "fine_tune" in config.protocols and config.is_fine_tuned(initialisation):
        for labels in dict.fromkeys(config.fine_tune_labels_per_class or config.labels_per_class):
            yield "fine_tune", "last", labels


def _fine_tuned_choices(task: TaskConfig, config: EvaluationConfig, initialisation: Initialisation) -> Iterator[Choice]:
    if config.is_fine_tuned(initialisation):
        for fraction in dict.fromkeys(task.label_fractions or config.label_fractions):
            yield "fine_tune", "last", labels_of_fraction(fraction)


def _scene_classification(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.tasks.scene_classification import SceneClassification

    return SceneClassification(task, evaluation)


def _segmentation(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.tasks.semantic_segmentation import SemanticSegmentation

    return SemanticSegmentation(task, evaluation)


def _cloud_snow(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.tasks.cloud_snow import CloudSnowDetection

    return CloudSnowDetection(task, evaluation)


def _detection(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.tasks.object_detection import ObjectDetection

    return ObjectDetection(task, evaluation)


KINDS: Mapping[str, Kind] = {
    "scene_classification": Kind(_scene_classification, _classification_choices),
    "segmentation": Kind(_segmentation, _fine_tuned_choices),
    "detection": Kind(_detection, _fine_tuned_choices),
    "cloud_snow": Kind(_cloud_snow, _fine_tuned_choices),
}
"""Kind of task → what opens it and what it is judged by. The modules are imported only when one is opened."""


def open_task(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    """Open a labelled set.

    Args:
        task: which set, and of which kind.
        evaluation: where sets lie and how they are judged.

    Raises:
        EvaluationError: the set is missing, damaged or cannot be judged.
    """
    return KINDS[task.kind].opens(task, evaluation)
