"""The known recipes: presets, methods laid over them, and how a recipe follows from both and the parameter file.

A method is a name for a few settings laid over the preset, so that two methods differ in these and in nothing else:
same chips, same steps, same backbone, same loop. Free of torch, as everything that the parameter file reads.

Not here: what a recipe is (``pretraining.recipe``); the losses that it switches on (``pretraining.objectives``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from pydantic import ValidationError

from geokr_core.errors import ConfigError
from geokr_core.networks.strength import Strength
from geokr_core.pretraining.recipe import Recipe
from geokr_core.step.explain import problems
from geokr_core.step.plugins import load_plugin, plugins
from geokr_core.step.section import unknown_name

METHODS_GROUP: Final = "geokr.methods"
"""Entry points of methods that other packages bring; each names a `Method`."""


@dataclass(frozen=True)
class Method:
    """One way to pretrain.

    Attributes:
        summary: what it does, in a line.
        changes: fields of the recipe that it sets over the preset; what the parameter file names wins over them. Fields of
            the augmentation's `Strength` count as fields of the recipe, and ``jitter`` sets three of them.
        required: fields that make the method what it is; they win over everything.
        preset: preset that it starts from whatever the parameter file says; None: the parameter file's.
        predicts: whether its KL to the proportions says if it learned what it was given.
    """

    summary: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    predicts: bool = True


_CONTRASTIVE: Final = {"crop_area_fraction": (0.2, 1.0), "jitter": 0.4, "grey_fraction": 0.2}
"""Chen and others 2020 as far as whole bands allow it: strong crops, colour jitter, every fifth chip grey. No blur."""

_GENTLE: Final = {"crop_area_fraction": (0.35, 1.0), "jitter": 0.3, "grey_fraction": 0.0}
"""For land cover: its classes differ in colour, so no chip loses it."""

_NO_TEACHER: Final = {"consistency": "none", "transfer": "student"}

_CELLS: Final = {"land_cover_weight": 0.0}
"""Of land cover, the cells alone: what a chip's proportions say is their mean."""

_PROPORTIONS: Final = {"land_cover_weight": 1.0, "dense_weight": 0.0}
"""Of land cover, the proportions of the chip alone."""

_TYPES: Final = {
    "land_cover_weight": 0.0,
    "dense_weight": 0.0,
    "contrast_weight": 0.0,
    "types_weight": 1.0,
    "label_follows_crop": False,
}

_NO_LAND_COVER: Final = _NO_TEACHER | {
    "label_follows_crop": False,
    "dense_weight": 0.0,
    "types_weight": 0.0,
    "cell_mean": False,
    "correction": False,
    "contrast_weight": 0.0,
}

