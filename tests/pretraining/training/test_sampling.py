"""What is seen is in the balance that was asked for, epoch by epoch, and without it nothing changes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from short_runs import short_config, short_run

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.batch_order import WeightedChips, batch_rows
from geokr_core.pretraining.training.loop import reading
from geokr_core.pretraining.training.sampling import shares_of

NUM_CHIPS = 64


def seen_of(proportions: np.ndarray, **changes: object) -> np.ndarray:
    catalogue = pd.DataFrame({"sensor": ["a"] * 6 + ["b"] * 2, "gsd_m": [10.0] * 4 + [11.0] * 2 + [30.0] * 2})
    shares = shares_of(catalogue, proportions, short_config(**changes).recipe())
    assert shares is not None
    assert shares.sum() == pytest.approx(1)
    return shares


MIXED = np.array([[0.6, 0.4]] * 6 + [[0.3, 0.7]] * 2)


@pytest.mark.parametrize("balance", ["class", "sensor", "resolution"])
def test_groups_are_seen_alike_at_full_power_and_half_way_at_half(balance: str) -> None:
    assert seen_of(MIXED, balance=balance)[6:].sum() == pytest.approx(1 / 2)
    half = seen_of(MIXED, balance=balance, balance_power=0.5)[6:].sum()
    assert half == pytest.approx(2**0.5 / (2**0.5 + 6**0.5))
    assert seen_of(MIXED, balance=balance, balance_power=0.0)[6:].sum() == pytest.approx(2 / 8)


def test_chips_of_one_class_are_capped_and_what_is_mixed_takes_their_place() -> None:
    proportions = np.array([[1.0, 0.0]] * 6 + [[0.5, 0.5]] * 2)
    shares = seen_of(proportions, max_pure_fraction=0.4)
    assert shares[:6].sum() == pytest.approx(0.4)
    assert np.ptp(shares[6:]) == 0
    assert seen_of(proportions, max_pure_fraction=0.9)[:6].sum() == pytest.approx(6 / 8)
    assert seen_of(np.ones((8, 1)), max_pure_fraction=0.5) == pytest.approx(1 / 8)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=40), st.integers(0, 5))
def test_an_epoch_is_as_long_as_the_data_and_near_its_shares(weights: list[float], epoch: int) -> None:
    shares = np.array(weights) / np.sum(weights)
    order = WeightedChips(shares).order(0, epoch)
    assert len(order) == len(weights)
    counts = np.bincount(order, minlength=len(weights))
    assert np.all(np.abs(counts - shares * len(weights)) <= 1 + 1e-6)


def test_over_many_epochs_each_chip_comes_as_it_weighs() -> None:
    shares = np.array([0.05, 0.15, 0.3, 0.5])
    drawn = WeightedChips(shares)
    rows = np.concatenate([batch_rows(np.arange(4), 4, 0, step, drawn) for step in range(1, 2001)])
    assert np.bincount(rows) / len(rows) == pytest.approx(shares, abs=0.02)
    assert not np.array_equal(rows[:40], rows[40:80])


def test_a_training_reads_by_its_recipe(data: LevirKR) -> None:
    plain, even = (
        np.concatenate([reading(short_run(data, batch_size=16, **changes))(step).rows for step in range(1, 31)])
        for changes in ({}, {"balance": "class"})
    )

    def spread(rows: np.ndarray) -> float:
        return float(np.bincount(data.proportions[rows].argmax(axis=1), minlength=10).std())

    assert spread(even) < 0.5 * spread(plain)


def test_sensors_without_a_column_cannot_be_balanced(data: LevirKR) -> None:
    assert "sensor" not in data.catalogue
    with pytest.raises(ConfigError, match=r"`balance: sensor` needs to know the sensor"):
        short_run(data, balance="sensor")


def test_balance_and_windows_are_one_too_many() -> None:
    with pytest.raises(ValueError, match=r"`shuffle_window_chips` reads each shard once.*choose one"):
        short_config(balance="class", shuffle_window_chips=8)
