"""The benchmarks of learning run and measure what they say, at a size at which their figures mean nothing."""

from pathlib import Path

import pytest
import torch

from geokr_core.bench.archive import status_seconds
from geokr_core.bench.embed import bench_embed
from geokr_core.bench.loader import bench_loader
from geokr_core.bench.methods import bench_methods
from geokr_core.bench.pretrain import Scale, bench_pretrain
from geokr_core.pretraining.network import CellHead, Network, Outputs

TINY = Scale("squeezenet1_1", 32, 8, steps=1, rounds=2, matrix_size=64, matrix_products=2, workers=0)


def test_pretraining_is_measured_against_its_rivals(tmp_path: Path) -> None:
    found = bench_pretrain(tmp_path, TINY)
    details = found.details
    assert found.n == 16
    assert found.ratio > 0
    for name in (
        "images_per_s",
        "factor_over_first_loop",
        "mfu",
        "share_augmenting",
        "share_updating",
    ):
        assert details[name] > 0, name
    assert "projected_hours" not in details  # of chips that are smaller than those as published


def test_every_way_of_training_sees_both_crops_of_each_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    forward = Network.forward

    def counted(network: Network, images: torch.Tensor) -> Outputs:
        seen.add(len(images))
        return forward(network, images)

    monkeypatch.setattr(Network, "forward", counted)
    bench_pretrain(tmp_path, TINY)
    assert seen == {2 * TINY.batch_size}


def test_the_cost_of_a_method_is_told_in_steps_of_contrast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {"simclr": [1.0, 2.0, 4.0], "geokr": [1.5, 2.0, 5.0], "dense": [0.5, 1.0, 3.0]}
    monkeypatch.setattr("geokr_core.bench.methods.interleaved", lambda ways, scale: rounds)
    found = bench_methods(tmp_path, TINY)
    details = found.details
    assert (found.ratio, details["lowest_round"], details["highest_round"]) == (1.25, 1.0, 1.5)
    assert (details["dense"], details["simclr_step_s"]) == (0.5, 2.0)


def test_cells_alone_are_timed_on_half_of_the_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, int]] = set()
    forward = Network.forward

    def counted(network: Network, images: torch.Tensor) -> Outputs:
        learns_cells_alone = network.projection is None and isinstance(network.head, CellHead)
        seen.add((learns_cells_alone, len(images)))
        return forward(network, images)

    monkeypatch.setattr(Network, "forward", counted)
    assert bench_methods(tmp_path, TINY).n == 16
    assert seen == {(True, TINY.batch_size), (False, 2 * TINY.batch_size)}


def test_waiting_for_data_is_a_share_of_the_time(tmp_path: Path) -> None:
    found = bench_loader(tmp_path, num_chips=64, batch_size=16)
    assert 0 <= found.ratio < 1
    assert found.details["share_of_memcpy"] > 0


def test_a_store_of_many_scenes_is_said_to_be_up_to_date(tmp_path: Path) -> None:
    found = status_seconds(tmp_path, 3)
    asked = ("status", "run", "run_one_step")
    assert set(found) == {f"{what}_{unit}_of_3_scenes" for what in asked for unit in ("s", "cpu_s")}
    assert all(value > 0 for value in found.values())


def test_embedding_is_measured_against_a_bare_loop(tmp_path: Path) -> None:
    found = bench_embed(tmp_path, architecture="squeezenet1_1", num_chips=8, num_scenes=2, rounds=1)
    assert found.n == 8
    assert found.ratio > 0
    assert found.details["chips_per_s"] > 0
    assert len(list((tmp_path / "embeddings0").glob("scene*.parquet"))) == 2
