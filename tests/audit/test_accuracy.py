"""Accuracy from a judged sample: the published example, the intervals' promise, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from geokr_core.audit.accuracy import accuracy_of
from geokr_core.errors import AuditError

# Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
WEIGHTS = np.array([0.020, 0.015, 0.320, 0.645])


def test_the_published_example_comes_out() -> None:
    found = accuracy_of(COUNTS, WEIGHTS)
    assert round(found.overall.value, 3) == 0.947
    assert round(1.96 * found.overall.standard_error, 3) == 0.018
    assert [round(one.value, 2) for one in found.users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(1.96 * one.standard_error, 2) for one in found.users] == [0.07, 0.10, 0.04, 0.02]
    assert [round(one.value, 2) for one in found.producers] == [0.75, 0.85, 0.93, 0.96]
    # 10 million pixels of 30 m are 900,000 ha, of which 21,158 +- 6,158 ha were deforested.
    assert round(900_000 * found.areas[0].value) == 21158
    assert abs(900_000 * 1.96 * found.areas[0].standard_error - 6158) < 2


def test_two_thousand_simulated_maps_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(0)
    covered, by_truth = np.zeros(4), np.zeros((2, 3))
    for _ in range(2000):
        weights = rng.dirichlet(np.full(3, 2.0))
        truth = np.stack([rng.dirichlet(np.where(np.arange(3) == k, 12.0, 0.7)) for k in range(3)])
        counts = np.stack([rng.multinomial(30, truth[k]) for k in range(3)])
        found = accuracy_of(counts, weights)
        right = float((weights * np.diag(truth)).sum())
        covered[0] += found.overall.low <= right <= found.overall.high
        covered[1:] += [one.low <= truth[k, k] <= one.high for k, one in enumerate(found.users)]
        areas = weights @ truth
        producers = weights * np.diag(truth) / areas
        by_truth[0] += [one.low <= areas[k] <= one.high for k, one in enumerate(found.areas)]
        by_truth[1] += [one.low <= producers[k] <= one.high for k, one in enumerate(found.producers)]
    assert (covered / 2000 >= 0.95).all(), covered / 2000
    assert (by_truth / 2000 >= 0.95).all(), by_truth / 2000


def test_standard_errors_are_the_spread_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    rates = COUNTS / COUNTS.sum(axis=1, keepdims=True)
    samples = [
        np.stack([rng.multinomial(10 * n, row) for n, row in zip(COUNTS.sum(axis=1), rates, strict=True)])
        for _ in range(2000)
    ]
    found = [accuracy_of(sample, WEIGHTS) for sample in samples]
    for k in range(4):
        for said in ("producers", "areas"):
            values = np.array([getattr(one, said)[k].value for one in found])
            errors = np.array([getattr(one, said)[k].standard_error for one in found])
            assert abs(values.std() / errors.mean() - 1) < 0.1, (said, k)


def test_a_map_without_a_found_error_is_not_certain() -> None:
    found = accuracy_of(np.diag([50, 50]), np.array([0.5, 0.5]))
    assert found.overall.value == 1.0
    assert 0.95 < found.overall.low < 0.98
    exact = stats.binomtest(50, 50).proportion_ci(0.95, "exact")
    assert (found.users[0].low, found.users[0].high) == pytest.approx((exact.low, exact.high), rel=1e-9)
    exact = stats.binomtest(66, 75).proportion_ci(0.95, "exact")
    deforested = accuracy_of(COUNTS, WEIGHTS).users[0]
    assert (deforested.low, deforested.high) == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_a_class_without_judgement_is_refused_by_number() -> None:
    with pytest.raises(AuditError, match="such as number 1"):
        accuracy_of(np.array([[5, 0], [1, 0]]), np.array([0.5, 0.5]))
    with pytest.raises(AuditError, match="sum to 0.9"):
        accuracy_of(np.diag([5, 5]), np.array([0.5, 0.4]))
    assert np.isnan(accuracy_of(np.array([[5, 0], [0, 0]]), np.array([1.0, 0.0])).users[1].value)
