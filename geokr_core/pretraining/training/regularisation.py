"""Regularisation towards the weights that a backbone started from: L2-SP and distillation of the start's features.

The parameter file calls it the anchor. Here are the distances from the start and the way back to it; how strongly they
count is for the recipe, and where they enter the loss for the loop.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from geokr_core.networks.network import stages
from geokr_core.pretraining.recipe import Recipe

_LEAST_SHARE_OF_VARIANCE: Final = 0.01

VARIANCE_CHIPS: Final = 512
"""Chips that the variance of each channel is taken from: its standard error is then some 6 %."""


def frozen_copy(backbone: nn.Module) -> nn.Module:
    """A backbone as it is now, which learns nothing more.

    Its BatchNorm uses the statistics of each batch, as that of a network in training does, so that the two agree while
    their weights are the same; its own statistics stay as they are.
    """
    start = copy.deepcopy(backbone).eval().requires_grad_(False)
    for module in start.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.momentum = 0.0
    return start


@torch.no_grad()
def maps_of(
    start: nn.Module, images: Tensor, autocast: AbstractContextManager[None], zoom: float = 1.0
) -> list[Tensor]:
    """Stage maps of images, by the start.

    Args:
        start: what `frozen_copy` gave.
        images: normalised float32 (B, C, H, W).
        autocast: its precision.
        zoom: how many times larger it sees them, at least 1, bilinear. A network that was trained on larger images has
            better features of a small one that is enlarged first, at zoom² times the cost; these can be taught to a
            network that sees the image as it is.

    Returns:
        Stage maps, one float (B, D_i, H_i, W_i) each.
    """
    if zoom > 1:
        larger = F.interpolate(images, scale_factor=zoom, mode="bilinear", align_corners=False)
        images = larger.contiguous(memory_format=torch.channels_last)
    with autocast:
        return stages(start, images)


def pooled(maps: Sequence[Tensor]) -> list[Tensor]:
    """Mean of each stage map, one float (B, D_i) each."""
    return [F.adaptive_avg_pool2d(stage, 1).flatten(1) for stage in maps]


def last_stage_cells(maps: Sequence[Tensor], size: Sequence[int] | None = None) -> list[Tensor]:
    """Cells of the last stage, one float (B · H · W, D) in a list; averaged by area to ``size``, rows and columns."""
    last = maps[-1] if size is None else F.interpolate(maps[-1].float(), size=tuple(size), mode="area")
    return [last.permute(0, 2, 3, 1).flatten(0, 2)]


def channel_variance(features: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Variance of each channel over all batches, never next to nothing.

    Args:
        features: for each batch what `pooled` or `last_stage_cells` gave of the start.

    Returns:
        One float32 (D_i,) a stage. Channels that hardly ever fire get a hundredth of their stage's mean variance: they
        must not outweigh all others.
    """
    variances = [torch.cat(parts).float().var(dim=0, unbiased=False) for parts in zip(*features, strict=True)]
    return [v + _LEAST_SHARE_OF_VARIANCE * v.mean() + torch.finfo(torch.float32).eps for v in variances]


def distance(features: Sequence[Tensor], reference: Sequence[Tensor], variances: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of features from those of the start, in units of each channel's own variance.

    A linear classifier on standardised features sees them in these units, so that this is what it stands to lose.

    Args:
        features: one float (N, D_i) a stage.
        reference: the same of the start.
        variances: what `channel_variance` gave.

    Returns:
        A scalar, the mean over all rows: 0 where nothing has changed, about 2 where nothing of the start is left.
    """
    distances = [
        ((mine.float() - first.float()).square() / variance).mean()
        for mine, first, variance in zip(features, reference, variances, strict=True)
    ]
    return torch.stack(distances).mean()


def last_stage_angle(features: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Mean of 1 − cosine between the pooled last stages, a scalar."""
    return 1.0 - F.cosine_similarity(features[-1].float(), reference[-1].float(), dim=1).mean()


def weight_distance(backbone: nn.Module, start: nn.Module) -> Tensor:
    """Half the squared distance of the weights, a scalar: L2-SP, Li, Grandvalet and Davoine 2018."""
    pairs = zip(backbone.parameters(), start.parameters(), strict=True)
    return 0.5 * torch.stack([(mine - first).square().sum() for mine, first in pairs]).sum()


@torch.no_grad()
def interpolate(trained: nn.Module, start: nn.Module, share: float) -> None:
    """Move a module back towards its start: ``start + share · (trained − start)``, buffers included.

    Wortsman and others 2022 (WiSE-FT). Integer buffers (counters) stay as trained.
    """
    first = start.state_dict()
    for key, value in trained.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.lerp(first[key], value, share))


def code(recipe: Recipe) -> Mapping[str, Any]:
    """What this module does otherwise than it once did, where a recipe makes use of it; see `Objective.code`."""
    features = recipe.anchor != "weights" and recipe.anchor_weight > 0
    return {"anchor": ["statistics of the batch", VARIANCE_CHIPS]} if features else {}
