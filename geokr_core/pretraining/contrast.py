"""Contrast between crops: the projection head and the loss of SimCLR (Chen and others 2020, section 2.1 and algorithm 1).

They are part of the recommended recipe, so that training it needs no extra. A test holds both equal to lightly's, bit for bit.

Not here: MoCo's head and memory, which are lightly's (``pretraining.network``, ``pretraining.losses``).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


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
    """Each crop is asked which of all others is of its chip: the normalised, temperature-scaled cross entropy."""

    def __init__(self, temperature: float, *, distributed: bool) -> None:
        """A loss whose similarities are divided by ``temperature``; ``distributed``: compare with other processes' chips, too."""
        super().__init__()
        self._temperature, self._distributed = temperature, distributed

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean over all crops of a batch, nat.

        Args:
            first: float32 (B, P), one crop a chip.
            second: float32 (B, P), another crop of the same chips in the same order.
        """
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        together = self._distributed and dist.is_initialized() and dist.get_world_size() > 1
        rank = dist.get_rank() if together else 0
        all_first, all_second = (_Gathered.apply(one) if together else one for one in (first, second))
        size = len(first)
        chips = torch.arange(size, device=first.device) + rank * size
        # A crop is compared with all crops but itself: those of the other view first, in which its partner stands at its place.
        others = torch.ones((size, len(all_first)), dtype=torch.bool, device=first.device)
        others[torch.arange(size, device=first.device), chips] = False
        pairs = ((first, all_first), (first, all_second), (second, all_first), (second, all_second))
        first_same, first_partners, second_partners, second_same = (self._similarities(*pair) for pair in pairs)
        logits = torch.cat(
            [
                torch.cat([first_partners, first_same[others].view(size, -1)], dim=1),
                torch.cat([second_partners, second_same[others].view(size, -1)], dim=1),
            ]
        )
        return F.cross_entropy(logits, chips.repeat(2))

    def _similarities(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.einsum("nc,mc->nm", one, other) / self._temperature


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
