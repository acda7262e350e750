"""Every parameter of the chain, one frozen pydantic model a step, and the reader of ``params.yaml``.

A section of the file bears the name of the step it belongs to. Unknown keys are errors: a typo never passes
silently. Paths are relative to the working directory. Nothing here opens a raster or imports torch.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from geokr_core.errors import ConfigError

PARAMS_VARIABLE = "GEOKR_PARAMS"
"""Environment variable that names another parameter file than ``params.yaml``."""

DEFAULT_PARAMS = Path("params.yaml")

EXTENDS = "extends"
"""Key of a parameter file that names another one beside it, whose values hold where the file gives none."""

LabelShare = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]
LabelsPerClass = Annotated[int, Field(ge=1)] | Literal["all"] | LabelShare
TaskKind = Literal["scene_classification", "segmentation", "detection", "cloud_snow"]
Initialisation = str
"""A variant of pretraining by name, or one of `UNTRAINED`."""
UNTRAINED = ("random", "imagenet", "colour_histogram")
"""Initialisations that need no pretraining: what every variant is compared with."""
Architecture = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "vgg16_bn", "squeezenet1_1", "convnext_tiny", "swin_t",
    "vit_small_patch16_224",
]  # fmt: skip
Method = Literal["geokr", "paper", "shuffled", "majority", "dense", "corrected", "joint", "distilled", "simclr", "moco"]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldConfig(Section):
    """The generated world (see ``geokr_core.world``): the default data, so that everything runs offline."""

    folder: Path = Field(Path("data/world"), description="where the generated world is written")
    seed: int = Field(7, ge=0, description="same seed, same bytes")
    scene_size_px: int = Field(768, ge=128, description="width and height of each scene")
    num_scenes: int = Field(
        12, ge=2, description="number of scenes, spread over six places, four UTM zones and both hemispheres"
    )
    task_images_per_class: int = Field(
        80, ge=4, description="labelled images of each class in the scene-classification set"
    )


class SceneCollection(Section):
    """Files below ``scenes.folder`` that share a layout, and the land-cover product of their ground."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    files: str = Field(
        description="glob relative to the folder: rasters, or the metadata files of products of many files (`MTD_MSI*.xml`, "
        "`*_MTL.*`); `{band}` stands for the band where each band is a file"
    )
    product: Literal["auto", "generic", "gaofen", "sentinel2", "landsat_c2", "naip"] = Field(
        "auto", description="family of products; `auto`: by name and metadata, `generic`: nothing but the raster itself"
    )
    bands: tuple[str, ...] | None = Field(
        None,
        description="common band names in file order (or in order of `band_files`); which bands to offer, for `sentinel2` "
        "and `landsat_c2`; null: as the product has them, else from colour interpretation",
    )
    band_files: tuple[str, ...] | None = Field(None, description="what `{band}` becomes, one entry a band")
    land_cover: str = Field(description="name of the product under `land_cover.products` that covers this ground")
    nodata: float | None = Field(
        None, description="pixels whose every band is this value are no data, where the file does not say so"
    )
    acquired: date | None = Field(None, description="acquisition date where file names and tags do not give it")
    max_abs_latitude_deg: float = Field(
        90.0, gt=0, le=90, description="chips centred further from the equator are not cut"
    )
    rpc_height_m: float | None = Field(
        None,
        ge=-500,
        le=9000,
        description="raw scenes with RPCs are orthorectified with this height above the ellipsoid; null: they are refused",
    )
    dem: Path | None = Field(
        None,
        description="raster of heights above the ellipsoid to orthorectify raw scenes with, relative to the working directory",
    )

    @model_validator(mode="after")
    def _band_files_match(self) -> Self:
        if ("{band}" in self.files) != (self.band_files is not None):
            raise ValueError("`files` holds `{band}` exactly when `band_files` lists what it stands for")
        if self.band_files is not None and (self.bands is None or len(self.bands) != len(self.band_files)):
            raise ValueError("`bands` and `band_files` must list the same bands, one entry each")
        if self.band_files is not None and self.product in ("sentinel2", "landsat_c2"):
            raise ValueError(f"`product: {self.product}` finds its band files itself; leave `band_files` out")
        if self.rpc_height_m is not None and self.dem is not None:
            raise ValueError("`rpc_height_m` and `dem` both give the height of the ground; keep one")
        return self


