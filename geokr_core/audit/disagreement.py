"""What the images say that the map should show, learned where a chip is not, and how far the map is from it.

Shares are float64 (N, K), rows sum to 1. Folds are int64 (N,): no place has chips in two of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from geokr_core.embeddings.regression import Predictor, place_folds
from geokr_core.errors import AuditError

LEAST_EXPLAINED: Final = 0.1
"""Share of the map's spread below which image and map have next to nothing to do with each other."""

_LEAST_SCORE: Final = 1e-6
"""Floor of a score whose logarithm is taken: no residual at all."""

LEAST_RESIDUAL: Final = 0.02
"""Floor of an expected residual: less than what counting and stretching move anyway."""


def folds_by_place(lon: np.ndarray, lat: np.ndarray, place_size_deg: float, num_folds: int) -> np.ndarray:
    """Which fold each chip is in; see `place_folds`.

    Raises:
        AuditError: there are not enough places that any could be held out.
    """
    folds = place_folds(lon, lat, place_size_deg, num_folds)
    if len(np.unique(folds)) < 2:
        num_places = len(np.unique(np.floor(np.stack([lon, lat], axis=1) / place_size_deg), axis=0))
        raise AuditError(
            f"All {len(lon)} chips lie in {num_places} place(s) of {place_size_deg:g} degrees, which fall into one fold: no place "
            "can be held out. Lower `map_audit.place_size_deg`, or audit more scenes."
        )
    return folds


@dataclass(frozen=True)
class Disagreement:
    """How far the map is from what the images say.

    Attributes:
        predicted: float64 (N, K), shares that the images say, out of fold.
        residual: float64 (N,), sum of absolute differences to the map's shares, 0 to 2.
        expected: float64 (N,), residual of chips with such a prediction, out of fold; of several networks the one that residual and score
            amount to.
        score: float64 (N,), residual over expected residual.
        explained: share of the map's spread that the images explain, at most 1: 1 less the mean residual over that of giving every chip
            the mean of the other places. Around 0 where image and map have nothing to do with each other.
    """

    predicted: np.ndarray
    residual: np.ndarray
    expected: np.ndarray
    score: np.ndarray
    explained: float

    @property
    def order(self) -> np.ndarray:
        """Chips by score, the largest first; equal ones in their order."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True)
class ChipJudge:
    """One network or several that judge chips, prepared once for any map.

    Attributes:
        predictors: one a network, on the vectors of the same chips and the same folds.
        folds: int64 (N,).
    """

    predictors: tuple[Predictor, ...]
    folds: np.ndarray

    @classmethod
    def of(cls, features: Sequence[np.ndarray], folds: np.ndarray) -> "ChipJudge":
        """Prepare it.

        Args:
            features: of each network float32 (N, D).
            folds: int64 (N,).
        """
        return cls(tuple(Predictor(one, folds) for one in features), folds)

    def __call__(self, shares: np.ndarray) -> Disagreement:
        """Score every chip.

        Several networks say what the mean of their predictions is, and a chip's score is the geometric mean of its scores: one
        that a single network finds strange is not at the head of the list.

        Args:
            shares: float64 (N, K), the map's.
        """
        found = [disagreement(one, shares, self.folds) for one in self.predictors]
        if len(found) == 1:
            return found[0]
        predicted = np.mean([one.predicted for one in found], axis=0)
        residual = np.abs(predicted - shares).sum(axis=1)
        score = np.exp(np.mean([np.log(np.maximum(one.score, _LEAST_SCORE)) for one in found], axis=0))
        return Disagreement(predicted, residual, residual / score, score, _explained(residual, shares, self.folds))


def disagreement(predictor: Predictor, shares: np.ndarray, folds: np.ndarray) -> Disagreement:
    """Score every chip by one network.

    Args:
        predictor: prepared on the chips' features and the same folds.
        shares: float64 (N, K), the map's.
        folds: int64 (N,).
    """
    predicted = predictor.shares(shares)
    residual = np.abs(predicted - shares).sum(axis=1)
    expected = np.maximum(_expected(predicted, residual, folds), LEAST_RESIDUAL)
    return Disagreement(predicted, residual, expected, residual / expected, _explained(residual, shares, folds))


def _explained(residual: np.ndarray, shares: np.ndarray, folds: np.ndarray) -> float:
    by_mean = np.abs(_means_of_others(shares, folds) - shares).sum(axis=1).mean()
    return 1.0 - float(residual.mean()) / max(float(by_mean), 1e-12)


def _means_of_others(shares: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """For each chip the mean shares of the chips of all other folds, float64 (N, K)."""
    means = np.empty_like(shares)
    for fold in np.unique(folds):
        means[folds == fold] = shares[folds != fold].mean(axis=0)
    return means


def _expected(predicted: np.ndarray, residual: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Residual that a prediction comes with, learned out of fold: mixed ground is harder to tell than pure."""
    found: np.ndarray = Predictor(told_by(predicted), folds)(without_errors(residual)[:, None])[:, 0]
    return found


def told_by(predicted: np.ndarray) -> np.ndarray:
    """What of a prediction tells how far off it will be, float32 (N, M): shares, how mixed they are, products of two."""
    entropy = -(predicted * np.log(predicted)).sum(axis=1, keepdims=True)
    ordered = np.sort(predicted, axis=1)[:, ::-1][:, :2]
    products = [predicted[:, [i]] * predicted[:, [j]] for i in range(predicted.shape[1]) for j in range(i + 1)]
    return np.hstack([predicted, entropy, ordered, *products]).astype(np.float32)


def without_errors(residual: np.ndarray) -> np.ndarray:
    """Residuals cut off at their 95th percentile: what is expected is not to be raised by the errors that are looked for."""
    cut: np.ndarray = np.minimum(residual, np.quantile(residual, 0.95))
    return cut


def largest_move(mapped: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which class the map has too much of, and which too little, chip by chip."""
    surplus = mapped - predicted
    return [classes[k] for k in surplus.argmax(axis=1)], [classes[k] for k in surplus.argmin(axis=1)]
