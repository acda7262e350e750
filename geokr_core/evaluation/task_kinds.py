"""The table of task kinds: one entry holds everything that is known of a kind before one of its sets is opened.

An entry names the parameters that a task of the kind reads, its metrics and the class that opens a set. Importing this
module imports none of these classes: the parameter file needs the table and no torch.

A new kind is a module in ``evaluation.tasks`` with a class that satisfies ``cells.DownstreamTask``, and an entry in
`KINDS`. An installed package adds one by an entry point of the group ``geokr.tasks`` that names a `TaskKind`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from geokr_core.errors import ConfigError
from geokr_core.evaluation.metrics import Metric, TaskMetrics
from geokr_core.step.plugins import load_plugin, plugins
from geokr_core.step.section import Section, Share

GROUP: Final = "geokr.tasks"
"""Group of entry points that bring kinds of task."""


_DEFAULT_KIND: Final = "scene_classification"


class TaskConfig(Section):
    """One labelled downstream set, a folder below ``evaluation.folder``."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="folder name")
    kind: str = Field(
        _DEFAULT_KIND,
        description="scene_classification, land_cover_mapping, segmentation, cloud_snow, detection, or a kind of an installed package",
    )
    layout: str = Field("auto", description="how the files lie, see docs/tasks.md; `auto`: recognised by its files")
    bad_items: Literal["fail", "skip"] = Field(
        "fail",
        description="images that cannot be used, unknown mask colours, broken boxes, images smaller than a crop: an "
        "error, or left out (small images padded), counted and reported",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="null: `evaluation.seeds`; fewer where a task costs much"
    )
    show_images: bool = Field(
        False, description="whether the report may show test images; never done for layouts under research-only terms"
    )

    @field_validator("kind")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in known_kinds():
            close = difflib.get_close_matches(value, known_kinds(), n=1)
            hint = f"did you mean {close[0]!r}? Known" if close else "known"
            raise ValueError(f"no kind of task is called {value!r}; {hint}: {', '.join(known_kinds())}")
        return value

    @classmethod
    def variants(cls) -> Mapping[str, type[Section]]:
        """The sections that this one is read as, by the value of `kind`."""
        if cls is not TaskConfig:
            return {}
        return {kind: entry.parameters for kind, entry in KINDS.items() if entry.parameters is not TaskConfig}

    def __new__(cls, **content: Any) -> Self:
        """An instance of the class of its kind, so that `TaskConfig(...)` is what the parameter file would give."""
        wanted: Any = _class_of(content) if cls is TaskConfig and content else cls
        new: Self = super().__new__(wanted)
        return new

    @model_validator(mode="wrap")
    @classmethod
    def _as_its_kind(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        """Read a task by the parameters of its kind: a setting that would do nothing is an error, not a surprise."""
        if not isinstance(content, Mapping):
            return handler(content)
        parameters = _class_of(content)
        if parameters is TaskConfig:  # the kind is refused, and with it what is unknown without it
            return handler({key: value for key, value in content.items() if key in TaskConfig.model_fields})
        for key in content:
            if key not in parameters.model_fields:
                raise ValueError(_refusal(str(key), str(content.get("kind", _DEFAULT_KIND)), parameters))
        return parameters.model_validate(content) if cls is TaskConfig else handler(content)


class SceneClassificationConfig(TaskConfig):
    """A set of images with one class each."""

    silent_unless_given: ClassVar[frozenset[str]] = frozenset(
        {"fine_tune_initialisations", "folds", "head", "learning_rates"}
    )

    fine_tune_initialisations: tuple[str, ...] | None = Field(
        None, description="null: `evaluation.fine_tune_initialisations`; fewer where a task costs much"
    )
    image_size_px: int | None = Field(None, ge=16, le=4096, description="images become this square (null: 64)")
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="cross-validation: parts of which each is tested on in turn, so that every image of a small set is, once; null: the "
        "split of the set",
    )
    batchnorm: Literal["learned", "frozen"] | None = Field(
        None, description="backbone's BatchNorm while fine-tuning, the same for every initialisation; null: learned"
    )
    head: Literal["linear_probe"] | None = Field(
        None,
        description="where the classifier begins when all weights are fine-tuned: null: drawn at random; `linear_probe`: as that of the "
        "frozen start on the same labels, which spares few labels the first steps that pull features apart",
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="null: `evaluation.fine_tune_learning_rates`"
    )