class ScenesConfig(Section):
    """Where the raw scenes lie and how their files are to be read."""

    folder: Path
    collections: tuple[SceneCollection, ...] = Field(min_length=1)

    @field_validator("collections")
    @classmethod
    def _unique(cls, value: tuple[SceneCollection, ...]) -> tuple[SceneCollection, ...]:
        names = [c.name for c in value]
        if len(set(names)) < len(names):
            raise ValueError(f"collection names must differ, found {names}")
        return value


class ProductConfig(Section):
    """One land-cover product: its tiles, its legend, its editions."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    files: str = Field(description="glob relative to `land_cover.folder`; one product may hold tiles of several years")
    legend: str = Field(
        description="a built-in legend (docs/land-cover.md lists them) or the path of a legend file, YAML or CSV"
    )
    year: int | None = Field(
        None,
        ge=1900,
        le=2100,
        description="edition, the year the map describes; null: as the files' names or bands say",
    )
    band: int | None = Field(
        None, ge=1, description="band that holds the codes, where files have others beside it; null: the only one"
    )
    crs: str | None = Field(None, description="CRS to use instead of the file's, where the file's is known to be wrong")

    @field_validator("files")
    @classmethod
    def _below_the_folder(cls, value: str) -> str:
        if not value or value.startswith("/") or ".." in value.split("/"):
            raise ValueError(
                "`files` must be a pattern of paths below `land_cover.folder`, without a leading / or `..`"
            )
        return value


class LandCoverConfig(Section):
    """The land-cover products and the common legend that chips are described in."""

    folder: Path
    products: tuple[ProductConfig, ...] = Field(min_length=1)
    legend: Literal["globeland30", "geokr8", "own"] = Field(
        "globeland30",
        description="classes chips are described in: a preset that products are mapped to, or the product's own",
    )

    @field_validator("products")
    @classmethod
    def _unique(cls, value: tuple[ProductConfig, ...]) -> tuple[ProductConfig, ...]:
        names = [p.name for p in value]
        if len(set(names)) < len(names):
            raise ValueError(f"product names must differ, found {names}")
        return value


class FixedStretch(Section):
    """Values of the scene that become 0 and 255: one for all bands, or one a band."""

    low: tuple[float, ...] = Field(min_length=1, description="values that become 0")
    high: tuple[float, ...] = Field(min_length=1, description="values that become 255")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if len(self.low) != len(self.high) or any(h <= low for low, h in zip(self.low, self.high, strict=True)):
            raise ValueError(f"`low` {self.low} and `high` {self.high} must be of one length, each high above its low")
        return self


class ChipsConfig(Section):
    """How chips are cut from scenes."""

    size_px: int = Field(64, ge=8, le=2048)
    stride_px: int = Field(64, ge=1, le=2048)
    edge: Literal["drop", "shift"] = Field(
        "drop",
        description="what a scene's right and lower edge leave over: dropped, or covered by a last window moved inwards",
    )
    bands: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1, description="bands kept, in this order")
    stretch: Literal["percentile", "joint_percentile", "fixed", "none"] = Field(
        "percentile",
        description="to 8 bits per scene: percentiles a band, percentiles over all bands, the scale of `stretch_fixed`, or as stored (uint8 only)",
    )
    stretch_low: float = Field(2.0, ge=0, lt=50, description="lower percentile")
    stretch_high: float = Field(98.0, gt=50, le=100, description="upper percentile")
    stretch_fixed: FixedStretch | None = Field(
        None, description="`{low: [...], high: [...]}` in the scene's units, one value for all bands or one a band"
    )
    min_valid_fraction: float = Field(0.98, ge=0, le=1, description="chips with fewer valid pixels are not cut")
    max_saturated_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more pixels at 250 or above in every band are dropped (cloud)",
    )
    max_cloud_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more cloud by the product's own mask are dropped; products without a mask lose none",
    )
    max_dark_fraction: float = Field(
        1.0, ge=0, le=1, description="chips with more pixels darker than 20 are dropped; below 1, deep water goes"
    )
    min_contrast: float = Field(
        0.0, ge=0, description="chips whose brightness deviates less (standard deviation, 8-bit steps) are dropped"
    )
    workers: int | None = Field(
        None, ge=1, description="threads that cut a scene; null: one a usable core. The result is the same"
    )

    @model_validator(mode="after")
    def _scale_is_given(self) -> Self:
        if (self.stretch == "fixed") != (self.stretch_fixed is not None):
            raise ValueError("`stretch: fixed` and `stretch_fixed` go together: give both or neither")
        if self.stretch_fixed is not None and len(self.stretch_fixed.low) not in (1, len(self.bands)):
            raise ValueError(
                f"`stretch_fixed` has {len(self.stretch_fixed.low)} values a limit, expected 1 or {len(self.bands)} (one a band)"
            )
        return self


class ProportionsConfig(Section):
    """How land cover is counted under a chip."""

    edge_segments: int = Field(
        8,
        ge=1,
        le=256,
        description="straight pieces a chip edge is cut into before it is carried to another CRS",
    )
    cells_per_side: int = Field(
        8,
        ge=0,
        le=64,
        description="land cover is also kept for n x n squares of each chip, for labels that follow a crop; 0: not kept",
    )


class AlignmentConfig(Section):
    """Whether image and land cover lie on each other. Labels do not depend on it: switching it on recounts nothing."""

    check: bool = Field(False, description="ask every scene in Dagster; a scene that seems shifted gives a warning")
    max_shift: int = Field(
        3, ge=1, le=8, description="shifts tried in each direction, in image pixels or land-cover cells if larger"
    )
    tolerance_px: float = Field(1.0, ge=0, description="shifts up to this many image pixels count as none")
    max_pixels: int = Field(1_000_000, ge=10_000, description="pixels of a scene that are looked at")


class LevirKRConfig(Section):
    """Which chips enter the frozen data set, and how it is split."""

    max_unknown_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="chips with more ground that is not of a class of the legend (unknown, sea, outside, excluded) are left out",
    )
    min_voting_cells: float = Field(1.0, ge=0, description="chips on which fewer land-cover cells vote are left out")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of places held out to watch pretraining")
    place_size_deg: float = Field(
        2.0, gt=0, le=45, description="size of the lon/lat cells by which places are told apart"
    )
    seed: int = Field(0, ge=0)


def _each_once(seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise ValueError("each seed once")
    return seeds


class VariantConfig(Section):
    """A pretraining that differs from the others by its method, or by single settings."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="name of its runs, curves and rows")
    method: Method = Field("geokr", description="see `pretraining.variants`")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="null: those of the section"
    )
    settings: dict[str, Any] = Field({}, description="fields of `pretraining` that hold for this variant alone")

    _seeds_once = field_validator("seeds")(_each_once)


