"""The section `pretraining` of the parameter file: how a backbone is trained."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from geokr_core.networks.architectures import ARCHITECTURES, Architecture
from geokr_core.step.section import Section, Share

Method = Literal["geokr", "paper", "shuffled", "majority", "dense", "corrected", "joint", "distilled", "simclr", "moco"]


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

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"threads", "device", "checkpoint_every", "keep_checkpoints", "examples_every"}
    )

    preset: Literal["geokr", "continued", "enlarged", "paper"] = Field(
        "geokr",
        description="recipe that every method but `paper` starts from; `continued`: from given weights, which it holds on to; `enlarged`: from given weights, which it teaches to see small chips as they see enlarged ones",
    )
    architecture: Architecture = Field(
        "resnet18",
        description=f"backbone: {', '.join(f'`{name}`' for name in ARCHITECTURES)}; one that an installed package brings, or one of your own as `module:name`, see docs/architectures.md",
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
