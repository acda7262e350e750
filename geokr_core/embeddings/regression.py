"""Shares of land cover learned from vectors: ridge regression whose strength is chosen on places that it did not see.

Vectors are float32 (N, D), labels float64 (N, K). Folds are int64 (N,): no place has chips in two of them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from geokr_core.step.digests import text_digest

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, as shares of the mean eigenvalue of the features' products."""


def place_folds(lon: np.ndarray, lat: np.ndarray, place_size_deg: float, num_folds: int) -> np.ndarray:
    """Which fold each chip is in, by the hash of its place: scenes elsewhere move no chip.

    Args:
        lon: float (N,), degrees.
        lat: float (N,), degrees.
        place_size_deg: size of the cells that are held out together.
        num_folds: how many.

    Returns:
        int64 (N,), 0 to ``num_folds`` - 1; not every fold need occur.
    """
    cells = np.floor(np.stack([lon, lat], axis=1) / place_size_deg).astype(int)
    unique, inverse = np.unique(cells, axis=0, return_inverse=True)
    hashed = np.array([int(text_digest([int(x), int(y)])[:8], 16) for x, y in unique])
    folds: np.ndarray = (hashed % num_folds)[inverse.ravel()]
    return folds


@dataclass(frozen=True)
class _Prepared:
    """Vectors ready for any labels: what depends on vectors alone is computed once.

    Attributes:
        centre: float64 (D,), their mean.
        scale: float64 (D,), their deviation; infinite where a dimension is constant.
        centred: float32 (M, D), the vectors less their mean, over their deviation.
        values: float64 (D,), eigenvalues of the products of these.
        axes: float64 (D, D), their eigenvectors.
    """

    centre: np.ndarray
    scale: np.ndarray
    centred: np.ndarray
    values: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "_Prepared":
        """Prepare vectors."""
        centre, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        scale[scale <= 1e-7 * np.maximum(np.abs(centre), 1e-7)] = np.inf
        centred = ((features - centre) / scale).astype(np.float32)
        values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
        return cls(centre, scale, centred, np.maximum(values, 0.0), axes)

    def rotated(self, labels: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Products of vectors and labels along the axes, float64 (D, K)."""
        products = (self.centred.T @ (labels - mean).astype(np.float32)).astype(np.float64)
        return np.asarray(self.axes.T @ products)

    def linear(self, labels: np.ndarray, chosen: int) -> "Linear":
        """The ridge regression of labels of these vectors, at one of `STRENGTHS`."""
        mean = labels.mean(axis=0)
        rotated = self.rotated(labels, mean) / (self.values + self.penalties[chosen])[:, None]
        weights = (self.axes @ rotated) / self.scale[:, None]
        return Linear(weights.astype(np.float32), (mean - self.centre @ weights).astype(np.float32))

    @property
    def penalties(self) -> np.ndarray:
        """Those of `STRENGTHS`."""
        penalties: np.ndarray = np.asarray(STRENGTHS) * self.values.mean()
        return penalties


@dataclass(frozen=True)
class _Fold:
    """Ridge regression of one fold.

    Attributes:
        rows: int64, chips of the fold.
        others: int64, all others.
        prepared: vectors of the others.
        held_out: float32 (m, D), vectors of the fold, scaled as those of the others.
    """

    rows: np.ndarray
    others: np.ndarray
    prepared: _Prepared
    held_out: np.ndarray

    def predictions(self, labels: np.ndarray) -> np.ndarray:
        """Predictions for the fold at each of `STRENGTHS`, float64 (S, m, K)."""
        known = labels[self.others]
        mean = known.mean(axis=0)
        rotated = self.prepared.rotated(known, mean)
        projected = self.held_out.astype(np.float64) @ self.prepared.axes
        values = self.prepared.values
        return np.stack([projected @ (rotated / (values + p)[:, None]) + mean for p in self.prepared.penalties])


class Predictor:
    """Predicts labels of each chip from chips of other places: ridge regression, out of fold."""

    def __init__(self, features: np.ndarray, folds: np.ndarray) -> None:
        """Prepare the folds.

        Args:
            features: float32 (N, D).
            folds: int64 (N,).
        """
        self._features, self._folds = features, folds

    @cached_property
    def _parts(self) -> tuple[_Fold, ...]:
        return tuple(_fold(self._features, self._folds == number) for number in np.unique(self._folds))

    def at_all_strengths(self, labels: np.ndarray) -> np.ndarray:
        """Predictions out of fold at each of `STRENGTHS`, float64 (S, N, K)."""
        found = np.empty((len(STRENGTHS), *labels.shape))
        for part in self._parts:
            found[:, part.rows] = part.predictions(labels)
        return found

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Predictions out of fold, float64 (N, K), at the strength whose squared error is least over all folds."""
        found = self.at_all_strengths(labels)
        best: np.ndarray = found[_best(found, labels)]
        return best

    def shares(self, shares: np.ndarray) -> np.ndarray:
        """Predicted shares out of fold, float64 (N, K), none below 0, rows sum to 1."""
        return as_shares(self(shares))

    def linears(self, labels: np.ndarray) -> dict[int, "Linear"]:
        """By fold, what all others teach, at the strength that is best over all folds: for vectors that were not given."""
        chosen = self.strength(labels)
        numbers = (int(self._folds[part.rows[0]]) for part in self._parts)
        return {
            fold: part.prepared.linear(labels[part.others], chosen)
            for fold, part in zip(numbers, self._parts, strict=True)
        }

    def strength(self, labels: np.ndarray) -> int:
        """Which of `STRENGTHS` predicts labels of held-out places best."""
        return _best(self.at_all_strengths(labels), labels)


def _best(found: np.ndarray, labels: np.ndarray) -> int:
    return int(((found - labels) ** 2).mean(axis=(1, 2)).argmin())


def _fold(features: np.ndarray, held_out: np.ndarray) -> _Fold:
    rows, others = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    prepared = _Prepared.of(features[others])
    inside = ((features[rows] - prepared.centre) / prepared.scale).astype(np.float32)
    return _Fold(rows, others, prepared, inside)


@dataclass(frozen=True)
class Linear:
    """A linear function of vectors: ``vectors @ weights + intercept``.

    Attributes:
        weights: float32 (D, K).
        intercept: float32 (K,).
    """

    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Values float32 (..., K) of vectors (..., D)."""
        found: np.ndarray = vectors @ self.weights + self.intercept
        return found


def fit(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Linear:
    """Ridge regression on all chips, at the strength that is best out of fold.

    Args:
        features: float32 (N, D).
        labels: float64 (N, K).
        folds: int64 (N,), by which the strength is chosen; where there is one fold only, the middle one is taken.
    """
    several = len(np.unique(folds)) > 1
    chosen = Predictor(features, folds).strength(labels) if several else len(STRENGTHS) // 2
    return _Prepared.of(features).linear(labels, chosen)


def as_shares(values: np.ndarray) -> np.ndarray:
    """Values (..., K) as shares: negative ones become 0, those of a chip sum to 1."""
    positive = np.maximum(values, 1e-6)
    shares: np.ndarray = positive / positive.sum(axis=-1, keepdims=True)
    return shares
