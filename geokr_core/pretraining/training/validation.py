"""Early signs of how a training goes, measured on chips as they are: KL, class by class bias, example chips.

Judged are at most `MAX_JUDGED_CHIPS` chips, in eval mode, against the land cover of whole chips.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime
from geokr_core.pictures.images import as_rgb, png, proportion_bar
from geokr_core.pretraining.losses import label_kl
from geokr_core.pretraining.network import Network
from geokr_core.step.selection import even_selection

MAX_JUDGED_CHIPS: Final = 1000
"""Chips on which a KL is measured outside training: its standard error is then some 2 % of its value."""

NUM_EXAMPLES: Final = 8
"""Chips in a picture of examples."""

_JUDGED_BATCH: Final = 256
_NUM_BINS: Final = 10
_EXAMPLE_SCALE: Final = 2
_GAP_PX: Final = 4


@dataclass(frozen=True)
class Judged:
    """Predictions for some chips.

    Attributes:
        rows: int64 (M,), rows of the catalogue.
        predicted: float32 (M, K), shares of land cover, as the product would report them.
        labels: float32 (M, K), what the product reports.
        kl: mean KL(labels ‖ predicted), nat a chip.
    """

    rows: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    kl: float

    @property
    def bias(self) -> np.ndarray:
        """float64 (K,): mean predicted share of each class less its mean share."""
        difference: np.ndarray = self.predicted.mean(axis=0, dtype=np.float64) - self.labels.mean(
            axis=0, dtype=np.float64
        )
        return difference

    def calibration(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One row a class: mean shares, and for each tenth of predicted shares how many chips and their mean shares."""
        rows = []
        for k, name in enumerate(classes):
            predicted, label = self.predicted[:, k].astype(np.float64), self.labels[:, k].astype(np.float64)
            bins = np.minimum((predicted * _NUM_BINS).astype(int), _NUM_BINS - 1)
            table = [
                {
                    "num_chips": int(mine.sum()),
                    "predicted": round(float(predicted[mine].mean()), 4),
                    "label": round(float(label[mine].mean()), 4),
                }
                for index in range(_NUM_BINS)
                if (mine := bins == index).any()
            ]
            means = {"predicted": round(float(predicted.mean()), 4), "label": round(float(label.mean()), 4)}
            rows.append({"class": name, **means, "bins": table})
        return rows


@torch.no_grad()
def judge(
    data: LevirKR, network: Network, runtime: Runtime, normalisation: Normalisation, labels: Tensor, rows: np.ndarray
) -> Judged:
    """Predict chips as they are, in eval mode; the network's mode is given back.

    Args:
        data: the chips.
        network: predicts land cover.
        runtime: device and precision.
        normalisation: channel statistics on the device.
        labels: float32 (N, K) on the device, of the whole catalogue.
        rows: int64, at least one; of more than `MAX_JUDGED_CHIPS` an even selection is judged.
    """
    rows = even_selection(rows, MAX_JUDGED_CHIPS)
    total, shares = 0.0, []
    was_training = network.training
    network.eval()
    try:
        for part in np.array_split(rows, math.ceil(len(rows) / _JUDGED_BATCH)):
            images = torch.from_numpy(data.images(part)).to(runtime.device)
            with runtime.autocast():
                logits = network(normalisation(images)).logits
            reported = network.as_product(logits)
            total += float(label_kl(reported, labels[torch.from_numpy(part).to(runtime.device)]).sum())
            shares.append(F.softmax(reported.float(), dim=1).cpu().numpy())
    finally:
        network.train(was_training)
    return Judged(
        rows, np.concatenate(shares), labels[torch.from_numpy(rows).to(runtime.device)].cpu().numpy(), total / len(rows)
    )


def example_picture(data: LevirKR, judged: Judged) -> bytes:
    """Chips, each above two bars: its land cover as the product has it, and below as it is predicted.

    Returns:
        PNG bytes.
    """
    chosen = even_selection(np.arange(len(judged.rows)), NUM_EXAMPLES)
    chips = as_rgb(data.images(judged.rows[chosen]), data.bands)
    columns = []
    for chip, place in zip(chips, chosen, strict=True):
        large = chip.repeat(_EXAMPLE_SCALE, axis=0).repeat(_EXAMPLE_SCALE, axis=1)
        width = large.shape[1]
        gap = np.full((_GAP_PX, width, 3), 255, np.uint8)
        bars = [proportion_bar(of[place], data.class_colours, width, 12) for of in (judged.labels, judged.predicted)]
        column = np.concatenate([large, gap, bars[0], gap, bars[1]])
        columns.append(np.pad(column, ((0, 0), (0, _GAP_PX), (0, 0)), constant_values=255))
    return png(np.concatenate(columns, axis=1))
