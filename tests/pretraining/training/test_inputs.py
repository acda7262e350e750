"""The label follows the crop that both networks see."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import inputs_at, short_config, short_run

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.augmentation import cells_under
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.training.loop import (
    reading,
)
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def whole_chips(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=32, chip_size_px=32, cells_per_side=0)


def test_the_label_is_that_of_the_crop_that_both_networks_see(data: LevirKR) -> None:
    run = short_run(data)
    seen = inputs_at(run)
    assert seen.cells is not None
    assert seen.geometry.boxes is not None
    shares = cells_under(seen.cells, seen.geometry, 1)[:, 0, 0]
    torch.testing.assert_close(seen.labels, shares / shares.sum(dim=1, keepdim=True))
    own = run.labels[torch.from_numpy(reading(run)(1).rows)]
    assert float((seen.labels - own).abs().sum(dim=1).median()) > 0.05
    for one, other in zip(seen.student.flatten(1), seen.teacher.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.8


def test_where_the_label_stays_the_crop_keeps_the_chips_own(data: LevirKR) -> None:
    run = short_run(data, label_follows_crop=False)
    seen = inputs_at(run)
    rows = torch.from_numpy(reading(run)(1).rows)
    assert seen.cells is None
    assert torch.equal(seen.labels, run.labels[rows])


def test_shuffled_labels_bring_the_land_cover_within_their_chip_along(data: LevirKR) -> None:
    run = short_run(data, "shuffled", crop_area_fraction=(0.9, 1.0))
    batch = reading(run)(1)
    assert batch.cells is not None
    expected = data.cells(run.label_rows[batch.rows])
    assert expected is not None
    assert np.array_equal(batch.cells.numpy(), expected)
    assert not np.array_equal(expected, data.cells(batch.rows))


def test_a_crop_counts_less_the_less_of_it_is_known_and_the_fewer_cells_voted(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=64, unknown_columns=4)
    run = short_run(store, batch_size=64, label_weighting=True)
    seen = inputs_at(run)
    assert seen.weights is not None
    assert seen.cells is not None
    assert seen.geometry.boxes is not None
    known = cells_under(seen.cells, seen.geometry, 1)[:, 0, 0].sum(dim=1)
    assert float(torch.corrcoef(torch.stack([known, seen.weights]))[0, 1]) > 0.98
    box = seen.geometry.boxes
    # Half of each chip is unknown; with 290 voting cells a chip, a crop's number of cells hardly matters.
    torch.testing.assert_close(
        seen.weights, run.weights[torch.from_numpy(reading(run)(1).rows)] * known / 0.5, rtol=0.05, atol=0.01
    )  # type: ignore[index]
    few = replace(run, num_cells=torch.full_like(run.num_cells, 4.0))
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    ratio = inputs_at(few).weights / seen.weights  # type: ignore[operator]
    torch.testing.assert_close(ratio, area * 8 / (area * 4 + 4), rtol=0.05, atol=0.01)


def test_ground_of_which_nothing_is_known_teaches_nothing(tmp_path: Path) -> None:
    store = make_levir_kr(tmp_path, num_chips=24, unknown_columns=8)
    seen = inputs_at(short_run(store))
    assert float(seen.labels.abs().max()) == 0.0
    assert bool(torch.isfinite(seen.labels).all())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, r"label_follows_crop.*cells\.npy.*crop_area_fraction"),
        (
            {"variants": ("geokr", "dense"), "crop_area_fraction": (1.0, 1.0)},
            r"variant dense.*dense_weight.*cells\.npy",
        ),
    ],
)
def test_land_cover_within_chips_that_is_not_there_is_refused(
    changes: dict[str, Any], complaint: str, whole_chips: LevirKR, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        pretrain(short_config(**changes), whole_chips.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())


@pytest.mark.parametrize(
    "changes", [{"crop_area_fraction": (1.0, 1.0)}, {"label_follows_crop": False}, {"preset": "paper"}]
)
def test_whole_chips_are_enough_for_what_asks_for_no_more(changes: dict[str, Any], whole_chips: LevirKR) -> None:
    assert inputs_at(short_run(whole_chips, **changes)).cells is None
