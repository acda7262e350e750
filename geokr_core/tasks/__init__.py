"""Downstream tasks: labelled sets on which a backbone is judged.

Here is what every task has in common: what a cell of the comparison is, what measuring it gives, and which kinds of
task there are. How a kind reads its files, learns and scores is written in its own module; which cells are run, and
what becomes of their scores, in ``evaluate``.

A new kind of task is a module with a class that satisfies `DownstreamTask`, a line in `KINDS` and its name in
``TaskConfig.kind``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from geokr_core.config import EvaluationConfig, TaskConfig
from geokr_core.files import file_md5

Initialisation = Literal["geokr", "shuffled", "random", "colour_histogram"]
EvaluationProtocol = Literal["linear_probe", "fine_tune"]
Features = Literal["last", "multi", "histogram"]
"""What the classifier sees: pooled last stage, all pooled stages, or the 54 numbers of the colour histogram."""
Labels = int | Literal["all"]


@dataclass(frozen=True)
class Start:
    """Where a network starts from, and how its input is scaled.

    Attributes:
        initialisation: what is judged.
        seed: of a random network.
        architecture: a name ``backbone.build`` knows.
        weights: ``backbone.safetensors``, or None for a random network or no network at all.
        mean: channel means of Levir-KR, 0–1, red, green, blue.
        std: channel standard deviations of Levir-KR, 0–1, red, green, blue.
    """

    initialisation: Initialisation
    seed: int
    architecture: str
    weights: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        confusion: test items by true class (row) and predicted class (column), in the order of `classes`.
    """

    scores: tuple[Score, ...]
    n: int
    label_fraction: float
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]


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


def _scene_classification(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.tasks.scene_classification import SceneClassification

    return SceneClassification(task, evaluation)


KINDS: Mapping[str, Callable[[TaskConfig, EvaluationConfig], DownstreamTask]] = {
    "scene_classification": _scene_classification,
}
"""Kind of task → what opens it. The modules are imported only when one is opened."""


def open_task(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    """Open a labelled set.

    Args:
        task: which set, and of which kind.
        evaluation: where sets lie and how they are judged.

    Raises:
        EvaluationError: the set is missing, damaged or cannot be judged.
    """
    return KINDS[task.kind](task, evaluation)