METHODS: Final[Mapping[str, Method]] = {
    "geokr": Method("The recipe of `pretraining.preset` as it is: by default land cover of every cell, and contrast."),
    "paper": Method("The method as it was first published, whatever the preset.", preset="paper"),
    "shuffled": Method(
        "Control: land cover is permuted among the training chips, so that it tells nothing about them.",
        required={"labels": "shuffled"},
        predicts=False,
    ),
    "dense": Method(
        "Land cover of every cell of a chip, read from all stages of the network; no contrast, no teacher.",
        _GENTLE | _CELLS | _NO_TEACHER | {"dense_weight": 1.0, "contrast_weight": 0.0},
    ),
    "proportions": Method(
        "Land-cover proportions of the chip, one vector of the last stage; no contrast, no teacher.",
        _GENTLE | _PROPORTIONS | _NO_TEACHER | {"contrast_weight": 0.0},
    ),
    "cell_mean": Method(
        "Land-cover proportions of the chip, predicted as the mean of what each cell is; no contrast, no teacher.",
        _GENTLE | _PROPORTIONS | _NO_TEACHER | {"contrast_weight": 0.0, "cell_mean": True},
    ),
    "types": Method(
        "Types of ground, clusters of land cover and place, distinguished; no proportions, no contrast, no teacher.",
        _GENTLE | _NO_TEACHER | _TYPES,
        predicts=False,
    ),
    "proportion_contrast": Method(
        "Contrast in which chips of like land cover need not be distinguished.",
        _CONTRASTIVE
        | _NO_TEACHER
        | {"land_cover_weight": 0.0, "dense_weight": 0.0, "contrast_weight": 1.0, "contrast_softness": 0.3},
        predicts=False,
    ),
    "majority": Method(
        "Baseline: only the class that covers most of the ground, as in usual classification.",
        _PROPORTIONS,
        {"labels": "majority"},
        predicts=False,
    ),
    "corrected": Method(
        "A learned matrix takes up the classes that the product confuses.", _PROPORTIONS | {"correction": True}
    ),
    "joint": Method(
        "Land-cover proportions and contrast: two crops of a chip, each with its own land cover, against all other chips.",
        _CONTRASTIVE | _PROPORTIONS | _NO_TEACHER | {"contrast_weight": 1.0},
    ),
    "distilled": Method(
        "Control: only the preset's distance from the start, and no land cover; needs an `anchor`.",
        required={
            "land_cover_weight": 0.0,
            "dense_weight": 0.0,
            "types_weight": 0.0,
            "cell_mean": False,
            "correction": False,
            "contrast_weight": 0.0,
            "label_follows_crop": False,
        },
    ),
    "simclr": Method(
        "Baseline without land cover: two views of a chip against all other chips of the batch.",
        _CONTRASTIVE,
        _NO_LAND_COVER | {"objective": "simclr"},
    ),
    "moco": Method(
        "Baseline without land cover: a view is matched with the averaged network's, against a memory of chips.",
        _CONTRASTIVE | {"teacher_momentum": 0.99, "batchnorm": "averaged", "teacher_schedule": "every_step"},
        _NO_LAND_COVER | {"objective": "moco"},
    ),
}
"""Every built-in method by its name in the parameter file."""


def method_of(name: str) -> Method:
    """A method by its name: a built-in one, or one that an installed package brings.

    Raises:
        ConfigError: there is none of that name, or what the package names is no `Method`.
    """
    if name in METHODS:
        return METHODS[name]
    if name not in plugins(METHODS_GROUP):
        raise ConfigError(unknown_method(name))
    found = load_plugin(METHODS_GROUP, name)
    if not isinstance(found, Method):
        raise ConfigError(
            f"{METHODS_GROUP}: {name!r} is {type(found).__name__}, expected a `geokr_core.pretraining.recipes.Method`."
        )
    return found


def is_method(name: str) -> bool:
    """Whether there is a method of that name; nothing is imported."""
    return name in METHODS or name in plugins(METHODS_GROUP)


def unknown_method(name: str) -> str:
    """A sentence about a method that there is not, with the name that was probably meant."""
    return unknown_name("method", name, [*METHODS, *plugins(METHODS_GROUP)])


