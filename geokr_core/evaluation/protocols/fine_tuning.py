"""Fine-tuning on a labelled set: all weights learn, under one fixed budget for every initialisation.

One readable loop. The budget (steps, batch, schedule, augmentation) is tuned for no initialisation; batches, flips and
the weights of a drawn head depend on the seed alone, so that two initialisations differ in nothing but their weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.protocols.probe import LinearClassifier
from geokr_core.evaluation.starts import EXTRACTION_BATCH
from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.augmentation import orient
from geokr_core.networks.batch_order import batch_rows
from geokr_core.networks.batchnorm import freeze_batchnorm
from geokr_core.networks.network import pooled
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing
from geokr_core.networks.strength import Strength

WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05
HEAD_LEARNING_RATE_FACTOR = 4.0
"""A drawn head starts from nothing in every initialisation and must catch up within some tens of steps."""
WARMUP_FRACTION = 0.1
SCHEDULE = f"AdamW, linear warm-up over {WARMUP_FRACTION:.0%} of the steps, then half a cosine to zero"


class Classifier(nn.Module):
    """A backbone, global average pooling of its last stage, and a linear head."""

    def __init__(self, network: nn.Module, feature_dim: int, num_classes: int, seed: int) -> None:
        """Put a head drawn from ``seed`` on ``network``."""
        super().__init__()
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(feature_dim, num_classes)

    def begin_as(self, probe: LinearClassifier) -> None:
        """Give the head the weights of a linear probe, standardisation included: as a classifier the two are one.

        First the probe, then all weights (LP-FT): a drawn head sends its first, large gradients into features that were
        good, and few labels do not repair what these pull apart (Kumar et al., "Fine-Tuning can Distort Pretrained
        Features and Underperform Out-of-Distribution", ICLR 2022).

        Args:
            probe: of this network's frozen, pooled last stage.
        """
        weight = probe.weight / probe.scale
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(probe.bias - weight @ probe.centre))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of float32 images (B, 3, H, W)."""
        logits: Tensor = self.head(pooled(self.network, images, "last"))
        return logits


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Share of the highest learning rate at optimiser step ``step``: short linear warm-up, then half a cosine."""
    warmup = max(1, round(WARMUP_FRACTION * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def learn(
    groups: Sequence[Mapping[str, Any]], loss_at: Callable[[int], Tensor], num_steps: int, learning_rate: float
) -> None:
    """Minimise a loss under the one schedule that every task and initialisation gets.

    Args:
        groups: parameter groups; ``factor`` multiplies the learning rate of a group (1 where it is left out).
        loss_at: gives the loss of step 1, 2 …; runs the forward pass.
        num_steps: optimiser steps.
        learning_rate: highest one.

    Raises:
        EvaluationError: the loss is not finite.
    """
    optimiser = torch.optim.AdamW(
        [{"params": list(group["params"]), "lr": learning_rate * group.get("factor", 1.0)} for group in groups],
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, num_steps))
    for step in range(num_steps):
        loss = loss_at(step + 1)
        if not torch.isfinite(loss):
            raise EvaluationError(
                f"Fine-tuning met a loss of {loss.item()} at step {step + 1} of {num_steps}; expected a "
                "finite one. Lower `fine_tune_learning_rate`, or look whether the weights are damaged."
            )
        with computing():
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()


def choose(candidates: Sequence[float], score: Callable[[float], float]) -> float:
    """The learning rate with the best score on held-out labelled items; the earlier one of two equals.

    Args:
        candidates: the grid, the same for every initialisation.
        score: trains with a candidate and scores it on items that are neither learnt from nor test items.
    """
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=score)


def fine_tune(
    network: nn.Module,
    architecture: str,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    normalisation: Normalisation,
    config: EvaluationConfig,
    seed: int,
    runtime: Runtime,
    learning_rate: float | None = None,
    *,
    frozen_batchnorm: bool = False,
    probe: LinearClassifier | None = None,
) -> Classifier:
    """Train a backbone and its head.

    Args:
        network: the start; changed in place.
        architecture: its name.
        images: uint8 (N, S, S, C), labelled training images.
        labels: int64 (N,).
        num_classes: number of classes K.
        normalisation: of the input, on the runtime's device.
        config: steps, learning rate and batch size.
        seed: of batches, augmentation and head.
        runtime: where it runs.
        learning_rate: None takes ``config.fine_tune_learning_rate``.
        frozen_batchnorm: keep the backbone's BatchNorm as it is.
        probe: the head begins as it and learns at the backbone's rate; None: it is drawn, and learns faster.

    Returns:
        The classifier in evaluation mode.

    Raises:
        EvaluationError: the loss is not finite.
    """
    model = Classifier(network, feature_dim(architecture), num_classes, seed)
    if probe is not None:
        model.begin_as(probe)
    model = model.to(runtime.device).train()
    if frozen_batchnorm:
        freeze_batchnorm(model.network)
    generator = torch.Generator().manual_seed(seed)

    def loss_at(step: int) -> Tensor:
        rows = batch_rows(np.arange(len(images)), config.batch_size, seed, step)
        # Colours may be what tells classes apart: only flips and quarter turns, which no nadir image minds.
        planes = orient(torch.from_numpy(images[rows]).to(runtime.device), Strength(), generator)
        batch = normalisation.of_planes(planes.float() / 255.0)
        targets = torch.from_numpy(labels[rows]).to(runtime.device)
        with computing(), runtime.autocast():
            logits = model(batch)
        return F.cross_entropy(logits.float(), targets, label_smoothing=LABEL_SMOOTHING)

    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.network.parameters() if p.requires_grad]},
        {"params": model.head.parameters(), "factor": HEAD_LEARNING_RATE_FACTOR if probe is None else 1.0},
    ]
    learn(groups, loss_at, config.fine_tune_steps, learning_rate or config.fine_tune_learning_rate)
    return model.eval()


def predict(model: nn.Module, images: np.ndarray, normalisation: Normalisation, runtime: Runtime) -> np.ndarray:
    """The most probable class of each image, or of each of its cells.

    Args:
        model: gives logits (B, ..., K); in evaluation mode.
        images: uint8 (N, H, W, C), bands in the network's order.
        normalisation: of the input, on the runtime's device.
        runtime: where it runs.

    Returns:
        int64 (N, ...): (N,) of a `Classifier`, (N, n, n) of a ``cell_tuning.CellClassifier``.

    Raises:
        EvaluationError: a prediction is not finite.
    """
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), EXTRACTION_BATCH):
            batch = normalisation(torch.from_numpy(images[first : first + EXTRACTION_BATCH]).to(runtime.device))
            with computing(), runtime.autocast():
                logits = model(batch).float()
            if not torch.isfinite(logits).all():
                raise EvaluationError(
                    "The fine-tuned network predicts values that are not finite; expected finite logits. "
                    "Lower `fine_tune_learning_rate`."
                )
            parts.append(logits.argmax(dim=-1).cpu().numpy().astype(np.int64))
    return np.concatenate(parts)