class FineTunedConfig(TaskConfig):
    """A set that is judged by fine-tuning on a share of its training images."""

    silent_unless_given: ClassVar[frozenset[str]] = frozenset({"fine_tune_initialisations"})

    fine_tune_initialisations: tuple[str, ...] | None = Field(
        None, description="null: `evaluation.fine_tune_initialisations`; fewer where a task costs much"
    )
    decoder_channels: int = Field(
        64, ge=32, le=512, multiple_of=32, description="width of the decoder, or of the detector's feature pyramid"
    )
    batchnorm: Literal["learned", "frozen"] | None = Field(
        None,
        description="backbone's BatchNorm while fine-tuning, the same for every initialisation: statistics and scales "
        "learn, or stay as they are; null: frozen for detection (batches too small), learned elsewhere",
    )
    test_groups: tuple[str, ...] | None = Field(
        None, description="sets without a split: tiles, folders or images whose items are the test split"
    )
    absent_classes: Literal["fail", "leave_out"] = Field(
        "leave_out", description="a class without a test item: an error, or left out of the means and reported"
    )
    label_fractions: tuple[Share, ...] | None = Field(
        None, min_length=1, description="null: `evaluation.label_fractions`; fewer where a task costs much"
    )
    steps: int | None = Field(None, ge=1, description="null: `evaluation.fine_tune_steps`")
    batch_size: int | None = Field(None, ge=1, description="null: `evaluation.batch_size`")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="null: `evaluation.fine_tune_learning_rates`"
    )


class MaskConfig(FineTunedConfig):
    """A set of images with a mask each."""

    crop_size_px: int = Field(128, ge=32, le=2048, description="square that is learnt from and predicted at a time")
    downscale: int = Field(1, ge=1, le=16, description="images are shrunk by this factor")
    decoder: Literal["unet", "fpn", "deeplabv3plus"] = "unet"
    batch_size: int | None = Field(
        None, ge=2, description="null: `evaluation.batch_size`; the decoder's BatchNorm needs two crops at least"
    )
    bands: tuple[str, ...] | None = Field(
        None, description="common names of the images' bands in file order; null: as the layout or the files name them"
    )
    ignored_colours: tuple[tuple[int, int, int] | int, ...] = Field(
        (),
        description="mask colours `[red, green, blue]` or codes that mean `not labelled`, besides those the layout knows",
    )


class DetectionConfig(FineTunedConfig):
    """A set of images with boxes."""

    image_size_px: int | None = Field(
        None, ge=16, le=4096, description="the longer side of every image is scaled to this (null: 512)"
    )
    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"

    @model_validator(mode="after")
    def _learned_statistics_need_a_batch(self) -> Self:
        if self.batchnorm == "learned" and self.batch_size == 1:
            raise ValueError(
                "`batchnorm: learned` needs a `batch_size` of 2 or more; found 1. Take a larger batch, or `frozen`"
            )
        return self


class LandCoverMappingConfig(TaskConfig):
    """Ground that no network was trained on, to be mapped cell by cell: of a frozen Levir-KR, or images with masks."""

    silent_unless_given: ClassVar[frozenset[str]] = frozenset(
        {"fine_tune_steps", "fine_tune_learning_rate", "fine_tune_initialisations"}
    )

    levir_kr: Path | None = Field(
        None,
        description="folder of a frozen Levir-KR with `cells.npy`; its validation split is mapped. null: images with masks in the folder of that name, laid out as for segmentation",
    )
    chip_size_px: int = Field(64, ge=8, le=1024, description="chips that images with masks are cut into")
    cells_per_side: int = Field(8, ge=1, le=64, description="cells along a chip's side, of images with masks")
    label_chips: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = Field(
        (4, 16, 64, "all"), min_length=1, description="labelled chips of the training split"
    )
    features: tuple[Literal["last", "multi"], ...] | None = Field(
        None, min_length=1, description="null: `evaluation.features`; fewer where mapping costs much"
    )
    draws: int = Field(6, ge=1, description="draws of labelled chips; the score is the mean over them")
    dominant_fraction: float = Field(
        0.6, gt=0.5, le=1, description="cells of which no class covers so much take no part"
    )
    min_class_fraction: float = Field(
        0.01, ge=0, lt=0.5, description="classes with a smaller share of the cells of either split take no part"
    )
    max_chips: int = Field(1000, ge=1, description="chips of each split that take part, evenly spread")
    fine_tune_steps: int | None = Field(
        None,
        ge=1,
        description="the ground is mapped by fine-tuned networks, too: backbone and probe (all stages) learn on for so many steps, BatchNorm as "
        "pretrained; null: by frozen features alone",
    )
    fine_tune_learning_rate: float | None = Field(
        None, gt=0, description="highest rate of backbone and probe when they learn on; null: 0.0001"
    )
    fine_tune_initialisations: tuple[str, ...] | None = Field(
        None, description="null: `evaluation.fine_tune_initialisations`; fewer where mapping costs much"
    )

    @model_validator(mode="after")
    def _what_learns_has_steps(self) -> Self:
        given = [
            name for name in ("fine_tune_learning_rate", "fine_tune_initialisations") if getattr(self, name) is not None
        ]
        if given and self.fine_tune_steps is None:
            raise ValueError(f"`{given[0]}` does nothing without `fine_tune_steps`; give these, or remove it")
        return self

    @model_validator(mode="after")
    def _cells_are_whole_pixels(self) -> Self:
        if self.chip_size_px % self.cells_per_side:
            raise ValueError(
                f"`chip_size_px`: {self.chip_size_px} px have no {self.cells_per_side} cells of whole pixels; take a multiple of "
                "`cells_per_side`"
            )
        return self


