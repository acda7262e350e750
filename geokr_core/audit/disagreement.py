"""What the images say that the map should show, learned where a chip is not, and how far the map is from it.

Shares are float64 (N, K), rows sum to 1. Folds are int64 (N,): no place has chips in two of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from geokr_core.errors import AuditError
from geokr_core.step.digests import text_digest

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, as shares of the mean eigenvalue of the features' products."""

_LEAST_RESIDUAL: Final = 0.02
"""Floor of an expected residual: less than what counting and stretching move anyway."""


def folds_by_place(lon: np.ndarray, lat: np.ndarray, place_size_deg: float, num_folds: int) -> np.ndarray:
    """Which fold each chip is in, by the hash of its place: scenes elsewhere move no chip.

    Args:
        lon: float (N,), degrees.
        lat: float (N,), degrees.
        place_size_deg: size of the cells that are held out together.
        num_folds: how many.

    Raises:
        AuditError: there are not enough places that any could be held out.
    """
    cells = np.floor(np.stack([lon, lat], axis=1) / place_size_deg).astype(int)
    unique, inverse = np.unique(cells, axis=0, return_inverse=True)
    hashed = np.array([int(text_digest([int(x), int(y)])[:8], 16) for x, y in unique])
    folds = (hashed % num_folds)[inverse.ravel()]
    if len(np.unique(folds)) < 2:
        raise AuditError(
            f"All {len(lon)} chips lie in {len(unique)} place(s) of {place_size_deg:g} degrees, which fall into one fold: no place "
            "can be held out. Lower `map_audit.place_size_deg`, or audit more scenes."
        )
    return folds


@dataclass(frozen=True)
class _Fold:
    """Ridge regression of one fold, ready for any labels: what depends on features alone is computed once.

    Attributes:
        rows: int64, chips of the fold.
        others: int64, all others.
        centred: float32 (M, D), features of the others, less their mean, over their deviation.
        held_out: float32 (m, D), features of the fold, likewise.
        values: float64 (D,), eigenvalues of the products of the features.
        axes: float64 (D, D), their eigenvectors.
    """

    rows: np.ndarray
    others: np.ndarray
    centred: np.ndarray
    held_out: np.ndarray
    values: np.ndarray
    axes: np.ndarray

    def predictions(self, labels: np.ndarray) -> np.ndarray:
        """Predictions for the fold at each of `STRENGTHS`, float64 (S, m, K)."""
        known = labels[self.others]
        mean = known.mean(axis=0)
        rotated = self.axes.T @ (self.centred.T @ (known - mean).astype(np.float32)).astype(np.float64)
        projected = self.held_out.astype(np.float64) @ self.axes
        penalties = np.asarray(STRENGTHS) * self.values.mean()
        return np.stack([projected @ (rotated / (self.values + p)[:, None]) + mean for p in penalties])


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

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Predictions out of fold, float64 (N, K), at the strength whose squared error is least over all folds."""
        found = np.empty((len(STRENGTHS), *labels.shape))
        for part in self._parts:
            found[:, part.rows] = part.predictions(labels)
        errors = ((found - labels) ** 2).mean(axis=(1, 2))
        best: np.ndarray = found[int(errors.argmin())]
        return best

    def shares(self, shares: np.ndarray) -> np.ndarray:
        """Predicted shares out of fold, float64 (N, K), none below 0, rows sum to 1."""
        return as_shares(self(shares))


def _fold(features: np.ndarray, held_out: np.ndarray) -> _Fold:
    rows, others = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    known = features[others]
    centre, scale = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    scale[scale <= 1e-7 * np.maximum(np.abs(centre), 1e-7)] = np.inf
    centred = ((known - centre) / scale).astype(np.float32)
    values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    inside = ((features[rows] - centre) / scale).astype(np.float32)
    return _Fold(rows, others, centred, inside, np.maximum(values, 0.0), axes)


def as_shares(values: np.ndarray) -> np.ndarray:
    """Values as shares: negative ones become 0, rows sum to 1."""
    positive = np.maximum(values, 1e-6)
    shares: np.ndarray = positive / positive.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Disagreement:
    """How far the map is from what the images say.

    Attributes:
        predicted: float64 (N, K), shares that the images say, out of fold.
        residual: float64 (N,), sum of absolute differences to the map's shares, 0 to 2.
        expected: float64 (N,), residual of chips with such a prediction, out of fold.
        score: float64 (N,), residual over expected residual.
    """

    predicted: np.ndarray
    residual: np.ndarray
    expected: np.ndarray
    score: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Chips by score, the largest first; equal ones in their order."""
        return np.argsort(-self.score, kind="stable")


def disagreement(predictor: Predictor, shares: np.ndarray, folds: np.ndarray) -> Disagreement:
    """Score every chip.

    Args:
        predictor: prepared on the chips' features and the same folds.
        shares: float64 (N, K), the map's.
        folds: int64 (N,).
    """
    predicted = predictor.shares(shares)
    residual = np.abs(predicted - shares).sum(axis=1)
    expected = np.maximum(_expected(predicted, residual, folds), _LEAST_RESIDUAL)
    return Disagreement(predicted, residual, expected, residual / expected)


def _expected(predicted: np.ndarray, residual: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Residual that a prediction comes with, learned out of fold: mixed ground is harder to tell than pure."""
    entropy = -(predicted * np.log(predicted)).sum(axis=1, keepdims=True)
    ordered = np.sort(predicted, axis=1)[:, ::-1][:, :2]
    products = [predicted[:, [i]] * predicted[:, [j]] for i in range(predicted.shape[1]) for j in range(i + 1)]
    told = np.hstack([predicted, entropy, ordered, *products]).astype(np.float32)
    # The median chip is what is expected, not the mean, which the errors that are looked for would raise.
    limit = np.quantile(residual, 0.95)
    found: np.ndarray = Predictor(told, folds)(np.minimum(residual, limit)[:, None])[:, 0]
    return found


def largest_move(mapped: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which class the map has too much of, and which too little, chip by chip."""
    surplus = mapped - predicted
    return [classes[k] for k in surplus.argmax(axis=1)], [classes[k] for k in surplus.argmin(axis=1)]
