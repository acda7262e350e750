"""The network that is trained: a backbone and the heads that a method puts on it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.network import build, on_grid, spec_of_network, stages
from geokr_core.pretraining.contrast import ProjectionHead
from geokr_core.pretraining.correction import Correction
from geokr_core.pretraining.recipe import Recipe

PROJECTION_DIM = 128
"""Length of the vectors that contrastive methods compare, as in both of their papers."""


class Outputs(NamedTuple):
    """What a network gives for a batch.

    Attributes:
        stages: four of float (B, D_i, H_i, W_i), the stage maps, the last one at the end.
        logits: float (B, K) of land cover, or the projection (B, P) of a contrastive method.
        maps: float (B, K, H, W), logits of each cell; None where nothing asks for them.
        projected: float (B, P), what chips are compared by beside land cover; None where nothing asks for it.
        types: float (B, T), logits of the types of ground; None where nothing asks for them.
    """

    stages: tuple[Tensor, ...]
    logits: Tensor
    maps: Tensor | None
    projected: Tensor | None = None
    types: Tensor | None = None


class CellHead(nn.Module):
    """Land cover of each cell of a chip, read from every stage of the backbone.

    A linear layer on the four stages side by side, brought to the cells' grid: so early stages, whose cells are small, learn
    from the land cover, too. Written as one 1 x 1 convolution a stage whose logits are resized and added, which is the same
    (both are linear) and resizes K maps instead of a thousand.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, cells_per_side: int) -> None:
        """Build it.

        Args:
            widths: channels of the stages.
            num_classes: K.
            cells_per_side: cells along each side of a chip, as the data set holds them.
        """
        super().__init__()
        self.cells_per_side = cells_per_side
        self.of_stages = nn.ModuleList(nn.Conv2d(width, num_classes, 1, bias=k == 0) for k, width in enumerate(widths))

    def forward(self, maps_of_stages: Sequence[Tensor]) -> Tensor:
        """Logits float (B, K, n, n) of the cells, of stage maps (B, D_i, H_i, W_i)."""
        logits = [
            on_grid(layer(stage), self.cells_per_side)
            for layer, stage in zip(self.of_stages, maps_of_stages, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)


def shares_of_chip(maps: Tensor) -> Tensor:
    """Logits (B, K) of a chip whose shares are the mean of its cells', of logits (B, K, n, n): log of the mean softmax."""
    log_shares = F.log_softmax(maps.float(), dim=1).flatten(2)
    return log_shares.logsumexp(dim=2) - math.log(log_shares.shape[2])


class Network(nn.Module):
    """A backbone, and what predicts land cover from it.

    Attributes:
        architecture: of the backbone.
        backbone: what is delivered.
        head: a linear layer on the pooled last stage; a `CellHead` where cells are learned, the chip's shares being their
            mean; or the projection head of a contrastive method.
        correction: the product's confusions, or None.
        projection: projection head of a contrastive loss beside land cover, or None.
        type_head: a linear layer on the pooled last stage that tells types of ground apart, or None.
    """

    def __init__(
        self,
        architecture: str,
        in_channels: int,
        num_classes: int,
        recipe: Recipe | None = None,
        cells_per_side: int = 0,
    ) -> None:
        """Build all parts, freshly initialised from torch's global generator; the backbone first, whatever the heads.

        Args:
            architecture: a name of ``networks.architectures``.
            in_channels: bands C.
            num_classes: K.
            recipe: says which heads; None: a linear one.
            cells_per_side: of the data set; needed where the recipe learns cells.
        """
        super().__init__()
        self.architecture = architecture
        width = feature_dim(architecture)
        has_land_cover_head = recipe is None or recipe.has_land_cover_head
        self.backbone = build(architecture, in_channels)
        self.head: nn.Module
        if recipe is not None and recipe.has_cell_head:
            widths = [stage.channels for stage in spec_of_network(self.backbone).stages]
            self.head = CellHead(widths, num_classes, cells_per_side)
        elif has_land_cover_head:
            self.head = nn.Linear(width, num_classes)
        else:
            self.head = _projection(width, like_moco=recipe is not None and recipe.objective == "moco")
        self.correction = Correction(num_classes) if recipe is not None and recipe.correction else None
        contrasts = recipe is not None and recipe.contrast_weight > 0
        self.projection = _projection(width) if contrasts else None
        tells_types = recipe is not None and recipe.types_weight > 0
        self.type_head = nn.Linear(width, recipe.num_types) if recipe is not None and tells_types else None

    def forward(self, images: Tensor) -> Outputs:
        """Everything that the heads give for normalised float32 images (B, C, H, W)."""
        maps_of_stages = stages(self.backbone, images)
        last = maps_of_stages[-1]
        pooled = F.adaptive_avg_pool2d(last, 1).flatten(1)
        projected = None if self.projection is None else self.projection(pooled)
        types = None if self.type_head is None else self.type_head(pooled)
        if isinstance(self.head, CellHead):
            maps = self.head(maps_of_stages)
            return Outputs(tuple(maps_of_stages), shares_of_chip(maps), maps, projected, types)
        maps = None
        if self.correction is not None and isinstance(self.head, nn.Linear):
            # The head applied to each cell by itself: the mean of these logits is the chip's.
            maps = torch.einsum("bdhw,kd->bkhw", last, self.head.weight) + self.head.bias[:, None, None]
        return Outputs(tuple(maps_of_stages), self.head(pooled), maps, projected, types)

    def as_product(self, logits: Tensor) -> Tensor:
        """Logits (..., K) of what the product would report, where confusions are learned; else the logits themselves."""
        return logits if self.correction is None else self.correction(logits)


def _projection(width: int, *, like_moco: bool = False) -> nn.Module:
    if not like_moco:
        return ProjectionHead(width, PROJECTION_DIM)
    from lightly.models.modules.heads import MoCoProjectionHead  # type: ignore[import-untyped]

    head: nn.Module = MoCoProjectionHead(width, width, PROJECTION_DIM)
    return head
