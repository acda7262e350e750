"""The section `evaluation` of the parameter file: what is judged, on which labelled sets, with how many labels."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from geokr_core.evaluation.metrics import TaskMetrics
from geokr_core.evaluation.task_kinds import TaskConfig, kind_of
from geokr_core.networks.architectures import Architecture
from geokr_core.step.section import Section

LabelShare = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]
LabelChips = Annotated[str, Field(pattern=r"^[1-9][0-9]* chips$")]
LabelsPerClass = Annotated[int, Field(ge=1)] | Literal["all"] | LabelShare
Initialisation = str
"""A variant of pretraining by name, one of `UNTRAINED`, or two of these as ``imagenet+geokr``: their features side by side."""
UNTRAINED = ("random", "imagenet", "colour_histogram")
"""Initialisations that need no pretraining: what every variant is compared with."""


def parts_of(initialisation: Initialisation) -> tuple[str, ...]:
    """The starts whose features lie side by side in an initialisation; the start itself where it is but one."""
    return tuple(initialisation.split("+"))


class EvaluationConfig(Section):
    """Which cells of the comparison are run: task x initialisation x protocol x labels x seed."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"threads", "device"})

    folder: Path = Field(
        description="where the labelled sets lie; may be left out where every task names a `levir_kr`: the first of these then",
    )
    tasks: tuple[SerializeAsAny[TaskConfig], ...] = Field(min_length=1)
    initialisations: tuple[Initialisation, ...] = Field(
        ("random", "geokr"),
        description="variants of pretraining, `random`, `imagenet`, `colour_histogram`, or two of these as `imagenet+geokr`: what do the "
        "features of one add to those of the other? Never fine-tuned",
    )
    fine_tune_initialisations: tuple[Initialisation, ...] | None = Field(
        None,
        description="those of `initialisations` that are fine-tuned too, where that costs too much for all; null: all",
    )
    imagenet_weights: dict[Architecture, Path] = Field(
        {},
        description="torchvision-keyed files for the initialisation `imagenet`; else torchvision's own cache is looked in",
    )
    protocols: tuple[
        Literal["linear_probe", "knn", "fine_tune", "torchgeo_bench_knn5", "torchgeo_bench_linear"], ...
    ] = Field(
        ("linear_probe", "fine_tune"),
        description="of scene classification: `linear_probe`, `knn`, `fine_tune`, and by the definitions of torchgeo-bench "
        "`torchgeo_bench_knn5`, `torchgeo_bench_linear`; segmentation, detection and cloud are always fine-tuned",
    )
    features: tuple[Literal["last", "multi"], ...] = Field(
        ("last",), description="pooled last stage, or all stages side by side (linear probe, k-NN)"
    )
    labels_per_class: tuple[LabelsPerClass, ...] = Field(
        (5, "all"), min_length=1, description="scene classification: images a class, a share such as `10%`, or `all`"
    )
    fine_tune_labels_per_class: tuple[LabelsPerClass, ...] | None = Field(
        None, description="null: as `labels_per_class`"
    )
    label_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 1.0), min_length=1, description="segmentation, detection and cloud: share of the training images"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    match_statistics: bool = Field(
        True,
        description="move the channel mean and deviation of a task's training images onto those of Levir-KR",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the processor computes in it, fp32 elsewhere, which is faster there"
    )
    fine_tune_steps: int = Field(60, ge=1)
    fine_tune_learning_rate: float = Field(5e-4, gt=0)
    fine_tune_learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        description="grid, the same for every initialisation; the best on held-out labelled items is taken, never on "
        "test items; null: `fine_tune_learning_rate` alone",
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the labelled items held out to choose the learning rate"
    )
    batch_size: int = Field(32, ge=2)
    knn_neighbours: int = Field(20, ge=1, description="neighbours that vote, at most as many as there are labels")
    threads: int = Field(
        2, ge=1, description="cores: on a CPU so many cells are measured at a time, each by a process of one thread"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _each_set_once(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"tasks: {twice[0]!r} is named more than once; results could not tell which one is meant")
        return self

    @model_validator(mode="before")
    @classmethod
    def _folder_of_what_is_mapped(cls, values: Any) -> Any:
        """Without labelled sets there is no folder of them; what stands for it is read, and recorded, all the same."""
        if not isinstance(values, Mapping) or "folder" in values or not isinstance(values.get("tasks"), list | tuple):
            return values
        mapped = [
            task.get("levir_kr") if isinstance(task, Mapping) else getattr(task, "levir_kr", None)
            for task in values["tasks"]
        ]
        return {"folder": mapped[0], **values} if mapped and None not in mapped else values

    @model_validator(mode="after")
    def _fine_tuned_are_judged(self) -> Self:
        asked = [self.fine_tune_initialisations, *(_own_fine_tuned(task) for task in self.tasks)]
        unknown = [name for names in asked for name in names or () if name not in self.initialisations]
        if unknown:
            raise ValueError(f"fine_tune_initialisations: {unknown[0]!r} is none of `initialisations`; add it there")
        return self

    @model_validator(mode="after")
    def _a_yardstick_has_one_split(self) -> Self:
        named = [name for name in self.protocols if name.startswith("torchgeo_bench")]
        folded = [task.name for task in self.tasks if getattr(task, "folds", None)]
        if named and folded:
            raise ValueError(
                f"tasks: {folded[0]!r} has `folds`, but {named[0]} is defined for one split; leave out either of them"
            )
        return self

    def seeds_of(self, task: TaskConfig) -> tuple[int, ...]:
        """The seeds of a task, each once."""
        return tuple(dict.fromkeys(self.seeds if task.seeds is None else task.seeds))

    @property
    def metrics(self) -> TaskMetrics:
        """The metrics of all tasks.

        Raises:
            ConfigError: the package that brings a kind cannot be imported.
        """
        return TaskMetrics({task.name: kind_of(task.kind).metrics for task in self.tasks})

    def require_measured(self, criterion: "Criterion") -> None:
        """Check that a criterion names a task of this evaluation and one of its metrics.

        Raises:
            ValueError: it does not, and what it may have meant.
        """
        metrics = self.metrics.by_task
        if criterion.task not in metrics:
            raise ValueError(
                f"task {criterion.task!r} is none of evaluation.tasks {list(metrics)}{_meant(criterion.task, metrics)}"
            )
        names = [metric.name for metric in metrics[criterion.task]]
        if criterion.metric not in names:
            raise ValueError(
                f"metric {criterion.metric!r} is none that {criterion.task} gives ({', '.join(names)})"
                f"{_meant(criterion.metric, names)}"
            )

    def is_fine_tuned(self, initialisation: Initialisation, task: TaskConfig) -> bool:
        """Whether an initialisation is fine-tuned, too: the colour histogram has no weights to tune, two networks are not one."""
        given = (_own_fine_tuned(task), self.fine_tune_initialisations, self.initialisations)
        chosen = next(names for names in given if names is not None)
        return initialisation in chosen and initialisation != "colour_histogram" and len(parts_of(initialisation)) == 1


def _own_fine_tuned(task: TaskConfig) -> tuple[str, ...] | None:
    """Of a kind that can be fine-tuned, the starts that its section names."""
    return getattr(task, "fine_tune_initialisations", None)


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Criterion(Section):
    """One figure by which backbones are compared."""

    task: str
    protocol: Literal["linear_probe", "knn", "fine_tune"] = "linear_probe"
    features: Literal["last", "multi"] = Field("last", description="of frozen protocols; no choice when fine-tuned")
    labels_per_class: LabelsPerClass | LabelChips = Field(
        "all", description="as results name it; land-cover mapping: a number such as `64 chips`"
    )
    metric: str = Field("accuracy", description="accuracy, macro_f1, miou, map … as the task gives it")

    @property
    def name(self) -> str:
        """What it is called in decisions and tags."""
        features = [] if self.protocol == "fine_tune" else [self.features]
        return "/".join([self.task, self.protocol, *features, str(self.labels_per_class), self.metric])
