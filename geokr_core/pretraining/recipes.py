"""Recipes: what a run does, resolved from a preset, a method and what the parameter file gives.

A method is a name for a few settings laid over the preset, so that two methods differ in these and in nothing else:
same chips, same steps, same backbone, same loop. What they switch on is in ``objectives``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from geokr_core.networks.augmentation import Strength
from geokr_core.pretraining.config import Method as MethodName
from geokr_core.pretraining.config import PretrainingConfig


@dataclass(frozen=True)
class Method:
    """One way to pretrain.

    Attributes:
        summary: what it does, in a line.
        changes: fields of the recipe that it sets over the preset; what the parameter file names wins over them.
        required: fields that make the method what it is; they win over everything.
        preset: preset that it starts from whatever the parameter file says; None: the parameter file's.
    """

    summary: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    preset: Literal["paper"] | None = None


_CONTRASTIVE: Final = {
    "crop_area_fraction": (0.2, 1.0),
    "jitter": 0.4,
    "grey_fraction": 0.2,
}
"""Chen and others 2020 as far as whole bands allow it: strong crops, colour jitter, every fifth chip grey. No blur."""

_NO_LAND_COVER: Final = {
    "consistency": "none",
    "label_follows_crop": False,
    "dense_weight": 0.0,
    "correction": False,
    "contrast_weight": 0.0,
    "transfer": "student",
}

METHODS: Final[Mapping[MethodName, Method]] = {
    "geokr": Method("Land-cover proportions and an averaged teacher; the recipe of `pretraining.preset`."),
    "paper": Method("The method as it was first published, whatever the preset.", preset="paper"),
    "shuffled": Method(
        "Control: land cover is handed round among the training chips, so that it says nothing about them.",
        required={"labels": "shuffled"},
    ),
    "majority": Method(
        "Baseline: only the class that covers most of the ground, as a usual classification.",
        required={"labels": "majority"},
    ),
    "dense": Method("Land cover of every feature-map cell besides that of the chip.", {"dense_weight": 1.0}),
    "corrected": Method("A learned matrix takes up the classes that the product confuses.", {"correction": True}),
    "joint": Method(
        "Land cover and contrast: two crops of a chip, each held to its own land cover and told from all other chips.",
        _CONTRASTIVE | {"contrast_weight": 1.0, "consistency": "none", "transfer": "student"},
    ),
    "distilled": Method(
        "Control: what the preset holds the backbone to its start by, and no land cover; needs an anchor.",
        required={"land_cover_weight": 0.0, "dense_weight": 0.0, "correction": False, "contrast_weight": 0.0}
        | {"label_follows_crop": False},
    ),
    "simclr": Method(
        "Baseline without land cover: two views of a chip are told from all other chips of the batch.",
        _CONTRASTIVE,
        _NO_LAND_COVER | {"objective": "simclr"},
    ),
    "moco": Method(
        "Baseline without land cover: a view is matched with the averaged network's, against a memory of chips.",
        _CONTRASTIVE | {"teacher_momentum": 0.99, "batchnorm": "averaged", "teacher_schedule": "every_step"},
        _NO_LAND_COVER | {"objective": "moco"},
    ),
}
"""Every method by its name in the parameter file; `config.Method` lists the same."""

Consistency = Literal["kl_teacher_student", "kl_student_teacher", "ce_student_teacher", "none"]
Reduction = Literal["per_sample", "per_element"]
"""``per_sample``: mean over the batch; ``per_element``: divided by the number of classes too, as first published."""

BatchNormPolicy = Literal["averaged", "copied", "own"]
"""What becomes of the teacher's BatchNorm statistics.

