"""Land cover averaged over squares of ground: what stays, what is mixed, and who learns from it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from short_runs import checkpointed_config

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.coarsening import averaged_over_squares
from geokr_core.pretraining.labels import labels_of_data
from geokr_core.pretraining.runs import runs_of
from geokr_core.rasters.grid import METRES_PER_DEGREE
from geokr_core.testing import make_levir_kr

CELL_M = 80.0


def _chips(lon: object, lat: object, product: object = "a") -> pd.DataFrame:
    """Chips of 8 x 8 cells of 80 m with their centres at these degrees."""
    return pd.DataFrame({"lon": lon, "lat": lat, "product": product, "gsd_m": 10.0})


def _cells(count: int, seed: int = 0) -> np.ndarray:
    shares = np.random.default_rng(seed).dirichlet(np.ones(3), (count, 8, 8))
    return np.floor(shares * 255).astype(np.uint8)


def test_squares_of_two_cells_are_means_of_two_by_two() -> None:
    cells = _cells(1)
    middle = 4 * CELL_M / METRES_PER_DEGREE  # the chip's lower left corner lies at 0, 0
    found = averaged_over_squares(_chips([middle], [middle]), cells, 64, 2 * CELL_M)
    pairs = cells.reshape(4, 2, 4, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_array_equal(found[0], np.rint(pairs).repeat(2, axis=0).repeat(2, axis=1))


def test_rows_run_southwards_and_columns_eastwards() -> None:
    # The second chip lies one chip to the east: its western half shares squares of four cells with the eastern half of the first.
    chip_deg = 8 * CELL_M / METRES_PER_DEGREE
    cells = np.zeros((2, 8, 8, 1), np.uint8)
    cells[0, :4, 4:] = 200  # north-eastern quarter of the first
    found = averaged_over_squares(_chips([0.0, chip_deg], [chip_deg / 2] * 2), cells, 64, 8 * CELL_M)
    # Squares end at longitude 0, the first chip's middle: its eastern half and the western half of the second lie in one.
    assert (found[0, :, :4] == 0).all()
    assert (found[0, :, 4:] == 50).all()
    assert (found[1, :, :4] == 50).all()
    assert (found[1, :, 4:] == 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 1e5), st.floats(-80, 80), st.floats(-179, 179))
def test_the_mean_of_all_cells_stays_and_nothing_leaves_its_range(
    seed: int, side_m: float, lat: float, lon: float
) -> None:
    rng = np.random.default_rng(seed)
    cells = _cells(9, seed)
    chips = _chips(lon + rng.uniform(-0.05, 0.05, 9), lat + rng.uniform(-0.05, 0.05, 9), rng.choice(["a", "b"], 9))
    found = averaged_over_squares(chips, cells, 64, side_m)
    for product in ("a", "b"):
        mine = (chips["product"] == product).to_numpy()
        if mine.any():
            before, after = (part[mine].mean(axis=(0, 1, 2)) for part in (cells, found))
            np.testing.assert_allclose(after, before, atol=0.5)
            assert (found[mine].max(axis=(0, 1, 2)) <= cells[mine].max(axis=(0, 1, 2))).all()
            assert (found[mine].min(axis=(0, 1, 2)) >= cells[mine].min(axis=(0, 1, 2))).all()


def test_squares_smaller_than_cells_change_nothing_and_large_ones_leave_one_value_a_product() -> None:
    cells = _cells(6)
    chips = _chips(np.linspace(77.001, 77.04, 6), 28.6, ["a", "a", "a", "b", "b", "b"])
    np.testing.assert_array_equal(averaged_over_squares(chips, cells, 64, 20.0), cells)
    found = averaged_over_squares(chips, cells, 64, 2e6)
    assert len(np.unique(found.reshape(6, 64, 3), axis=1)[0]) == 1
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 2


def test_only_the_training_chips_are_averaged(data: LevirKR) -> None:
    train, validation = data.rows_of("train"), data.rows_of("validation")
    recipe = checkpointed_config(label_resolution_m=5e6).recipe("geokr")
    labels = labels_of_data(data, train, recipe, 0)
    assert labels.cells is not None
    assert np.array_equal(labels.proportions[validation], data.proportions[validation])
    assert np.array_equal(labels.cells[validation], data.cells(validation))
    one = data.catalogue.iloc[train]["product"] == data.catalogue.iloc[train]["product"].iloc[0]
    alike = labels.proportions[train][one.to_numpy()]
    np.testing.assert_allclose(alike, alike[:1].repeat(len(alike), axis=0), atol=1e-6)
    np.testing.assert_allclose(alike.sum(axis=1), 1.0, atol=1e-6)


def test_a_run_reads_the_averaged_cells_and_shuffles_them_with_their_chips(data: LevirKR) -> None:
    config = checkpointed_config(label_resolution_m=5e6, variants=("geokr", "shuffled"))
    for run in runs_of(config, data, data.folder):
        rows = run.train_rows[:8]
        assert run.label_cells is not None
        assert np.array_equal(run.cells(rows), run.label_cells[run.label_rows[rows]])
        assert not np.array_equal(run.cells(rows), data.cells(rows))


def test_a_data_set_of_whole_chips_is_refused(tmp_path: Path) -> None:
    whole = make_levir_kr(tmp_path, num_chips=32, cells_per_side=0)
    config = checkpointed_config(preset="averaged_teacher", crop_area_fraction=(1.0, 1.0), label_resolution_m=1000.0)
    with pytest.raises(ConfigError, match="label_resolution_m` needs the land cover within chips"):
        list(runs_of(config, whole, whole.folder))