class PretrainingConfig(Section):
    """How backbones are trained. A field left out takes the value of the preset and the method."""

    preset: Literal["geokr", "continued", "enlarged", "paper"] = Field(
        "geokr",
        description="recipe that every method but `paper` starts from; `continued`: from given weights, which it holds on to; `enlarged`: from given weights, which it teaches to see small chips as they see enlarged ones",
    )
    architecture: Architecture = Field(
        "resnet18",
        description="backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `vgg16_bn`, `squeezenet1_1`, `convnext_tiny`, `swin_t` or `vit_small_patch16_224`",
    )
    initial_weights: Literal["imagenet"] | Path | None = Field(
        None,
        description="file of weights to start from, by the upstream's key names, for the bands that it names itself (red, green and blue where it names none); `imagenet`: torchvision's own, from its cache (nothing is downloaded); null: random",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="one pretraining a seed; the first one becomes the backbone"
    )
    variants: tuple[Method | VariantConfig, ...] = Field(
        ("geokr",),
        min_length=1,
        description="methods to train, by name, or as `{name, method, seeds, settings}` where single fields differ: `geokr`; `paper`; `shuffled` (control: land cover permuted between chips); `majority` (only the largest class); `dense` (land cover per feature-map cell too); `corrected` (learns the product's confusions); `joint` (land cover, and telling chips apart); `distilled` (control: what holds it to its start, and no land cover); `simclr` and `moco` (contrastive, no land cover)",
    )
    steps: int = Field(200, ge=1, description="optimiser steps; an epoch is num_train / batch_size of them")
    batch_size: int = Field(128, ge=2, description="chips a step, over all processes and accumulated parts together")
    accumulation_parts: int = Field(1, ge=1, description="parts that a process cuts its share of a batch into")
    learning_rate: float | None = Field(None, gt=0, description="peak; null, here and below: as the recipe says")
    weight_decay: float | None = Field(None, ge=0, description="biases and normalisation weights are never decayed")
    warmup_steps: int | None = Field(None, ge=0, description="steps over which the learning rate rises linearly")
    head_warmup_steps: int | None = Field(
        None, ge=0, description="first steps in which the head alone learns, so that it does not wreck given weights"
    )
    backbone_learning_rate_factor: float | None = Field(
        None, gt=0, le=1, description="learning rate of the backbone, as a factor of the head's"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="factor of the learning rate from each stage to the one before it"
    )
    anchor: Literal["weights", "features", "stages", "cells"] | None = Field(
        None,
        description="what `anchor_weight` holds to the start: the weights (L2-SP), the pooled last stage, all pooled stages, or the cells of the last stage; the latter two in units of their own spread",
    )
    anchor_weight: float | None = Field(None, ge=0, description="how strongly the backbone is held to its start")
    anchor_zoom: float | None = Field(
        None,
        ge=1,
        le=8,
        description="how many times larger the start sees each chip (bilinear): the backbone learns to say of a chip what the start says of it enlarged; not for the anchor `weights`",
    )
    interpolation: float | None = Field(
        None, ge=0, le=1, description="delivered weights = start + this × (trained − start)"
    )
    gradient_clip_norm: float | None = Field(None, ge=0, description="gradients are scaled to this norm; 0: never")
    land_cover_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the chip's land cover and of the teacher; 0: only what stands beside them teaches",
    )
    consistency: Literal["kl_teacher_student", "kl_student_teacher", "ce_student_teacher", "none"] | None = Field(
        None, description="what holds the student to the teacher; `ce_student_teacher` is the form first published"
    )
    consistency_weight: float | None = Field(None, ge=0, description="its weight once ramped up")
    teacher_momentum: float | None = Field(
        None, ge=0, le=1, description="share of the old teacher that stays at each update"
    )
    teacher_schedule: Literal["every_step", "released"] | None = Field(
        None, description="each step with warmed-up momentum, or the rare updates first published"
    )
    batchnorm: Literal["averaged", "copied", "own"] | None = Field(
        None, description="teacher's BatchNorm buffers: EMA of, or copies of, the student's, or its own"
    )
    reduction: Literal["per_sample", "per_element"] | None = Field(
        None, description="mean over chips, or over chips and classes as first published"
    )
    two_views: bool | None = Field(None, description="different augmentations for student and teacher")
    transfer: Literal["teacher", "student"] | None = Field(
        None, description="which of the two networks becomes the backbone"
    )
    label_weighting: bool | None = Field(
        None, description="weight samples by known fraction, voting cells and time gap"
    )
    crop_area_fraction: tuple[Share, Share] | None = Field(
        None, description="least and largest share of a chip that a random crop shows; [1, 1]: whole chips"
    )
    label_follows_crop: bool | None = Field(
        None, description="hold a crop to the land cover of its own ground; needs a Levir-KR with `cells.npy`"
    )
    dense_weight: float | None = Field(
        None, ge=0, description="weight of the land cover per feature-map cell; needs `cells.npy`"
    )
    correction: bool | None = Field(None, description="learn which classes the product confuses")
    correction_identity_weight: float | None = Field(
        None, ge=0, description="how much each share of a class that is confused costs"
    )
    correction_aggregation_weight: float | None = Field(
        None, ge=0, description="how much mixed and ragged land cover within a chip costs"
    )
    contrast_weight: float | None = Field(
        None, ge=0, description="weight of telling chips apart (SimCLR's loss) beside land cover"
    )
    temperature: float | None = Field(None, gt=0, description="of the contrastive losses")
    memory_bank_size: int | None = Field(None, ge=1, description="chips that `moco` holds as negatives")
    shuffle_window_chips: int | None = Field(
        None,
        ge=1,
        description="archives larger than memory: shards are shuffled and chips within windows of whole shards of about so many chips, so that reading stays local; null: over all chips",
    )
    threads: int = Field(1, ge=1)
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints of a running training that are kept")
    deliver: Literal["last", "best"] = Field(
        "last", description="network of the last step, or of the least validation KL that was measured"
    )
    log_every: int = Field(10, ge=1, description="steps between points of the curves")
    validate_every: int | None = Field(
        None,
        ge=1,
        description="steps between measurements on held-out chips (KL, bias of each class), each taken at the next point of the curves; null: four in a run",
    )
    examples_every: int = Field(200, ge=0, description="steps between pictures of example chips; 0: none")
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = Field("auto", description="`torch.compile`; auto: on a GPU only")

    _seeds_once = field_validator("seeds")(_each_once)

    @model_validator(mode="after")
    def _continues_something(self) -> Self:
        if self.preset in ("continued", "enlarged") and self.initial_weights is None:
            raise ValueError(
                f"`preset: {self.preset}` holds on to given weights, but `initial_weights` names none; name a file or `imagenet`, "
                "or take `preset: geokr`"
            )
        return self

    @field_validator("crop_area_fraction")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("`crop_area_fraction` must name the smaller share first")
        return value

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        names = [variant.name for variant in self.named_variants]
        if "geokr" not in names or len(set(names)) < len(names):
            raise ValueError("`variants` must hold `geokr` and name each variant once")
        for variant in self.named_variants:
            if "variants" in variant.settings or "seeds" in variant.settings:
                raise ValueError(
                    f"variants.{variant.name}.settings: `variants` holds for the whole section, and `seeds` stands beside "
                    "`settings`, not within"
                )
            if variant.settings:
                self.of_variant(variant)
        return self

    @property
    def named_variants(self) -> tuple[VariantConfig, ...]:
        """The variants, each with name, method and settings; one given by its method's name alone bears that name."""
        return tuple(v if isinstance(v, VariantConfig) else VariantConfig(name=v, method=v) for v in self.variants)

    def of_variant(self, variant: VariantConfig) -> "PretrainingConfig":
        """This section as one variant has it, without its list of variants.

        Raises:
            ValidationError: the variant's settings hold an unknown field or a wrong value.
        """
        return PretrainingConfig.model_validate({**dict(self), **variant.settings, "variants": ("geokr",)})


