"""A learned matrix of the classes that a land-cover product confuses, so that the network need not learn them.

After the idea of Li, Chen and Shi (2022, doi:10.1109/TGRS.2022.3202489): the supervision is corrected by a matrix that
is learned together with the network, under two priors: it changes little, and land cover is clumped. Its published
equations were not at hand; the form here is the forward correction of Patrini and others (2017): the network predicts
the ground, ``prediction @ matrix`` is what the product would report of it, and that is trained against the product.

Matrix and network together could explain the same labels in many ways. The two priors choose among them: identity
keeps the matrix from explaining what the network can, and aggregation (each place is of one class, and its neighbours
are too) keeps the network from explaining confusion as mixed ground.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEARNING_RATE_FACTOR: Final = 10.0
"""The matrix has K² numbers and a run some hundred steps: at the network's own rate it would hardly leave its start."""

_INITIAL_DIAGONAL: Final = 0.95


class Correction(nn.Module):
    """Row k: what the product reports of ground that is of class k."""

    def __init__(self, num_classes: int) -> None:
        """Start close to the identity: 0.95 on the diagonal, the rest spread evenly."""
        super().__init__()
        odds = _INITIAL_DIAGONAL * max(1, num_classes - 1) / (1.0 - _INITIAL_DIAGONAL)
        self.scores = nn.Parameter(torch.eye(num_classes) * float(torch.tensor(odds).log()))

    def matrix(self) -> Tensor:
        """float32 (K, K), rows sum to 1."""
        return F.softmax(self.scores.float(), dim=1)

    def forward(self, logits: Tensor) -> Tensor:
        """Log-shares that the product would report, float32 (..., K), of logits (..., K) of the ground."""
        reported = F.softmax(logits.float(), dim=-1) @ self.matrix()
        return reported.clamp_min(1e-12).log()

    def identity_loss(self) -> Tensor:
        """Mean share of a class that is confused with others: 0 for the identity."""
        return 1.0 - self.matrix().diagonal().mean()


def aggregation_loss(maps: Tensor) -> Tensor:
    """How mixed and ragged the predicted land cover within chips is.

    Mean entropy of the cells (a place is of one class), plus the mean total variation between neighbours (and so are
    the places beside it).

    Args:
        maps: float (B, K, H, W), logits of each feature-map cell.

    Returns:
        A scalar, at least 0; 0 where every chip is of one class throughout.
    """
    log_shares = F.log_softmax(maps.float(), dim=1)
    shares = log_shares.exp()
    entropy = -(shares * log_shares).sum(dim=1).mean()
    return entropy + _variation(shares, dim=2) + _variation(shares, dim=3)


def _variation(shares: Tensor, dim: int) -> Tensor:
    if shares.shape[dim] < 2:
        return shares.new_zeros(())
    return 0.5 * shares.diff(dim=dim).abs().sum(dim=1).mean()