``averaged``: a running average of the student's, like the weights; the teacher predicts in eval mode.
``copied``: the student's as they are at each update; eval mode.
``own``: the teacher stays in train mode, normalises with the statistics of each batch and gathers its own.
"""


@dataclass(frozen=True)
class Recipe:
    """Everything a pretraining run does, nothing left open.

    Attributes:
        objective: what is learned: proportions of land cover, or to tell chips apart (``simclr``, ``moco``).
        labels: the chip's own proportions, another chip's, or its largest class alone.
        optimiser: ``adamw`` or ``adam``.
        learning_rate: peak learning rate.
        weight_decay: decoupled for ``adamw``; biases and normalisation weights are excluded.
        learning_rate_schedule: ``cosine`` to zero after the warm-up; ``epoch_decay``: times 0.9 each epoch.
        warmup_steps: steps of linear warm-up.
        head_warmup_steps: steps before that, in which the head alone learns, at the peak rate.
        backbone_learning_rate_factor: the backbone's rate over the head's.
        layer_decay: factor of the rate from each stage of the backbone to the one before it.
        anchor: what ``anchor_weight`` holds to the start.
        anchor_weight: weight of that loss.
        anchor_zoom: how many times larger the start sees each chip than the student does.
        interpolation: share of the way from the start to the trained weights that is delivered.
        gradient_clip_norm: norm that gradients are scaled down to; 0: never.
        land_cover_weight: weight of the chip's land cover, and of the consistency with the teacher's.
        consistency: form of the consistency loss, see ``losses.consistency_loss``.
        consistency_weight: its weight once ramped up.
        ramp_steps: steps over which that weight rises; 0: full weight at once.
        teacher_schedule: ``every_step`` with warmed-up momentum, or ``released``, see ``teacher``.
        teacher_momentum: share of the old teacher that stays at each update.
        batchnorm: see ``teacher.BatchNormPolicy``.
        reduction: see ``losses.Reduction``.
        two_views: student and teacher see different colour variants of the same crop.
        transfer: which of the two networks becomes the backbone.
        label_weighting: see ``losses.label_weights``.
        label_follows_crop: labels are those of the crop that is seen.
        dense_weight: weight of the loss per feature-map cell; 0: none.
        correction: whether the product's confusions are learned, see ``methods.correction``.
        correction_identity_weight: see there.
        correction_aggregation_weight: see there.
        contrast_weight: weight of SimCLR's loss beside land cover; 0: none.
        temperature: of the contrastive losses.
        memory_bank_size: negatives that ``moco`` remembers.
        augmentation: how chips are varied.
    """

    optimiser: Literal["adamw", "adam"]
    learning_rate: float
    weight_decay: float
    learning_rate_schedule: Literal["cosine", "epoch_decay"]
    warmup_steps: int
    consistency: Consistency
    consistency_weight: float
    ramp_steps: int
    teacher_schedule: Literal["every_step", "released"]
    teacher_momentum: float
    batchnorm: BatchNormPolicy
    reduction: Reduction
    two_views: bool
    transfer: Literal["teacher", "student"]
    label_weighting: bool
    label_follows_crop: bool
    augmentation: Strength
    objective: Literal["land_cover", "simclr", "moco"] = "land_cover"
    labels: Literal["proportions", "shuffled", "majority"] = "proportions"
    land_cover_weight: float = 1.0
    head_warmup_steps: int = 0
    backbone_learning_rate_factor: float = 1.0
    layer_decay: float = 1.0
    anchor: Literal["weights", "features", "stages", "cells"] = "weights"
    anchor_weight: float = 0.0
    anchor_zoom: float = 1.0
    interpolation: float = 1.0
    gradient_clip_norm: float = 0.0
    dense_weight: float = 0.0
    correction: bool = False
    correction_identity_weight: float = 0.05
    correction_aggregation_weight: float = 0.1
    contrast_weight: float = 0.0
    temperature: float = 0.2
    memory_bank_size: int = 4096

    @property
    def needs_cells(self) -> bool:
        """Whether the land cover within chips must be known."""
        return (self.label_follows_crop and self.augmentation.crops) or self.dense_weight > 0

    @property
    def is_contrastive(self) -> bool:
        """Whether chips are told apart and nothing else, so that there is no head for land cover."""
        return self.objective != "land_cover"

    @property
    def predicts_land_cover(self) -> bool:
        """Whether the head learns to predict the chip's land cover."""
        return not self.is_contrastive and self.land_cover_weight > 0

    @property
    def teaches(self) -> bool:
        """Whether anything at all is learned."""
        others = (self.dense_weight, self.contrast_weight, self.anchor_weight)
        return self.is_contrastive or self.land_cover_weight > 0 or any(weight > 0 for weight in others)


PAPER: Final = Recipe(
    optimiser="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    learning_rate_schedule="epoch_decay",
    warmup_steps=0,
    consistency="ce_student_teacher",
    consistency_weight=1.0,
    ramp_steps=0,
    teacher_schedule="released",
    teacher_momentum=0.95,
    batchnorm="own",
    reduction="per_element",
    two_views=False,
    transfer="teacher",
    label_weighting=False,
    label_follows_crop=False,
    augmentation=Strength(
        flip_fraction=0.5, transpose_fraction=0.25, brightness=0.3, contrast=0.5, saturation=0.5, hue_turns=0.3
    ),
)
"""The published configuration."""