class BackboneConfig(Section):
    """The bundle that is delivered."""

    model_name: str = Field("geokr-resnet18", pattern=r"^[A-Za-z0-9_.-]+$", description="name in the model registry")
    description: str = Field("Backbone pretrained on land-cover proportions.")


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


class ReportConfig(Section):
    """The page that people read."""

    title: str = "GeoKR report"
    num_example_chips: int = Field(12, ge=0, le=200)


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


class ChampionConfig(Section):
    """When the challenger replaces the champion."""

    primary: tuple[Criterion, ...] = Field(min_length=1, description="their mean must be better beyond noise")
    guards: tuple[Criterion, ...] = Field((), description="must not become worse by more than `max_regression`")
    min_gain: float = Field(0.0, ge=0, lt=1, description="the 95 % interval of the gain must lie above this")
    max_regression: float = Field(0.01, ge=0, lt=1, description="loss on any criterion that is tolerated")

    @field_validator("guards")
    @classmethod
    def _once(cls, value: tuple[Criterion, ...], info: ValidationInfo) -> tuple[Criterion, ...]:
        names = [criterion.name for criterion in (*info.data.get("primary", ()), *value)]
        if len(set(names)) < len(names):
            raise ValueError(f"each criterion once, in `primary` or in `guards`; found {names}")
        return value

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """All criteria, primary ones first."""
        return (*self.primary, *self.guards)