@dataclass(frozen=True)
class TaskKind:
    """A kind of task.

    Attributes:
        opens: ``module:class`` of what reads a set and scores networks on it, called with the task's and the
            evaluation's sections; a ``cells.DownstreamTask``.
        parameters: section of the parameter file that describes a set of this kind.
        metrics: figures of a whole cell, the one that the kind is judged by first.
        metrics_per_class: figures of each class.
        frozen_protocols: protocols that judge frozen features, with labels by number.
        fine_tunes: whether it is fine-tuned, too; without frozen protocols on shares of the training images. Land-cover mapping is
            where a task says for how many steps.
    """

    opens: str
    parameters: type[TaskConfig]
    metrics: tuple[Metric, ...]
    metrics_per_class: tuple[Metric, ...] = ()
    frozen_protocols: tuple[str, ...] = ()
    fine_tunes: bool = True


_MIOU = Metric("miou", "mean IoU")
_PIXEL_ACCURACY = Metric("pixel_accuracy", "pixel accuracy")
_IOU = Metric("iou", "IoU")

KINDS: Final[Mapping[str, TaskKind]] = {
    "scene_classification": TaskKind(
        opens="geokr_core.evaluation.tasks.scene_classification:SceneClassification",
        parameters=SceneClassificationConfig,
        metrics=(Metric("accuracy", "accuracy"), Metric("macro_f1", "macro-averaged F1")),
        metrics_per_class=(Metric("f1", "F1"),),
        frozen_protocols=("linear_probe", "knn", "torchgeo_bench_knn5", "torchgeo_bench_linear"),
    ),
    "land_cover_mapping": TaskKind(
        opens="geokr_core.evaluation.tasks.land_cover_mapping:LandCoverMapping",
        parameters=LandCoverMappingConfig,
        metrics=(_MIOU, Metric("cell_accuracy", "accuracy of cells")),
        metrics_per_class=(_IOU,),
        frozen_protocols=("linear_probe",),
    ),
    "segmentation": TaskKind(
        opens="geokr_core.evaluation.tasks.semantic_segmentation:SemanticSegmentation",
        parameters=MaskConfig,
        metrics=(_MIOU, _PIXEL_ACCURACY),
        metrics_per_class=(_IOU,),
    ),
    "detection": TaskKind(
        opens="geokr_core.evaluation.tasks.object_detection:ObjectDetection",
        parameters=DetectionConfig,
        metrics=(Metric("map", "COCO mAP"), Metric("ap50", "AP at IoU 0.5")),
        metrics_per_class=(Metric("ap", "AP (COCO)"), Metric("ap50", "AP at IoU 0.5")),
    ),
    "cloud_snow": TaskKind(
        opens="geokr_core.evaluation.tasks.cloud_snow:CloudSnowDetection",
        parameters=MaskConfig,
        metrics=(
            _MIOU,
            _PIXEL_ACCURACY,
            Metric("cloud_precision", "precision of cloud"),
            Metric("cloud_recall", "recall of cloud"),
            Metric("over_screening", "over-screening", higher_is_better=False),
            Metric("under_screening", "under-screening", higher_is_better=False),
        ),
        metrics_per_class=(_IOU,),
    ),
}
"""Our own kinds by name."""

KNOWN_METRICS: Final = TaskMetrics(
    otherwise=tuple(dict.fromkeys(metric for kind in KINDS.values() for metric in kind.metrics))
)
"""Metrics of our own kinds, for results that do not tell which metrics their tasks have."""


def known_kinds() -> tuple[str, ...]:
    """Names of all kinds, our own first; nothing is imported."""
    return (*KINDS, *(name for name in plugins(GROUP) if name not in KINDS))


def kind_of(name: str) -> TaskKind:
    """The entry of a kind, our own or an installed package's.

    Raises:
        ConfigError: there is none, or its package names something else than a `TaskKind` with a metric.
    """
    if name in KINDS:
        return KINDS[name]
    kind = load_plugin(GROUP, name)
    if not isinstance(kind, TaskKind) or not kind.metrics or not issubclass(kind.parameters, TaskConfig):
        raise ConfigError(
            f"{GROUP}: the entry point {name!r} names {kind!r}; expected a geokr_core.evaluation.task_kinds.TaskKind "
            "with at least one metric and with parameters that are a TaskConfig."
        )
    return kind


def _class_of(content: Mapping[str, Any]) -> type[TaskConfig]:
    """The section that a task's content is read by; `TaskConfig` itself where its kind is unknown."""
    kind = content.get("kind", _DEFAULT_KIND)
    return kind_of(kind).parameters if isinstance(kind, str) and kind in known_kinds() else TaskConfig


def _refusal(key: str, kind: str, parameters: type[TaskConfig]) -> str:
    """Why a task has no such parameter: another kind has it, or it is a typo."""
    if any(key in other.parameters.model_fields for other in KINDS.values()):
        return f"{key!r} is of no use to a task of kind {kind!r}; remove it"
    close = difflib.get_close_matches(key, parameters.model_fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(parameters.model_fields)}."
    return f"a task of kind {kind!r} has no parameter {key!r}; {hint}"
