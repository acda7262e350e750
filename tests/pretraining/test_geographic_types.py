"""Types of ground: what they are made of, that they are the same each time, and that training tells them apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_runs import inputs_at, short_config, short_run

from geokr_core.errors import ConfigError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.geographic_types import fit_types
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.loop import losses_of, train
from geokr_core.pretraining.training.state import begin
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 96


def _ground(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chips of one class each, in two places a quarter of the globe apart."""
    rng = np.random.default_rng(seed)
    proportions = np.eye(3)[rng.integers(3, size=num)]
    return proportions, rng.choice([0.0, 90.0], num) + rng.normal(0, 0.01, num), rng.normal(0, 0.01, num)


def test_land_cover_and_place_make_types_and_either_can_be_left_out() -> None:
    ground = _ground(600)
    classes, east = ground[0].argmax(axis=1), ground[1] > 45
    for factors, kinds in (((1.0, 1.0), classes * 2 + east), ((1.0, 0.0), classes), ((0.0, 1.0), east)):
        num = len(np.unique(kinds))
        found = fit_types(*ground, num, *factors).of(*ground)
        pairs = np.unique(np.stack([found, kinds.astype(int)]), axis=1)
        assert pairs.shape[1] == num, "each type is one kind of ground, each kind one type"


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_types_are_the_same_each_time_and_none_is_without_a_chip_nearest_to_it(num_types: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ground = rng.dirichlet(np.ones(4), 60), rng.uniform(-180, 180, 60), rng.uniform(-80, 80, 60)
    first, again = (fit_types(*ground, num_types) for _ in range(2))
    np.testing.assert_array_equal(first.centres, again.centres)
    found = first.of(*ground)
    assert found.min() >= 0
    assert found.max() < num_types
    # A whole turn further east is the same place.
    np.testing.assert_array_equal(found, first.of(ground[0], ground[1] + 360.0, ground[2]))


def test_more_types_than_kinds_of_chips_are_as_many_as_there_are_kinds() -> None:
    proportions = np.eye(2)[[0, 1, 0, 1, 0]]
    assert len(fit_types(proportions, np.zeros(5), np.zeros(5), 4).centres) == 2


def test_training_tells_types_apart_and_keeps_their_centres(data: LevirKR, tmp_path: Path) -> None:
    config = short_config(variants=("geokr", {"name": "types", "method": "types", "settings": {"num_types": 4}}))
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    kept = read_json(tmp_path / "out/types-seed0/types.json")
    assert len(kept["centres"]) == 4
    assert kept["columns"][-3:] == ["x", "y", "z"]
    assert len(kept["columns"]) == len(data.classes) + 3
    assert not (tmp_path / "out/geokr-seed0/types.json").exists()
    record = next(run for run in read_json(tmp_path / "out/runs.json") if run["variant"] == "types")
    assert record["validation_kl"] is None, "it predicts no land cover, so that no figure may say it does"


def test_runs_without_types_describe_themselves_as_those_before_there_were_any(data: LevirKR, tmp_path: Path) -> None:
    config = short_config(variants=("geokr", {"name": "types", "method": "types", "settings": {"num_types": 4}}))
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    plain, types = (read_json(tmp_path / f"out/{name}-seed0/run.json")["config"] for name in ("geokr", "types"))
    assert {"types_weight", "num_types"} <= set(types)
    assert not {"types_weight", "num_types", "cell_mean", "contrast_softness", "label_resolution_m"} & set(plain)
    assert (plain["dense_weight"], plain["labels"]) == (0.0, "proportions")


def test_the_loss_falls_below_that_of_guessing_by_how_common_types_are(data: LevirKR) -> None:
    changes = {"num_types": 4, "steps": 60, "batch_size": 32, "learning_rate": 2e-3, "precision": "fp32"}
    run = short_run(data, "types", **changes, checkpoint_every=100)
    assert run.types is not None
    shares = np.bincount(run.types[run.train_rows].numpy(), minlength=4) / len(run.train_rows)
    guessed = -np.sum(shares * np.log(np.maximum(shares, 1e-12)))
    state, _ = train(run, RecordingReporter())
    assert float(state.history[-1]["types_loss"] or 0.0) < 0.8 * guessed


def test_shuffled_types_come_from_the_chip_that_the_label_comes_from(data: LevirKR) -> None:
    own, other = (short_run(data, "types", num_types=6, **change) for change in ({}, {"labels": "shuffled"}))
    assert own.types is not None
    assert other.types is not None
    assert torch.equal(other.types, own.types[torch.from_numpy(other.label_rows)])
    assert not torch.equal(other.types, own.types)


def test_more_types_than_chips_are_refused(data: LevirKR) -> None:
    config = short_config(variants=("geokr", {"name": "types", "method": "types", "settings": {"num_types": 5000}}))
    with pytest.raises(ConfigError, match=r"5000 types of ground of \d+ training chips would leave types empty"):
        list(runs_of(config, data, data.folder))


@pytest.mark.parametrize("method", ["simclr", "distilled"])
def test_what_learns_no_land_cover_has_no_types_whatever_the_section_says(method: str) -> None:
    config = short_config(types_weight=1.0, cell_mean=True, anchor_weight=1.0)
    recipe = config.recipe(method)
    assert (recipe.types_weight, recipe.cell_mean, recipe.has_cell_head) == (0.0, False, False)


def test_a_chip_that_is_the_mean_of_its_cells_learns_its_proportions_alone(data: LevirKR) -> None:
    run = short_run(data, "cell_mean", precision="fp32", batch_size=16)
    state, seen = begin(run), inputs_at(run)
    losses = dict(zip(state.terms, losses_of(run, state, seen, 1).tolist(), strict=True))
    maps = state.student(seen.student).maps
    assert maps is not None
    shares = maps.softmax(dim=1).mean(dim=(2, 3))
    expected = -(seen.labels * shares.log()).sum(dim=1)
    weighed = expected if seen.weights is None else expected * seen.weights
    assert losses["loss"] == pytest.approx(float(weighed.mean().detach()), rel=1e-4)
    assert "dense_loss" not in losses
