"""Downstream tasks: labelled sets on which a backbone is judged.

Here is what every task has in common: what a cell of the comparison is, what measuring it gives, and which kinds of
task there are. How a kind reads its files, learns and scores is written in its own module; which cells are run, and
what becomes of their scores, in ``evaluate``.

A new kind of task is a module with a class that satisfies `DownstreamTask`, a line in `KINDS` and its name in
``TaskConfig.kind``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from geokr_core.evaluation.cells import Choice, DownstreamTask, EvaluationProtocol, Features, labels_of_fraction
from geokr_core.evaluation.config import EvaluationConfig, Initialisation, TaskConfig


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        opens: opens a set of this kind.
        choices: protocols, features and labels that an initialisation is judged by.
    """

    opens: Callable[[TaskConfig, EvaluationConfig], DownstreamTask]
    choices: Callable[[TaskConfig, EvaluationConfig, Initialisation], Iterator[Choice]]


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
    from geokr_core.evaluation.tasks.scene_classification import SceneClassification

    return SceneClassification(task, evaluation)


def _segmentation(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.evaluation.tasks.semantic_segmentation import SemanticSegmentation

    return SemanticSegmentation(task, evaluation)


def _cloud_snow(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.evaluation.tasks.cloud_snow import CloudSnowDetection

    return CloudSnowDetection(task, evaluation)


def _detection(task: TaskConfig, evaluation: EvaluationConfig) -> DownstreamTask:
    from geokr_core.evaluation.tasks.object_detection import ObjectDetection

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