class Params(Section):
    """A whole parameter file."""

    _file: Path = PrivateAttr(DEFAULT_PARAMS)

    store: Path = Field(Path("data/store"), description="where the chain writes")
    world: WorldConfig | None = None
    scenes: ScenesConfig
    land_cover: LandCoverConfig
    chips: ChipsConfig = ChipsConfig()
    proportions: ProportionsConfig = ProportionsConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    levir_kr: LevirKRConfig = LevirKRConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    backbone: BackboneConfig = BackboneConfig()
    evaluation: EvaluationConfig
    report: ReportConfig = ReportConfig()
    champion: ChampionConfig

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        products = [p.name for p in self.land_cover.products]
        for collection in self.scenes.collections:
            if collection.land_cover not in products:
                raise ValueError(
                    f"scenes.collections.{collection.name}.land_cover: {collection.land_cover!r} is none of land_cover.products {products}"
                )
        tasks = [t.name for t in self.evaluation.tasks]
        for criterion in self.champion.criteria:
            if criterion.task not in tasks:
                raise ValueError(f"champion: task {criterion.task!r} is none of evaluation.tasks {tasks}")
        seeds_of = {task.name: self.evaluation.seeds_of(task) for task in self.evaluation.tasks}
        primary = {criterion.task: seeds_of[criterion.task] for criterion in self.champion.primary}
        if len({frozenset(seeds) for seeds in primary.values()}) > 1:
            raise ValueError(
                f"champion.primary: the mean over several criteria is taken seed by seed, but their tasks have different "
                f"seeds: {', '.join(f'{task} {list(seeds)}' for task, seeds in primary.items())}; give them the same "
                "`seeds`, or make one of them a guard"
            )
        trained = [variant.name for variant in self.pretraining.named_variants]
        for name in self.evaluation.initialisations:
            if name not in (*UNTRAINED, *trained):
                raise ValueError(
                    f"evaluation.initialisations asks for {name!r}: expected one of {', '.join(UNTRAINED)}, or a variant of "
                    f"pretraining ({', '.join(trained)}); add it to pretraining.variants"
                )
        return self

    @property
    def file(self) -> str:
        """The file that was read: its path below the working directory, else its name alone. It changes no figure."""
        path = self._file
        below = path.resolve().is_relative_to(Path.cwd())
        return path.resolve().relative_to(Path.cwd()).as_posix() if below else path.name

    @property
    def uses_world(self) -> bool:
        """Whether any source lies inside the generated world, so that it must be generated first."""
        if self.world is None:
            return False
        sources = (self.scenes.folder, self.land_cover.folder, self.evaluation.folder)
        return any(source.is_relative_to(self.world.folder) for source in sources)


