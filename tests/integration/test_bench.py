"""The benchmarks of learning run and measure what they say, at a size at which their figures mean nothing."""

from pathlib import Path

import pytest

from geokr_core.bench.loader import bench_loader
from geokr_core.bench.pretrain import Scale, bench_pretrain

TINY = Scale("squeezenet1_1", 32, 8, steps=1, rounds=2, matrix_size=64, matrix_products=2, workers=0)


def test_pretraining_is_measured_against_its_rivals(tmp_path: Path) -> None:
    found = bench_pretrain(tmp_path, TINY)
    details = found.details
    assert found.n == 16
    assert 0.1 < found.ratio < 10
    assert details["images_per_s"] > 0
    assert details["projected_hours"] == pytest.approx(14_319_500 / details["images_per_s"] / 3600)
    shares = [value for name, value in details.items() if name.startswith("share_")]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1.0)
    assert details["mfu"] > 0


def test_waiting_for_data_is_a_share_of_the_time(tmp_path: Path) -> None:
    found = bench_loader(tmp_path, num_chips=64, batch_size=16)
    assert 0 <= found.ratio < 1
    assert found.details["share_of_memcpy"] > 0
