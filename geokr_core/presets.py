"""The two presets of pretraining, and how a configuration that leaves fields out becomes a full recipe.

``paper`` follows the method as it was first published. It differs on purpose in three points: teacher and student
start with the same head, inputs are normalised (every backbone of this project takes normalised input), and hue and
saturation are left alone where the bands are not exactly red, green and blue.
``geokr`` is what this project recommends. Only numbers and choices live here; what they do is in ``losses``,
``teacher``, ``augment`` and ``pretrain``.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from geokr_core.augment import Strength
from geokr_core.config import PretrainingConfig
from geokr_core.losses import Consistency, Reduction
from geokr_core.teacher import BatchNormPolicy


@dataclass(frozen=True)
class Recipe:
    """Everything a pretraining run does, nothing left open.

    Attributes:
        optimiser: ``adamw`` or ``adam``.
        learning_rate: peak learning rate.
        weight_decay: decoupled for ``adamw``; biases and normalisation weights are excluded.
        learning_rate_schedule: ``cosine`` to zero after the warm-up; ``epoch_decay``: times 0.9 each epoch.
        warmup_steps: steps of linear warm-up.
        consistency: form of the consistency loss, see ``losses.consistency_loss``.
        consistency_weight: its weight once ramped up.
        ramp_steps: steps over which that weight rises; 0: full weight at once.
        teacher_schedule: ``every_step`` with warmed-up momentum, or ``released``, see ``teacher``.
        teacher_momentum: share of the old teacher that stays at each update.
        batchnorm: see ``teacher.BatchNormPolicy``.
        reduction: see ``losses.Reduction``.
        two_views: student and teacher see different colour variants of the same chip.
        transfer: which of the two networks becomes the backbone.
        label_weighting: see ``losses.label_weights``.
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
    augmentation: Strength


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
        augmentation=Strength(brightness=0.3, contrast=0.3, saturation=0.3, gain=0.08),
    )


def resolve(config: PretrainingConfig) -> Recipe:
    """The recipe of a configuration: its preset, with every field that the configuration gives put over it.

    Args:
        config: the section ``pretraining`` of the parameter file.

    Returns:
        The full recipe.
    """
    preset = PAPER if config.preset == "paper" else _geokr(config.steps)
    given = {name: value for name in Recipe.__dataclass_fields__ if (value := getattr(config, name, None)) is not None}
    values: dict[str, Any] = {name: getattr(preset, name) for name in Recipe.__dataclass_fields__}
    return Recipe(**(values | given))
