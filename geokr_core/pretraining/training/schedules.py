"""Numbers that change from step to step, each a pure function of the step: learning rates, points of the curves."""

import math
from typing import Final

from torch import nn

from geokr_core.networks.network import depths
from geokr_core.pretraining.correction import LEARNING_RATE_FACTOR
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.recipe import Recipe

EPOCH_DECAY: Final = 0.9
"""Factor of the learning rate each epoch under ``epoch_decay``, as first published."""

_VALIDATION_FRACTIONS: Final = (0.25, 0.5, 0.75, 1.0)
"""Shares of the run after which the validation KL is measured where no number of steps is given."""

_LAST_STAGE: Final = 4


def learning_rate(step: int, recipe: Recipe, num_steps: int, batch_size: int, num_train: int) -> float:
    """Learning rate of the head at a step, counted from 1: linear warm-up, then cosine to zero or decay by epoch.

    While the head alone learns, it learns at the peak rate; the schedule then begins for both.

    Args:
        step: counted from 1.
        recipe: names the schedule.
        num_steps: of the whole run.
        batch_size: chips a step.
        num_train: chips an epoch.
    """
    if step <= recipe.head_warmup_steps:
        return recipe.learning_rate
    step, num_steps = step - recipe.head_warmup_steps, num_steps - recipe.head_warmup_steps
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    if recipe.learning_rate_schedule == "epoch_decay":
        return float(recipe.learning_rate * EPOCH_DECAY ** ((step - 1) * batch_size // num_train))
    done = (step - 1 - recipe.warmup_steps) / max(1, num_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def parameter_groups(network: Network, recipe: Recipe) -> list[dict[str, object]]:
    """The parameters of a network by how they learn: ``params``, ``weight_decay`` and ``rate_factor``.

    Biases, normalisation weights (one-dimensional) and the correction matrix are not decayed. The backbone learns at
    ``backbone_learning_rate_factor`` of the rate, each stage before the last at ``layer_decay`` times the next one's.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    depth_of = depths(network.backbone)
    for name, parameter in network.named_parameters():
        part, _, key = name.partition(".")
        factor = LEARNING_RATE_FACTOR if part == "correction" else 1.0
        if part == "backbone":
            above = _LAST_STAGE - depth_of[key]
            factor = recipe.backbone_learning_rate_factor * recipe.layer_decay**above
        decayed = parameter.ndim > 1 and part != "correction" and not key.endswith(_NOT_DECAYED)
        groups.setdefault((factor, decayed), []).append(parameter)
    return [
        {"params": params, "weight_decay": recipe.weight_decay if decayed else 0.0, "rate_factor": factor}
        for (factor, decayed), params in groups.items()
    ]


_NOT_DECAYED: Final = ("pos_embed", "cls_token", "relative_position_bias_table", "layer_scale")
"""Tables of places and scales of layers, which have more than one dimension and are no matrices."""


def log_points(num_steps: int, log_every: int) -> frozenset[int]:
    """Steps after which a point of the curves is taken: each ``log_every``-th, and the last."""
    return frozenset(range(log_every, num_steps + 1, log_every)) | {num_steps}


def validation_points(points: frozenset[int], num_steps: int, validate_every: int | None) -> frozenset[int]:
    """Points of the curves that come with a validation KL and the bias of each class.

    Args:
        points: of the curves.
        num_steps: of the whole run.
        validate_every: the first point at or after each multiple of so many steps; None: four, evenly spread.
    """
    if validate_every is None:
        marks = [share * num_steps for share in _VALIDATION_FRACTIONS]
    else:
        marks = [*range(validate_every, num_steps, validate_every), num_steps]
    return frozenset(min(p for p in points if p >= mark) for mark in marks)
