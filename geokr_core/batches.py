"""Which chips make up which batch, and reading them one batch ahead. Augmentation is in ``augment``.

The order is a pure function of seed and step, so a resumed run goes on with the very batch the killed one was at.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from geokr_core.levir_kr import LevirKR


@dataclass(frozen=True)
class Batch:
    """Chips of one training step.

    Attributes:
        step: the step, counted from 1.
        rows: int64 (B,) row numbers in Levir-KR's catalogue.
        images: uint8 (B, H, W, C) on the CPU, pinned if asked for.
        cells: uint8 (B, n, n, K), land cover of each chip's parts, likewise; None where it is not asked for.
        wait_s: seconds that the training loop stood still for it.
    """

    step: int
    rows: np.ndarray
    images: Tensor
    cells: Tensor | None
    wait_s: float


@dataclass(frozen=True, eq=False)
class Windows:
    """Chips shuffled within windows of whole shards, for data that memory cannot hold.

    A shuffle of all chips reads every shard of an archive in every batch, from all over the disk. Here the shards of an
    epoch are shuffled, filled one after the other into windows, and the chips of a window are shuffled: what is being
    read at a time is one window. Shards may be of any length: a window takes shards until it is full.

    Attributes:
        shards: int64 (N,), the shard of each training chip.
        window_chips: chips of a window; its last shard may exceed it.
    """

    shards: np.ndarray
    window_chips: int

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Places of each shard's chips among the training chips."""
        order = np.argsort(self.shards, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.shards[order])) + 1)

    @lru_cache(maxsize=2)  # noqa: B019  # two epochs at most, and a run has one such object
    def order(self, seed: int, epoch: int) -> np.ndarray:
        """int64 (N,): places of the training chips in the order of an epoch."""
        rng = np.random.default_rng([seed, epoch])
        shards = [self._places[k] for k in rng.permutation(len(self._places))]
        windows: list[list[np.ndarray]] = [[]]
        for places in shards:
            if sum(map(len, windows[-1])) >= self.window_chips:
                windows.append([])
            windows[-1].append(places)
        return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])


def batch_rows(
    train_rows: np.ndarray, batch_size: int, seed: int, step: int, windows: Windows | None = None
) -> np.ndarray:
    """Rows of one training step: epochs are seeded permutations, laid end to end and cut into batches.

    No chip is ever left out, and none comes an (n+1)-th time before all came n times.

    Args:
        train_rows: int64 (N,) rows to draw from.
        batch_size: rows wanted; may exceed N.
        seed: of the run.
        step: counted from 1.
        windows: shuffle within windows of shards; None: over all chips.

    Returns:
        int64 (batch_size,).
    """
    positions = np.arange((step - 1) * batch_size, step * batch_size)
    epochs, places = np.divmod(positions, len(train_rows))
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        order = _permutation(len(train_rows), seed, int(epoch)) if windows is None else windows.order(seed, int(epoch))
        rows[mine] = train_rows[order[places[mine]]]
    return rows


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def reader(
    data: LevirKR,
    rows_of: Callable[[int], np.ndarray],
    *,
    pinned: bool = False,
    label_rows: np.ndarray | None = None,
) -> Callable[[int], Batch]:
    """A function that reads the batch of a step.

    Args:
        data: the frozen data set.
        rows_of: rows of a step's chips, see `batch_rows`.
        pinned: put images into page-locked memory, from which a GPU can fetch them beside its work.
        label_rows: int64 (N,), for each chip of the catalogue the one whose land cover it gets; None: read no cells.

    Returns:
        Step (from 1) → batch, with ``wait_s`` 0.
    """

    def read(step: int) -> Batch:
        rows = rows_of(step)
        images = torch.from_numpy(data.images(rows))
        parts = None if label_rows is None else data.cells(label_rows[rows])
        cells = None if parts is None else torch.from_numpy(parts)
        if pinned:
            images, cells = images.pin_memory(), None if cells is None else cells.pin_memory()
        return Batch(step, rows, images, cells, 0.0)

    return read


@contextmanager
def prefetched(read: Callable[[int], Batch], first: int, last: int) -> Iterator[Iterator[Batch]]:
    """Read batches in one background thread, always one ahead.

    A thread and not processes: reading is one memory copy a shard, which costs less than handing it between
    processes would.

    Args:
        read: reads the batch of a step.
        first: first step.
        last: last step, inclusive.

    Yields:
        The batches in order. Whatever ``read`` raises is raised where its batch is due.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-chips") as thread:

        def batches() -> Iterator[Batch]:
            coming = thread.submit(read, first)
            for step in range(first, last + 1):
                asked = time.perf_counter()
                batch = coming.result()
                wait_s = time.perf_counter() - asked
                if step < last:
                    coming = thread.submit(read, step + 1)
                yield replace(batch, wait_s=wait_s)

        yield batches()
