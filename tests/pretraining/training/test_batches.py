"""Which chips make up which batch, and reading them ahead."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import checkpointed_config

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.batch_order import ShardWindows, batch_rows
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.batches import Batch, prefetched
from geokr_core.pretraining.training.loop import reading

NUM_CHIPS = 96


def test_every_chip_comes_once_an_epoch_in_another_order() -> None:
    rows = np.arange(100, 110)
    seen = np.concatenate([batch_rows(rows, 4, seed=0, step=step) for step in range(1, 11)])
    epochs = seen.reshape(4, 10)
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(batch_rows(rows, 4, seed=1, step=1), seen[:4])


def test_windows_keep_reading_local_and_leave_no_chip_out() -> None:
    shards = np.repeat(np.arange(12), [5, 30, 1, 17, 8, 8, 40, 2, 9, 9, 9, 12])  # of any length
    rows, windows = 1000 + np.arange(150), ShardWindows(shards, window_chips=40)
    epoch = batch_rows(rows, 150, 0, 1, windows)
    assert sorted(epoch) == rows.tolist()
    assert not np.array_equal(epoch, batch_rows(rows, 150, 0, 2, windows))
    read = shards[epoch - 1000]
    spans = [int(np.ptp(np.flatnonzero(read == shard))) + 1 for shard in range(12)]
    assert max(spans) <= 40 + 39  # never further apart than a window and what its last shard may add
    even = ShardWindows(np.repeat(np.arange(8), 30), window_chips=40).order(0, 0) // 30
    assert [len(set(even[k : k + 60])) for k in range(0, 240, 60)] == [2, 2, 2, 2]  # filled up before the next begins
    assert len(set(read[:20])) > 1  # a window mixes shards
    batches = np.concatenate([batch_rows(rows, 15, 0, step, windows) for step in range(1, 11)])
    assert np.array_equal(batches, epoch)  # batches are cut from the epoch: a resumed run goes on with the same ones


def test_a_run_in_windows_reads_few_shards_at_a_time(data: LevirKR, tmp_path: Path) -> None:
    read: dict[int | None, int] = {}
    for window_chips in (None, 8):
        (run,) = runs_of(checkpointed_config(shuffle_window_chips=window_chips, batch_size=8), data, tmp_path / "ck")
        rows = reading(run)(1).rows
        read[window_chips] = len(np.unique(data.shard_of_row[rows]))
    assert read[8] < (read[None] or 0)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    assert np.bincount(batch_rows(np.arange(3), 7, seed=0, step=1)).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def _batch(step: int) -> Batch:
    return Batch(step, np.array([step]), torch.zeros(1), None, 0.0)


def test_the_next_batch_is_read_while_this_one_is_used() -> None:
    read_two = threading.Event()

    def read(step: int) -> Batch:
        if step == 2:
            read_two.set()
        return _batch(step)

    with prefetched(read, 1, 3) as batches:
        assert next(batches).step == 1
        assert read_two.wait(timeout=10)
        assert [batch.step for batch in batches] == [2, 3]


def test_what_the_reader_raises_reaches_the_loop() -> None:
    def read(step: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return _batch(step)

    with prefetched(read, 1, 3) as batches:
        next(batches)
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
