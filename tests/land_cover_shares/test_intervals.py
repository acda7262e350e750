"""Split-conformal intervals cover what they promise, whatever the error looks like."""

import numpy as np
import pytest

from geokr_core.land_cover_shares.intervals import conformal_factors, covered, interval


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_coverage_over_many_draws_is_what_was_promised(confidence: float) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        true = rng.dirichlet(np.full(4, 0.4), 200)
        given = np.clip(true + rng.laplace(0, 0.15, true.shape) * true, 1e-6, None)
        given /= given.sum(axis=1, keepdims=True)
        factors = conformal_factors(given[:100], true[:100], confidence)
        found.append(covered(given[100:], true[100:], factors).mean())
    assert confidence - 0.005 <= np.mean(found) <= confidence + 0.025


def test_too_few_chips_give_intervals_that_say_nothing() -> None:
    shares = np.array([[0.2, 0.8]] * 5)
    factors = conformal_factors(shares, shares[:, ::-1], 0.9)
    assert np.isinf(factors).all()
    low, high = interval(shares, factors)
    assert (low == 0).all()
    assert (high == 1).all()
