"""Batches as they are read: one ahead of the step that uses them.

Their order (``networks.batch_order``) is a pure function of seed and step, so that a resumed run reads the very batch that the
killed one was at. Not here: augmentation (``inputs``).
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geokr_core.levir_kr.dataset import LevirKR


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


def reader(
    data: LevirKR,
    rows_of: Callable[[int], np.ndarray],
    *,
    pinned: bool = False,
    cells_of: Callable[[np.ndarray], np.ndarray | None] | None = None,
) -> Callable[[int], Batch]:
    """A function that reads the batch of a step.

    Args:
        data: the frozen data set.
        rows_of: rows of a step's chips, see `batch_rows`.
        pinned: put images into page-locked memory, from which a GPU can fetch them beside its work.
        cells_of: rows → the land cover of each chip's parts, uint8 (B, n, n, K); None: read no cells.

    Returns:
        Step (from 1) → batch, with ``wait_s`` 0.
    """

    def read(step: int) -> Batch:
        rows = rows_of(step)
        images = torch.from_numpy(data.images(rows))
        parts = None if cells_of is None else cells_of(rows)
        cells = None if parts is None else torch.from_numpy(parts)
        if pinned:
            images, cells = images.pin_memory(), None if cells is None else cells.pin_memory()
        return Batch(step, rows, images, cells, 0.0)

    return read


@contextmanager
def prefetched(read: Callable[[int], Batch], first: int, last: int) -> Iterator[Iterator[Batch]]:
    """Read batches in one background thread, always one ahead.

    A thread and not processes: reading is one memory copy a shard, which costs less than passing it between
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
