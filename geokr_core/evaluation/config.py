"""The section `evaluation` of the parameter file: what is judged, on which labelled sets, with how many labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from geokr_core.networks.architectures import Architecture
from geokr_core.step.section import Section, Share

LabelShare = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]
LabelsPerClass = Annotated[int, Field(ge=1)] | Literal["all"] | LabelShare
TaskKind = Literal["scene_classification", "segmentation", "detection", "cloud_snow"]
Initialisation = str
"""A variant of pretraining by name, or one of `UNTRAINED`."""
UNTRAINED = ("random", "imagenet", "colour_histogram")
"""Initialisations that need no pretraining: what every variant is compared with."""


class TaskConfig(Section):
    """One labelled downstream set, a folder below ``evaluation.folder``."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="folder name")
    kind: TaskKind = "scene_classification"
    layout: str = Field("auto", description="how the files lie, see docs/tasks.md; `auto`: recognised by its files")
    image_size_px: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="scene classification: images become this square (null: 64); detection: the longer side is scaled "
        "to this (null: 512)",
    )
    crop_size_px: int = Field(
        128, ge=32, le=2048, description="segmentation and cloud: square that is learnt from and predicted at a time"
    )
    downscale: int = Field(1, ge=1, le=16, description="segmentation and cloud: images are shrunk by this factor")
    decoder: Literal["unet", "fpn", "deeplabv3plus"] = "unet"
    decoder_channels: int = Field(
        64, ge=32, le=512, multiple_of=32, description="width of the decoder, or of the detector's feature pyramid"
    )
    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"
    batchnorm: Literal["learned", "frozen"] | None = Field(
        None,
        description="backbone's BatchNorm while fine-tuning, the same for every initialisation: statistics and scales "
        "learn, or stay as they are; null: frozen for detection (batches too small), learned elsewhere",
    )
    bands: tuple[str, ...] | None = Field(
        None, description="common names of the images' bands in file order; null: as the layout knows"
    )
    test_groups: tuple[str, ...] | None = Field(
        None, description="sets without split files: tiles or folders whose items are the test split"
    )
    ignored_colours: tuple[tuple[int, int, int], ...] = Field(
        (), description="mask colours that mean `not labelled`, besides those the layout knows"
    )
    bad_items: Literal["fail", "skip"] = Field(
        "fail",
        description="images that cannot be used, unknown mask colours, broken boxes, images smaller than a crop: an "
        "error, or left out (small images padded), counted and reported",
    )
    absent_classes: Literal["fail", "leave_out"] = Field(
        "leave_out", description="a class without a test item: an error, or left out of the means and reported"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="null: `evaluation.seeds`; fewer where a task costs much"
    )
    label_fractions: tuple[Share, ...] | None = Field(
        None, min_length=1, description="null: `evaluation.label_fractions`; fewer where a task costs much"
    )
    steps: int | None = Field(None, ge=1, description="null: `evaluation.fine_tune_steps`")
    batch_size: int | None = Field(None, ge=1, description="null: `evaluation.batch_size`")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="null: `evaluation.fine_tune_learning_rates`"
    )
    show_images: bool = Field(
        False, description="whether the report may show test images; never done for layouts under research-only terms"
    )

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Self:
        foreign = sorted(self.model_fields_set - _TASK_FIELDS["every kind"] - _TASK_FIELDS[self.kind])
        if foreign:
            raise ValueError(f"{foreign[0]!r} is of no use to a task of kind {self.kind!r}; remove it")
        return self


_TASK_FIELDS: Mapping[str, frozenset[str]] = {
    "every kind": frozenset({"name", "kind", "layout", "show_images", "seeds"}),
    "scene_classification": frozenset({"image_size_px", "batchnorm"}),
    "segmentation": frozenset(
        {"crop_size_px", "downscale", "decoder", "decoder_channels", "batchnorm", "bands", "test_groups", "bad_items"}
        | {"ignored_colours", "absent_classes", "steps", "batch_size", "learning_rates", "label_fractions"}
    ),
    "cloud_snow": frozenset(
        {"crop_size_px", "downscale", "decoder", "decoder_channels", "batchnorm", "bands", "test_groups", "bad_items"}
        | {"absent_classes", "steps", "batch_size", "learning_rates", "label_fractions"}
    ),
    "detection": frozenset(
        {"image_size_px", "detector", "decoder_channels", "batchnorm", "test_groups", "bad_items", "absent_classes"}
        | {"steps", "batch_size", "learning_rates", "label_fractions"}
    ),
}
"""Fields of `TaskConfig` that each kind reads: a setting that would do nothing is an error, not a surprise."""


class EvaluationConfig(Section):
    """Which cells of the comparison are run: task x initialisation x protocol x labels x seed."""

    folder: Path
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    initialisations: tuple[Initialisation, ...] = (
        "random",
        "geokr",
    )
    fine_tune_initialisations: tuple[Initialisation, ...] | None = Field(
        None,
        description="those of `initialisations` that are fine-tuned too, where that costs too much for all; null: all",
    )
    imagenet_weights: dict[Architecture, Path] = Field(
        {},
        description="torchvision-keyed files for the initialisation `imagenet`; else torchvision's own cache is looked in",
    )
    protocols: tuple[Literal["linear_probe", "knn", "fine_tune"], ...] = Field(
        ("linear_probe", "fine_tune"),
        description="of scene classification; segmentation, detection and cloud are always fine-tuned",
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
    precision: Literal["bf16", "fp32"] = "bf16"
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
    threads: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _fine_tuned_are_judged(self) -> Self:
        unknown = [name for name in self.fine_tune_initialisations or () if name not in self.initialisations]
        if unknown:
            raise ValueError(f"fine_tune_initialisations: {unknown[0]!r} is none of `initialisations`; add it there")
        return self

    def seeds_of(self, task: TaskConfig) -> tuple[int, ...]:
        """The seeds of a task, each once."""
        return tuple(dict.fromkeys(self.seeds if task.seeds is None else task.seeds))

    def is_fine_tuned(self, initialisation: Initialisation) -> bool:
        """Whether an initialisation is fine-tuned, too: the colour histogram has no weights to tune."""
        chosen = self.initialisations if self.fine_tune_initialisations is None else self.fine_tune_initialisations
        return initialisation in chosen and initialisation != "colour_histogram"


class Criterion(Section):
    """One figure by which backbones are compared."""

    task: str
    protocol: Literal["linear_probe", "knn", "fine_tune"] = "linear_probe"
    features: Literal["last", "multi"] = Field("last", description="of frozen protocols; no choice when fine-tuned")
    labels_per_class: LabelsPerClass = "all"
    metric: str = Field("accuracy", description="accuracy, macro_f1, miou, map … as the task gives it")

    @property
    def name(self) -> str:
        """What it is called in decisions and tags."""
        features = [] if self.protocol == "fine_tune" else [self.features]
        return "/".join([self.task, self.protocol, *features, str(self.labels_per_class), self.metric])
