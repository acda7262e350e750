"""The network that is trained: a backbone and the heads that a method puts on it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.network import build, stages
from geokr_core.pretraining.correction import Correction
from geokr_core.pretraining.recipe import Recipe

PROJECTION_DIM = 128
"""Length of the vectors that contrastive methods compare, as in both of their papers."""


class Outputs(NamedTuple):
    """What a network gives for a batch.

    Attributes:
        stages: four of float (B, D_i, H_i, W_i), the stage maps, the last one at the end.
        logits: float (B, K) of land cover, or the projection (B, P) of a contrastive method.
        maps: float (B, K, H, W), logits of each cell of the last stage; None where nothing asks for them.
        projected: float (B, P), what chips are compared by beside land cover; None where nothing asks for it.
    """

    stages: tuple[Tensor, ...]
    logits: Tensor
    maps: Tensor | None
    projected: Tensor | None = None


class Network(nn.Module):
    """A backbone, and the linear layer that predicts proportions from its pooled last stage.

    Attributes:
        architecture: of the backbone.
        backbone: what is delivered.
        head: linear layer, or the projection head of a contrastive method.
        dense_head: 1 x 1 convolution on the last stage, or None.
        correction: the product's confusions, or None.
        projection: projection head of a contrastive loss beside land cover, or None.
    """

    def __init__(self, architecture: str, in_channels: int, num_classes: int, recipe: Recipe | None = None) -> None:
        """Build all parts, freshly initialised from torch's global generator; the backbone first, whatever the heads."""
        super().__init__()
        self.architecture = architecture
        width = feature_dim(architecture)
        has_land_cover_head = recipe is None or recipe.has_land_cover_head
        self.backbone = build(architecture, in_channels)
        self.head: nn.Module
        if has_land_cover_head:
            self.head = nn.Linear(width, num_classes)
        else:
            self.head = _projection(width, like_moco=recipe is not None and recipe.objective == "moco")
        dense = recipe is not None and recipe.dense_weight > 0
        self.dense_head = nn.Conv2d(width, num_classes, kernel_size=1) if dense else None
        self.correction = Correction(num_classes) if recipe is not None and recipe.correction else None
        contrasts = recipe is not None and recipe.contrast_weight > 0
        self.projection = _projection(width) if contrasts else None

    def forward(self, images: Tensor) -> Outputs:
        """Everything that the heads give for normalised float32 images (B, C, H, W)."""
        maps_of_stages = stages(self.backbone, images)
        last = maps_of_stages[-1]
        pooled = F.adaptive_avg_pool2d(last, 1).flatten(1)
        maps = None
        if self.dense_head is not None:
            maps = self.dense_head(last)
        elif self.correction is not None and isinstance(self.head, nn.Linear):
            # The head applied to each cell by itself: the mean of these logits is the chip's.
            maps = torch.einsum("bdhw,kd->bkhw", last, self.head.weight) + self.head.bias[:, None, None]
        projected = None if self.projection is None else self.projection(pooled)
        return Outputs(tuple(maps_of_stages), self.head(pooled), maps, projected)

    def as_product(self, logits: Tensor) -> Tensor:
        """Logits (..., K) of what the product would report, where confusions are learned; else the logits themselves."""
        return logits if self.correction is None else self.correction(logits)


def _projection(width: int, *, like_moco: bool = False) -> nn.Module:
    from lightly.models.modules.heads import MoCoProjectionHead, SimCLRProjectionHead  # type: ignore[import-untyped]

    kind = MoCoProjectionHead if like_moco else SimCLRProjectionHead
    head: nn.Module = kind(width, width, PROJECTION_DIM)
    return head
