"""Contrast between crops: the projection head and the loss of SimCLR (Chen and others 2020, section 2.1 and algorithm 1).

They are part of the recommended recipe, so that training it needs no extra. A test holds both equal to lightly's, bit for bit.

Not here: MoCo's head and memory, which are lightly's (``pretraining.network``, ``pretraining.losses``).
"""

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

SIMILARITY_TEMPERATURE: Final = 0.1
"""Of the softmax over how alike land cover is: chips of one class share a soft target, half-alike ones have next to none of it."""


class ProjectionHead(nn.Module):
    """Two linear layers with BatchNorm, and a ReLU between them: float (B, D) → (B, P)."""

    def __init__(self, width: int, projection_dim: int) -> None:
        """A head over features of ``width`` that gives vectors of ``projection_dim``."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Vectors to be compared."""
        projected: Tensor = self.layers(features)
        return projected


class NTXent(nn.Module):
    """Each crop is asked which of all others is of its chip: the normalised, temperature-scaled cross entropy.

    With ``softness`` s the target is (1 - s) for the other crop of the chip, and s for all crops by how alike their land cover is,
    softmax(Σ_k √(p_ik p_jk) / `SIMILARITY_TEMPERATURE`): two chips of one forest need not be distinguished (after Wang and
    others 2024, "Multi-label guided soft contrastive learning").
    """

    def __init__(self, temperature: float, softness: float = 0.0, *, distributed: bool) -> None:
        """A loss whose similarities are divided by ``temperature``; ``distributed``: compare with other processes' chips, too."""
        super().__init__()
        self._temperature, self._softness, self._distributed = temperature, softness, distributed

    def forward(self, first: Tensor, second: Tensor, land_cover: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Mean over all crops of a batch, nat.

        Args:
            first: float32 (B, P), one crop a chip.
            second: float32 (B, P), another crop of the same chips in the same order.
            land_cover: float32 (B, K) of each of the two; needed where the target is soft.
        """
        logits, chips = self._compared(F.normalize(first, dim=1), F.normalize(second, dim=1), self._temperature)
        if self._softness == 0 or land_cover is None:
            return F.cross_entropy(logits, chips)
        with torch.no_grad():
            roots = [shares.float().clamp_min(0).sqrt() for shares in land_cover]
            alike, _ = self._compared(roots[0], roots[1], SIMILARITY_TEMPERATURE)
            target = self._softness * alike.softmax(dim=1)
            target[torch.arange(len(chips), device=chips.device), chips] += 1.0 - self._softness
        return F.cross_entropy(logits, target)

    def _compared(self, first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Similarities (2B, 2M - 1) of each crop with all crops but itself, and the column of its partner, int64 (2B,)."""
        together = self._distributed and dist.is_initialized() and dist.get_world_size() > 1
        rank = dist.get_rank() if together else 0
        all_first, all_second = (_Gathered.apply(one) if together else one for one in (first, second))
        size = len(first)
        chips = torch.arange(size, device=first.device) + rank * size
        # A crop is compared with all crops but itself: those of the other view first, in which its partner stands at its place.
        others = torch.ones((size, len(all_first)), dtype=torch.bool, device=first.device)
        others[torch.arange(size, device=first.device), chips] = False
        pairs = ((first, all_first), (first, all_second), (second, all_first), (second, all_second))
        first_same, first_partners, second_partners, second_same = (
            torch.einsum("nc,mc->nm", *pair) / temperature for pair in pairs
        )
        logits = torch.cat(
            [
                torch.cat([first_partners, first_same[others].view(size, -1)], dim=1),
                torch.cat([second_partners, second_same[others].view(size, -1)], dim=1),
            ]
        )
        return logits, chips.repeat(2)


class _Gathered(torch.autograd.Function):
    """The vectors of all processes, (W·B, P) of (B, P); gradients flow back to the process that a vector is from."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
