"""Fine-tuning for cells: a backbone and the linear probe of its cells learn on together, from where the probe ended.

The budget (steps, batch, schedule, flips and quarter turns) is the same for every initialisation. Not here: the probe
(``protocols.probe``), how a finished network predicts (``protocols.fine_tuning.predict``), which chips are labelled (``tasks.land_cover_mapping``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geokr_core.evaluation.protocols.fine_tuning import learn
from geokr_core.evaluation.protocols.probe import LinearClassifier
from geokr_core.networks.augmentation import cells_under, draw, geometry_of, seen
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm
from geokr_core.networks.network import cell_features
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing
from geokr_core.networks.strength import Strength


@dataclass(frozen=True)
class CellBudget:
    """What every initialisation gets alike.

    Attributes:
        steps: optimiser steps.
        batch_size: chips a step; fewer where fewer are labelled.
        learning_rate: highest one, of backbone and head.
    """

    steps: int
    batch_size: int
    learning_rate: float


class CellClassifier(nn.Module):
    """A backbone, its stages on the grid of the cells, and one linear head for all cells; BatchNorm stays as it is."""

    centre: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, cells_per_side: int, probe: LinearClassifier) -> None:
        """Begin as ``probe``, which was fitted on the cells of ``network``, all stages: as a classifier the two are one."""
        super().__init__()
        self.network = network
        self.cells_per_side = cells_per_side
        self.head = nn.Linear(probe.weight.shape[1], probe.weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(probe.weight))
            self.head.bias.copy_(torch.from_numpy(probe.bias))
        # The head sees what the probe saw: standardised, so that one learning rate suits the weights of all stages.
        self.register_buffer("centre", torch.from_numpy(probe.centre).float())
        self.register_buffer("scale", torch.from_numpy(probe.scale).float())

    def train(self, mode: bool = True) -> "CellClassifier":
        """Let the weights learn, not the statistics."""
        super().train(mode)
        freeze_batchnorm(self.network)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, n, n, K) of float32 images (B, C, H, W)."""
        features = cell_features(self.network, images, self.cells_per_side, "multi")
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.head((features.float() - self.centre) / self.scale)
        return logits


def fine_tune_cells(
    network: nn.Module,
    probe: LinearClassifier,
    images: np.ndarray,
    classes: np.ndarray,
    normalisation: Normalisation,
    budget: CellBudget,
    seed: int,
    runtime: Runtime,
) -> CellClassifier:
    """Let a backbone and the probe of its cells learn on.

    Args:
        network: the start; changed in place.
        probe: of its cells, all stages.
        images: uint8 (N, S, S, C), labelled chips, bands in the network's order.
        classes: int64 (N, n, n), class of each cell in the order of the probe's; negative: not labelled.
        normalisation: of the input, on the runtime's device.
        budget: steps, batch and learning rate.
        seed: of batches and augmentation.
        runtime: where it runs.

    Returns:
        The classifier in evaluation mode.

    Raises:
        EvaluationError: the loss is not finite.
    """
    model = CellClassifier(network, classes.shape[1], probe).to(runtime.device).train()
    generator = torch.Generator().manual_seed(seed)
    # One plane a class, 255 where a cell is of it: cells are turned with their chip as shares are, and no class is no label.
    shares = np.uint8(255) * (classes[..., None] == np.arange(len(probe.weight))).astype(np.uint8)
    size = min(budget.batch_size, len(images))

    def loss_at(step: int) -> Tensor:
        rows = batch_rows(np.arange(len(images)), size, seed, step)
        pixels = torch.from_numpy(images[rows]).to(runtime.device)
        geometry = geometry_of(draw(len(rows), pixels.shape[-1], generator), Strength(), runtime.device)
        batch = normalisation.of_planes(seen(pixels, geometry).float() / 255.0)
        targets = cells_under(torch.from_numpy(shares[rows]).to(runtime.device), geometry, classes.shape[1])
        with computing(), runtime.autocast():
            logits = model(batch)
        # A batch whose chips have no labelled cell teaches nothing, and is no reason to stop.
        loss: Tensor = -(targets * logits.log_softmax(dim=-1)).sum() / targets.sum().clamp(min=1.0)
        return loss

    groups: list[Mapping[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    learn(groups, loss_at, budget.steps, budget.learning_rate)
    return model.eval()