def params_path(option: Path | None = None) -> Path:
    """The parameter file to use: the option, else ``$GEOKR_PARAMS``, else ``params.yaml``."""
    return option or Path(os.environ.get(PARAMS_VARIABLE, "") or DEFAULT_PARAMS)


def load_params(path: Path | None = None, overrides: Sequence[str] = ()) -> Params:
    """Read a parameter file.

    Args:
        path: the file; see `params_path` for the default.
        overrides: ``section.key=value`` entries, the value in YAML, applied over the file.

    Returns:
        The checked parameters.

    Raises:
        ConfigError: the file, or one that it extends, is missing, not YAML, or holds a wrong key or value; the message names
            each.
    """
    path = params_path(path)
    content = _read(path)
    for override in overrides:
        _apply(content, override)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error
    params._file = path
    return params


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a parameter file, laid over that of the file it `EXTENDS`, which lies beside it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = (
            f"{extending[-1]} extends it; names are relative to that file's folder."
            if extending
            else f"Run from the project's folder, or name a file with --params or ${PARAMS_VARIABLE}."
        )
        raise ConfigError(f"{path}: no such parameter file. {remedy}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections (scenes, land_cover, …), found {type(content).__name__}."
        )
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if path.resolve() == DEFAULT_PARAMS.resolve():
        raise ConfigError(
            f"{path}: `{EXTENDS}` is for other parameter files. DVC reads this one itself, and would not see what "
            f"{base} holds; write the values here."
        )
    others = [p.name for p in (*extending, path)]
    if not isinstance(base, str) or not base.strip(".") or Path(base).name != base or base in others:
        raise ConfigError(
            f"{path}: `{EXTENDS}: {base}` must name another parameter file of the same folder, and none that extends this one."
        )
    return _laid_over(_read(path.parent / base, (*extending, path)), content)


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key; lists and single values are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. pretraining.steps=400.")
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent!r} is not a section.")
    node[last] = yaml.safe_load(value)