_WARMUP_FRACTION: Final = 0.1
_MAX_WARMUP_STEPS: Final = 500
_RAMP_FRACTION: Final = 0.3
_HORIZON_FRACTION: Final = 1.0 / 6.0
_MOMENTUM_RANGE: Final = (0.97, 0.99)


def _geokr(num_steps: int) -> Recipe:
    """The recommended recipe; what depends on the length of the run follows from ``num_steps``.

    The teacher's horizon ``1 / (1 - momentum)`` is a sixth of the run, within 0.97-0.99: 33 steps of 200, 100 steps
    of 600 and more.
    """
    low, high = _MOMENTUM_RANGE
    return Recipe(
        optimiser="adamw",
        learning_rate=1e-3,
        weight_decay=0.02,
        learning_rate_schedule="cosine",
        warmup_steps=min(round(_WARMUP_FRACTION * num_steps), _MAX_WARMUP_STEPS),
        consistency="kl_teacher_student",
        consistency_weight=1.0,
        ramp_steps=round(_RAMP_FRACTION * num_steps),
        teacher_schedule="every_step",
        teacher_momentum=min(max(1.0 - 1.0 / (_HORIZON_FRACTION * num_steps), low), high),
        batchnorm="averaged",
        reduction="per_sample",
        two_views=True,
        transfer="teacher",
        label_weighting=True,
        label_follows_crop=True,
        augmentation=Strength(brightness=0.3, contrast=0.3, saturation=0.3, gain=0.08, crop_area_fraction=(0.35, 1.0)),
    )


_HEAD_WARMUP_FRACTION: Final = 0.15


def _continued(num_steps: int) -> Recipe:
    """``geokr`` from good weights: the head first, the backbone slowly, all pooled stages held to the start.

    Without the first, a fresh head wrecks the features within some tens of steps; without the last, what the chips do
    not show is forgotten.
    """
    head_first = min(round(_HEAD_WARMUP_FRACTION * num_steps), _MAX_WARMUP_STEPS)
    return replace(
        _geokr(num_steps),
        head_warmup_steps=head_first,
        warmup_steps=min(round(_WARMUP_FRACTION * (num_steps - head_first)), _MAX_WARMUP_STEPS),
        backbone_learning_rate_factor=0.2,
        anchor="stages",
        anchor_weight=1.0,
    )


_ENLARGED_HEAD_WARMUP_FRACTION: Final = 0.05


def _enlarged(num_steps: int) -> Recipe:
    """``geokr`` from weights that were trained on larger images: small chips are to be seen as their start sees enlarged ones.

    Half of the way back to the start at the end: what the chips taught stays, and what they took is returned.
    """
    head_first = min(round(_ENLARGED_HEAD_WARMUP_FRACTION * num_steps), _MAX_WARMUP_STEPS)
    return replace(
        _geokr(num_steps),
        head_warmup_steps=head_first,
        warmup_steps=head_first,
        backbone_learning_rate_factor=0.5,
        land_cover_weight=0.25,
        anchor="cells",
        anchor_weight=4.0,
        anchor_zoom=2.0,
        interpolation=0.5,
    )


_PRESETS: Final[Mapping[str, Callable[[int], Recipe]]] = {
    "paper": lambda num_steps: PAPER,
    "geokr": _geokr,
    "continued": _continued,
    "enlarged": _enlarged,
}


def resolve(config: PretrainingConfig, method: MethodName = "geokr") -> Recipe:
    """The recipe of a configuration and a method.

    Later ones win: the preset, the method's changes, every field that the configuration gives, what makes the method
    what it is.

    Args:
        config: the section ``pretraining`` of the parameter file, or what a variant makes of it.
        method: a key of `METHODS`.

    Returns:
        The full recipe.
    """
    chosen = METHODS[method]
    named = chosen.preset or config.preset
    preset = _PRESETS[named](config.steps)
    given = {name: value for name in OPEN_FIELDS if (value := getattr(config, name)) is not None}
    settings: dict[str, Any] = {**chosen.changes, **given, **chosen.required}
    augmentation = preset.augmentation
    if (jitter := settings.pop("jitter", None)) is not None:
        augmentation = replace(augmentation, brightness=jitter, contrast=jitter, saturation=jitter)
    for name in ("grey_fraction", "crop_area_fraction"):
        if name in settings:
            augmentation = replace(augmentation, **{name: settings.pop(name)})
    return replace(preset, augmentation=augmentation, **settings)


OPEN_FIELDS: Final = tuple(
    name
    for name, field in PretrainingConfig.model_fields.items()
    if field.default is None and name not in ("initial_weights", "shuffle_window_chips", "validate_every")
)
"""Fields of the configuration that a recipe fills where they are left out."""