PAPER: Final = Recipe(
    optimiser="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    learning_rate_schedule="epoch_decay",
    warmup_steps=0,
    consistency="ce_student_teacher",
    consistency_weight=1.0,
    ramp_steps=0,
    teacher_schedule="released_scaled",
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
"""The published configuration; its rare moves of the teacher keep their shares of the run, which is shorter here."""

_WARMUP_FRACTION: Final = 0.1
_MAX_WARMUP_STEPS: Final = 500
_RAMP_FRACTION: Final = 0.3
_HORIZON_FRACTION: Final = 1.0 / 6.0
_MOMENTUM_RANGE: Final = (0.97, 0.99)


def _averaged_teacher(num_steps: int) -> Recipe:
    """The chip's proportions and an averaged teacher; what depends on the length of the run follows from ``num_steps``.

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


_DENSE_WEIGHT: Final = 5.0
"""Of the cells beside contrast: at 1 most of what they add is lost (docs/studies/dense.md, a first look at other seeds)."""


def _geokr(num_steps: int) -> Recipe:
    """The recommended recipe: land cover of every cell, read from all stages, beside contrast; no teacher.

    Its crops keep their colour and most of the ground, as land cover wants them: that helps contrast beside it as well (docs/studies/dense.md).
    """
    changes = _CELLS | _NO_TEACHER | {"dense_weight": _DENSE_WEIGHT, "contrast_weight": 1.0}
    return _averaged_teacher(num_steps).model_copy(update=changes)


_HEAD_WARMUP_FRACTION: Final = 0.15


def _continued(num_steps: int) -> Recipe:
    """``averaged_teacher`` from good weights: the head first, the backbone slowly, all pooled stages kept close to the start.

    Without the first, a fresh head wrecks the features within some tens of steps; without the last, what the chips do
    not show is forgotten.
    """
    head_first = min(round(_HEAD_WARMUP_FRACTION * num_steps), _MAX_WARMUP_STEPS)
    changes = {
        "head_warmup_steps": head_first,
        "warmup_steps": min(round(_WARMUP_FRACTION * (num_steps - head_first)), _MAX_WARMUP_STEPS),
        "backbone_learning_rate_factor": 0.2,
        "anchor": "stages",
        "anchor_weight": 1.0,
    }
    return _averaged_teacher(num_steps).model_copy(update=changes)


_ENLARGED_HEAD_WARMUP_FRACTION: Final = 0.05


def _enlarged(num_steps: int) -> Recipe:
    """``averaged_teacher`` from weights that were trained on larger images: small chips come to be seen as the start sees enlarged ones.

    The delivered weights lie half-way back to the start: what the chips taught stays, and what they took is returned.
    """
    head_first = min(round(_ENLARGED_HEAD_WARMUP_FRACTION * num_steps), _MAX_WARMUP_STEPS)
    changes = {
        "head_warmup_steps": head_first,
        "warmup_steps": head_first,
        "backbone_learning_rate_factor": 0.5,
        "land_cover_weight": 0.25,
        "anchor": "cells",
        "anchor_weight": 4.0,
        "anchor_zoom": 2.0,
        "interpolation": 0.5,
    }
    return _averaged_teacher(num_steps).model_copy(update=changes)


PRESETS: Final[Mapping[str, Callable[[int], Recipe]]] = {
    "geokr": _geokr,
    "averaged_teacher": _averaged_teacher,
    "continued": _continued,
    "enlarged": _enlarged,
    "paper": lambda num_steps: PAPER,
}
"""Every preset by its name in the parameter file: steps of the run → recipe."""


def resolve(preset: str, method: str, num_steps: int, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a preset, a method and what the parameter file gives.

    Later ones win: the preset, the method's changes, every field that is given, what makes the method what it is.

    Args:
        preset: a key of `PRESETS`.
        method: name of a method, see `method_of`.
        num_steps: optimiser steps of the run.
        given: fields that the parameter file overrules; those of the augmentation count, too.

    Returns:
        The full recipe.

    Raises:
        ConfigError: there is no such method, or it sets a field that no recipe has.
    """
    chosen = method_of(method)
    base = PRESETS[chosen.preset or preset](num_steps)
    settings: dict[str, Any] = {**chosen.changes, **given, **chosen.required}
    if (jitter := settings.pop("jitter", None)) is not None:
        settings = {"brightness": jitter, "contrast": jitter, "saturation": jitter} | settings
    strengths = {part.name: settings.pop(part.name) for part in fields(Strength) if part.name in settings}
    augmentation = replace(base.augmentation, **strengths)
    try:
        return Recipe(**{**dict(base), **settings, "augmentation": augmentation})
    except ValidationError as error:
        raise ConfigError(f"method {method!r}: {'; '.join(map(str, problems(error, Recipe, settings)))}") from error
