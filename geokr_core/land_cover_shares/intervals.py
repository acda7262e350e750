"""Intervals of predicted shares by split-conformal prediction: as wide as errors on held-out places were.

Lei et al. 2018, "Distribution-free predictive inference for regression", section 5.2: the residual is divided by its expected
size, and the interval is the quantile of that over chips that the head has not seen. Its promise holds for chips that are
exchangeable with these, whatever the head.
"""

import math
from typing import Final

import numpy as np

_LEAST_SPREAD: Final = 0.05


def spread(shares: np.ndarray) -> np.ndarray:
    """Expected size of an error, up to a factor: that of a share of mixed ground is larger than of pure ground."""
    found: np.ndarray = np.sqrt(np.clip(shares * (1.0 - shares), 0.0, None)) + _LEAST_SPREAD
    return found


def conformal_factors(predicted: np.ndarray, true: np.ndarray, confidence: float) -> np.ndarray:
    """By how many spreads each class's interval reaches beyond the prediction.

    Args:
        predicted: float (N, K), shares of chips that the head has not seen.
        true: float (N, K), their shares.
        confidence: share of chips that the intervals are to cover.

    Returns:
        float64 (K,); infinite where there are too few chips for the confidence.
    """
    scores = np.sort(np.abs(predicted - true) / spread(predicted), axis=0)
    rank = math.ceil((len(scores) + 1) * confidence)
    if rank > len(scores):
        return np.full(scores.shape[1], math.inf)
    factors: np.ndarray = scores[rank - 1].astype(np.float64)
    return factors


def interval(shares: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the intervals of shares (..., K), within 0 to 1."""
    width = np.minimum(factors, 1.0 / _LEAST_SPREAD) * spread(shares)
    return np.clip(shares - width, 0.0, 1.0), np.clip(shares + width, 0.0, 1.0)


def covered(predicted: np.ndarray, true: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Which shares (N, K) lie within their interval, bool (N, K)."""
    low, high = interval(predicted, factors)
    found: np.ndarray = (true >= low - 1e-9) & (true <= high + 1e-9)
    return found
