"""Reading chips into the training loop against a copy of as many bytes in memory, and how long training waits for them."""

from pathlib import Path

import numpy as np

from geokr_core.bench.measure import Measurement, seconds
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.batch_order import batch_rows
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.training.batches import prefetched, reader
from geokr_core.testing import make_levir_kr

_SIZE_PX, _NUM_BATCHES = 64, 32
_TRAIN_STEPS = 8


def bench_loader(folder: Path, num_chips: int = 4096, batch_size: int = 128) -> Measurement:
    """Share of the time of training steps in which the loop waits for data: at most the budget.

    Beside it: how fast chips and the land cover within them are read, against a copy of as many bytes in memory.

    Args:
        folder: for what is written meanwhile.
        num_chips: of the data that is read.
        batch_size: chips a step.
    """
    data = make_levir_kr(folder, num_chips=num_chips, chip_size_px=_SIZE_PX, num_scenes=8)
    rows = data.rows_of("train")
    read = reader(data, lambda step: batch_rows(rows, batch_size, 0, step), cells_of=data.cells)
    one = read(1)
    num_bytes = one.images.nbytes + (0 if one.cells is None else one.cells.nbytes)
    source = np.ones((_NUM_BATCHES, num_bytes), np.uint8)  # all of it, so that it is no smaller than the data

    def product() -> None:
        with prefetched(read, 1, _NUM_BATCHES) as batches:
            for _ in batches:
                pass

    def copies() -> None:
        for part in source:
            part.copy()

    ours, bare = seconds(product), seconds(copies)
    return Measurement(
        "loader",
        _waiting(data, folder, batch_size),
        0.03,
        batch_size * _NUM_BATCHES,
        f"{_SIZE_PX} px RGB chips in random order, memory-mapped; share of training steps spent waiting",
        {
            "images_per_s": batch_size * _NUM_BATCHES / ours,
            "memcpy_images_per_s": batch_size * _NUM_BATCHES / bare,
            "share_of_memcpy": bare / ours,
        },
    )


def _waiting(data: LevirKR, folder: Path, batch_size: int) -> float:
    """Share of the time of real training steps in which the loop waited for data."""
    from geokr_core.pretraining.pretrain import pretrain
    from geokr_core.step.reporter import RecordingReporter

    # The fastest network there is: whoever waits for data waits most with it.
    config = PretrainingConfig(
        architecture="squeezenet1_1",
        steps=_TRAIN_STEPS,
        batch_size=batch_size,
        threads=1,
        device="auto",
        examples_every=0,
        compile="off",  # compiling would be counted as time that is not spent waiting
    )
    summary = pretrain(config, data.folder, folder / "out", folder / "checkpoints", RecordingReporter())
    return float(summary.numbers["mean_data_wait_fraction"])
