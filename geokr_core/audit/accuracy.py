"""The accuracy of a map from a stratified sample that people judged, by class, with intervals.

Estimators: Olofsson et al. 2014, "Good practices for estimating area and assessing accuracy of land change", Remote Sensing
of Environment 148, equations 4 to 11. Intervals of single strata: Clopper and Pearson 1934, exact. Intervals of
what is summed over strata: Korn and Graubard 1998, the exact interval at the sample size that the stratified design is worth.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from geokr_core.errors import AuditError


@dataclass(frozen=True)
class Estimate:
    """A share with its standard error and its interval.

    Attributes:
        value: 0 to 1; NaN where nothing can be said.
        standard_error: likewise.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """What a judged sample says of a map.

    Attributes:
        overall: share of the ground that the map has right.
        users: by map class: share of that class that is right.
        producers: by reference class: share of that class on the ground that the map shows as such.
        areas: by reference class: its share of the ground.
    """

    overall: Estimate
    users: tuple[Estimate, ...]
    producers: tuple[Estimate, ...]
    areas: tuple[Estimate, ...]


def accuracy_of(counts: np.ndarray, weights: np.ndarray, confidence: float = 0.95) -> Accuracy:
    """Estimate the accuracy of a map.

    Args:
        counts: int (K, K), judged units: rows by map class (the strata), columns by reference class.
        weights: float (K,), share of the map that is of each class; they sum to 1.
        confidence: of the intervals.

    Raises:
        AuditError: a stratum that covers ground has fewer than two judged units, or the weights do not sum to 1.
    """
    _require_sample(counts, weights)
    totals = np.maximum(counts.sum(axis=1), 1)
    rates = counts / totals[:, None]
    joint = weights[:, None] * rates
    spread = weights[:, None] ** 2 * rates * (1 - rates) / np.maximum(totals - 1, 1)[:, None]
    overall, variance = float(np.trace(joint)), float(np.trace(spread))
    users = tuple(_of_stratum(int(n), int(counts[k, k]), confidence) for k, n in enumerate(counts.sum(axis=1)))
    areas = joint.sum(axis=0)
    return Accuracy(
        overall=_korn_graubard(overall, variance, int(counts.sum()), confidence),
        users=users,
        producers=tuple(_producers(k, joint, spread, counts, weights, confidence) for k in range(len(weights))),
        areas=tuple(
            _korn_graubard(float(areas[k]), float(spread[:, k].sum()), int(counts.sum()), confidence)
            for k in range(len(areas))
        ),
    )


def exact_share(events: np.ndarray, totals: np.ndarray, weights: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The share of the ground of which something is true, from a stratified sample.

    Args:
        events: int (K,), units of each stratum of which it is true.
        totals: int (K,), units of each stratum, two or more wherever it covers ground.
        weights: float (K,), share of the ground in each stratum; they sum to 1.
        confidence: of the interval, Korn and Graubard's.
    """
    rates = events / np.maximum(totals, 1)
    spread = weights**2 * rates * (1 - rates) / np.maximum(totals - 1, 1)
    return _korn_graubard(float((weights * rates).sum()), float(spread.sum()), int(totals.sum()), confidence)


def _require_sample(counts: np.ndarray, weights: np.ndarray) -> None:
    if not math.isclose(float(weights.sum()), 1.0, abs_tol=1e-6):
        raise AuditError(f"The shares of the map's classes sum to {weights.sum():g}, expected 1.")
    few = [k for k in range(len(weights)) if weights[k] > 0 and counts[k].sum() < 2]
    if few:
        raise AuditError(
            f"{len(few)} class(es) of the map, such as number {few[0]}, have fewer than two judged units: judge more of "
            "them, or draw a sample that gives every class some."
        )


def _of_stratum(total: int, right: int, confidence: float) -> Estimate:
    if total == 0:
        return Estimate(math.nan, math.nan, 0.0, 1.0)
    value = right / total
    error = math.sqrt(value * (1 - value) / (total - 1)) if total > 1 else math.nan
    return Estimate(value, error, *_exact_interval(right, total, confidence))


def _exact_interval(right: float, total: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval, also of sizes that are no whole numbers."""
    tail, wrong = (1 - confidence) / 2, total - right
    low = 0.0 if right <= 0 else float(special.betaincinv(right, wrong + 1, tail))
    high = 1.0 if wrong <= 1e-12 else float(special.betaincinv(right + 1, wrong, 1 - tail))
    return low, high


def _korn_graubard(value: float, variance: float, total: int, confidence: float) -> Estimate:
    """The exact interval at the effective sample size: it holds its level where nearly everything is right."""
    effective = float(total) if variance <= 0 else min(float(total), value * (1 - value) / variance)
    return Estimate(value, math.sqrt(variance), *_exact_interval(value * effective, effective, confidence))


def _producers(
    k: int,
    joint: np.ndarray,
    spread: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    confidence: float,
) -> Estimate:
    """Equation 7 of Olofsson et al.; its interval counts the units of the reference class."""
    area = float(joint[:, k].sum())
    if area <= 0:
        return Estimate(math.nan, math.nan, 0.0, 1.0)
    value = float(joint[k, k]) / area
    total = max(int(counts[k].sum()), 1)
    right = counts[k, k] / total
    own = weights[k] ** 2 * (1 - value) ** 2 * right * (1 - right) / max(total - 1, 1)
    others = value**2 * float(np.delete(spread[:, k], k).sum())
    return _korn_graubard(value, float(own + others) / area**2, int(counts[:, k].sum()), confidence)
