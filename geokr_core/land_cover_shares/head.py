"""The head: a linear function of vectors that gives shares, with the classes it knows and the widths of its intervals.

It is fitted at chips, whose land cover is known, and applied to cells of chips: it is linear and a chip's vector is the mean of
its cells', so what holds of chips holds of the mean of their cells. Shares are not linear, because none may be below 0: cut off cell by
cell, what is noise around 0 in one cell becomes ground of its class. So the cells of a window are made to give the window's own shares.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from geokr_core.embeddings.encoder import Encoder
from geokr_core.embeddings.regression import Linear, as_shares
from geokr_core.errors import PredictionError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_file

OWN_PART: Final = 0.25
"""How much of a cell's difference from its window is believed: a head that was fitted on means of 64 cells is noisy on one."""

_ROUNDS: Final = 10
_METADATA: Final = "geokr"


@dataclass(frozen=True)
class Head:
    """A fitted head.

    Attributes:
        linear: from vectors to shares.
        factors: float64 (K,), widths of the intervals; see `intervals.conformal_factors`.
        about: ``classes``, ``colours``, ``legend_hash``, ``encoder`` (digest of the network), ``model``, ``model_version``,
            ``features``, ``confidence``, ``data_version`` (of the Levir-KR it was fitted on), ``chip_size_px``; JSON values.
    """

    linear: Linear
    factors: np.ndarray
    about: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the shares."""
        return tuple(self.about["classes"])

    @property
    def colours(self) -> tuple[str, ...]:
        """``#RRGGBB`` of each class."""
        return tuple(self.about["colours"])

    @property
    def identity(self) -> str:
        """Digest of everything that a map depends on in the head."""
        values = [part.tolist() for part in (self.linear.weights, self.linear.intercept, self.factors)]
        return text_digest([values, dict(self.about)])

    def shares(self, vectors: np.ndarray) -> np.ndarray:
        """Shares float32 (..., K) of vectors (..., D); none below 0, they sum to 1."""
        return as_shares(self.linear(vectors)).astype(np.float32)

    def cell_shares(self, vectors: np.ndarray) -> np.ndarray:
        """Shares of the cells of windows, whose mean is what a window as a whole shows.

        Args:
            vectors: float32 (N, n, n, D), of the cells.

        Returns:
            float32 (N, n, n, K); none below 0, they sum to 1 in each cell, and their mean over a window is `shares` of its mean vector to 1e-3.
        """
        values = self.linear(vectors).astype(np.float64)
        mean = values.mean(axis=(1, 2), keepdims=True)
        shape = (len(values), -1, values.shape[-1])
        cells = as_shares(mean + OWN_PART * (values - mean)).reshape(shape)
        return _fitted(cells, as_shares(mean[:, 0, 0])).reshape(values.shape).astype(np.float32)


def _fitted(cells: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares of cells (N, C, K), scaled in turns by class and by cell until their mean is ``whole`` (N, K): iterative proportional fitting."""
    for _ in range(_ROUNDS):
        cells = cells * (whole / cells.mean(axis=1))[:, None]
        cells = cells / cells.sum(axis=-1, keepdims=True)
    return cells


def describe_head(dataset: LevirKR, encoder: Encoder, confidence: float) -> dict[str, Any]:
    """What a head of a network and a data set says about itself."""
    return {
        "classes": list(dataset.classes),
        "colours": list(dataset.class_colours),
        "legend_hash": str(dataset.manifest["legend_hash"]),
        "encoder": encoder.identity,
        "model": encoder.model,
        "model_version": encoder.version,
        "features": encoder.features,
        "confidence": confidence,
        "data_version": dataset.data_version,
        "chip_size_px": dataset.chip_size_px,
    }


def write_head(head: Head, path: Path) -> None:
    """Write a head as safetensors; the same head gives the same bytes.

    Raises:
        OSError: the file system refused.
    """
    tensors = {"weights": head.linear.weights, "intercept": head.linear.intercept, "factors": head.factors}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={_METADATA: json.dumps(dict(head.about), sort_keys=True)})


def read_head(path: Path) -> Head:
    """Read a head.

    Raises:
        PredictionError: there is none, or it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in ("weights", "intercept", "factors")}
    except FileNotFoundError as error:
        raise PredictionError(
            f"{path}: no such file; `land_cover_shares.head` names the head.safetensors of an earlier `geokr predict`."
        ) from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise PredictionError(f"{path}: not a head ({error}); give the head.safetensors of `geokr predict`.") from error
    return Head(Linear(tensors["weights"], tensors["intercept"]), tensors["factors"], about)


def require_fitting(head: Head, path: Path, dataset: LevirKR, encoder: Encoder) -> None:
    """Refuse a head of another network or of another legend.

    Raises:
        PredictionError: it is one.
    """
    if head.about["encoder"] != encoder.identity:
        raise PredictionError(
            f"{path}: fitted on vectors of {head.about['model']} ({str(head.about['model_version'])[:12]}, features "
            f"{head.about['features']}), but the network here is {encoder.model} ({encoder.version[:12]}, features "
            f"{encoder.features}). Name that network (`land_cover_shares.bundle`, `.features`), or leave `head` out."
        )
    if head.classes != dataset.classes or head.about["legend_hash"] != dataset.manifest["legend_hash"]:
        raise PredictionError(
            f"{path}: knows the classes {', '.join(head.classes)}, but the legend of this archive is "
            f"{', '.join(dataset.classes)}. Use that legend (`land_cover.legend`), or leave `head` out to fit one."
        )
    if head.about["chip_size_px"] != dataset.chip_size_px:
        raise PredictionError(
            f"{path}: fitted on chips of {head.about['chip_size_px']} px, the chips here have {dataset.chip_size_px} px. Cut chips "
            "of that size (`chips.size_px`), or leave `head` out to fit one."
        )