def _explain(path: Path, error: ValidationError) -> str:
    below = yaml.safe_load(path.read_text(encoding="utf-8")).get(EXTENDS)
    also = f", or what it extends ({below})" if below else ""
    lines = [f"{path}{also}: {error.error_count()} wrong value(s):"]
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {place}: unknown key.{_suggest(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"  {place}: missing; it must be given.")
        else:
            # A rule over a whole section names what it found itself; the section need not be shown.
            found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
            lines.append(f"  {place}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...]) -> str:
    model: Any = Params
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        model = _section_of(model, part)
        if model is None:
            return ""
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f" Did you mean `{close[0]}`?" if close else f" Known here: {', '.join(known)}."


def _section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    if name not in model.model_fields:
        return None
    pending: list[Any] = [model.model_fields[name].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending.extend(getattr(annotation, "__args__", ()))
    return None


def as_plain(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A section as JSON-able values, for manifests, tags and fingerprints."""
    return section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section)


def parameters_reference() -> str:
    """All parameters with types, defaults and meaning as Markdown; ``docs/parameters.md`` holds exactly this text."""
    lines = ["# Parameters", "", "What each key of `params.yaml` means. Made by `geokr parameters`; do not edit.", ""]
    lines += [
        f"A file other than `params.yaml` may begin with `{EXTENDS}: other.yaml`, a file in the same folder: it then gives "
        "only what differs. Sections are laid over each other key by key, lists are replaced as a whole.",
        "",
    ]
    lines += _section_reference("top level", Params)
    return "\n".join(lines).rstrip() + "\n"


def _section_reference(title: str, model: type[BaseModel]) -> list[str]:
    lines = [
        f"## {title}",
        "",
        (model.__doc__ or "").splitlines()[0],
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        section = _section_of(model, name)
        if section is not None:
            nested += _section_reference(f"{title}.{name}".removeprefix("top level."), section)
        default = "required" if field.is_required() else ("" if section else f"`{_plain(field.default)}`")
        lines.append(
            f"| `{name}` | {default} | {field.description or (section.__doc__ or '').splitlines()[0] if section else field.description or ''} |"
        )
    return [*lines, "", *nested]


def _plain(value: Any) -> str:
    return yaml.safe_dump(
        list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value, default_flow_style=True
    ).split("\n...")[0].strip()  # fmt: skip
