"""A scene's shard as it is written: pixels and table, chip after chip. Where it lies is in ``scenes.scene_outputs``."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_COPY_BYTES = 4_000_000
"""Chips are gathered and written in portions of about this size, which fits the processor's cache."""

_SYNC_BYTES = 16_000_000
"""Pixels are sent to the disk in the background whenever so many have come together."""

SCHEMA = pa.schema(
    [
        ("chip_id", pa.string()),
        ("scene_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("pixel_row", pa.int64()),
        ("pixel_col", pa.int64()),
        ("size_px", pa.int64()),
        ("crs_wkt", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("gsd_m", pa.float64()),
        ("acquired", pa.string()),
        ("sensor", pa.string()),
        ("bands", pa.list_(pa.string())),
        ("stretch_low", pa.list_(pa.float64())),
        ("stretch_high", pa.list_(pa.float64())),
        ("land_cover", pa.string()),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        ("footprint", pa.binary()),
        ("valid_fraction", pa.float64()),
        ("dark_fraction", pa.float64()),
        ("saturated_fraction", pa.float64()),
        ("cloud_fraction", pa.float64()),
        ("contrast", pa.float64()),
    ]
)
"""Columns of a shard's table, one row a chip; ``docs/levir-kr.md`` says what they mean."""


class ShardWriter:
    """A shard that is being written; see `new_shard`."""

    def __init__(
        self, pixels: BinaryIO, table: pq.ParquetWriter, syncing: Executor, chip_shape: tuple[int, ...]
    ) -> None:
        """Start a shard of chips of ``chip_shape`` (H, W, C) in an open file and an open table."""
        self._pixels, self._table, self._syncing = pixels, table, syncing
        self._synced: Future[None] | None = None
        self._unsynced_bytes = 0
        self._chip_shape = chip_shape
        self.num_chips = 0
        self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for a longer first axis, so that it can be put right in place.
        shape = (self.num_chips, *self._chip_shape)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._pixels, header)

    def add_pixels(self, line: np.ndarray, columns: np.ndarray) -> None:
        """Write the chips that begin at some columns of a line of chips.

        Args:
            line: uint8 (size, W, C), C-contiguous.
            columns: int (N,), first column of each chip.
        """
        size, width, num_bands = line.shape
        windows = np.lib.stride_tricks.as_strided(
            line,
            (width - size + 1, size, size, num_bands),
            (num_bands, *line.strides),
            writeable=False,
        )
        portion = max(1, _COPY_BYTES // (size * size * num_bands))
        for first in range(0, len(columns), portion):
            self._pixels.write(np.ascontiguousarray(windows[columns[first : first + portion]]).data)
        self.num_chips += len(columns)
        self._unsynced_bytes += len(columns) * size * size * num_bands
        if self._unsynced_bytes > _SYNC_BYTES and (self._synced is None or self._synced.done()):
            self._start_sync()

    def _start_sync(self) -> None:
        """Let the disk begin while the next chips are cut, so that little is left to wait for at the end."""
        if self._synced is not None:
            self._synced.result()
        self._pixels.flush()
        self._synced = self._syncing.submit(os.fsync, self._pixels.fileno())
        self._unsynced_bytes = 0

    def add_rows(self, columns: Mapping[str, Any]) -> None:
        """Write rows of the table: a batch of the columns of `SCHEMA`."""
        self._table.write_table(pa.table(dict(columns), schema=self._table.schema))

    def finish(self) -> None:
        """Put the number of chips into the header."""
        self._pixels.seek(0)
        self._write_header()
        self._pixels.flush()
        if self._synced is not None:
            self._synced.result()


@contextmanager
def new_shard(pixels: Path, table: Path, *, size_px: int, num_bands: int) -> Iterator[ShardWriter]:
    """Write a shard.

    Args:
        pixels: file that gets the chips, as `numpy.save` writes them.
        table: file that gets one row a chip.
        size_px: side of a chip in pixels.
        num_bands: bands of a chip.

    Yields:
        The writer; `ShardWriter.finish` is to be called last.

    Raises:
        OSError: the file system refused.
    """
    with (
        pixels.open("wb") as stream,
        pq.ParquetWriter(table, SCHEMA, compression="zstd") as writer,
        ThreadPoolExecutor(1) as syncing,
    ):
        yield ShardWriter(stream, writer, syncing, (size_px, size_px, num_bands))
