"""Levir-KR as it is read: one data set over all shards, its labels, its split and its statistics.

Not here: freezing it (``levir_kr.freeze``).
"""

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geokr_core.errors import DatasetError, MissingInputError
from geokr_core.levir_kr.catalogue import read_catalogue
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json

CELLS_FILE = "cells.npy"
"""Land cover of squares inside each chip, uint8 (N, n, n, K) in catalogue order; only where it was asked for."""


@dataclass(frozen=True)
class LevirKR:
    """A frozen data set.

    Attributes:
        folder: where ``manifest.json`` and ``catalogue.parquet`` lie.
        manifest: counts, hashes, legend and configuration.
        catalogue: one row a chip, in the order of the scenes, without the columns that only geometry and provenance
            need (`catalogue.HEAVY_COLUMNS`); see ``docs/levir-kr.md``.
    """

    folder: Path
    manifest: Mapping[str, Any]
    catalogue: pd.DataFrame

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `proportions`."""
        return tuple(self.manifest["classes"])

    @property
    def class_colours(self) -> tuple[str, ...]:
        """``#RRGGBB`` of each class."""
        return tuple(self.manifest["class_colours"])

    @property
    def bands(self) -> tuple[str, ...]:
        """Common band names in channel order."""
        return tuple(self.manifest["bands"])

    @property
    def chip_size_px(self) -> int:
        """Side of a chip in pixels."""
        return int(self.manifest["chip_size_px"])

    @property
    def data_version(self) -> str:
        """DVC's hash of the folder."""
        return data_version(self.folder)

    @cached_property
    def proportions(self) -> np.ndarray:
        """float32 (N, K), rows sum to 1: share of each class in the chip's ground of known land cover."""
        columns = [f"fraction_{name}" for name in self.classes]
        return self.catalogue[columns].to_numpy(dtype=np.float32)

    @property
    def channel_mean(self) -> np.ndarray:
        """float32 (C,), mean of the training chips scaled to 0–1."""
        return np.asarray(self.manifest["channel_mean"], dtype=np.float32)

    @property
    def channel_std(self) -> np.ndarray:
        """float32 (C,), standard deviation of the training chips scaled to 0–1."""
        return np.asarray(self.manifest["channel_std"], dtype=np.float32)

    def rows_of(self, split: str) -> np.ndarray:
        """int64 row numbers of ``"train"`` or ``"validation"``."""
        return np.flatnonzero((self.catalogue["split"] == split).to_numpy())

    @cached_property
    def _shard(self) -> Callable[[int], np.ndarray]:
        """Maps a shard into memory by its number; those used least lately are closed again."""
        folder = (self.folder / self.manifest["chips_folder"]).resolve()
        names = list(self.manifest["shards"])
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise DatasetError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing (first: {missing[0]}). "
                "Run `geokr chips`, or `dvc pull` where the data set is versioned elsewhere."
            )

        # A map holds a file descriptor, of which many systems grant a process 1,024: an archive has more scenes.
        @lru_cache(maxsize=max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        def mapped(number: int) -> np.ndarray:
            shard: np.ndarray = np.load(folder / names[number], mmap_mode="r", allow_pickle=False)
            return shard

        return mapped

    @cached_property
    def shard_of_row(self) -> np.ndarray:
        """int64 (N,): number of the shard of each row, in the order of the manifest."""
        order = {name: index for index, name in enumerate(self.manifest["shards"])}
        return self.catalogue["shard"].map(order).to_numpy(dtype=np.int64)

    @cached_property
    def _row_in_shard(self) -> np.ndarray:
        return self.catalogue["row"].to_numpy(dtype=np.int64)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Read chips.

        Args:
            rows: int (B,) row numbers of the catalogue, in any order.

        Returns:
            uint8 (B, H, W, C), bands as in `bands`.

        Raises:
            DatasetError: a shard is missing.
        """
        out = np.empty((len(rows), self.chip_size_px, self.chip_size_px, len(self.bands)), dtype=np.uint8)
        shards, places = self.shard_of_row[rows], self._row_in_shard[rows]
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            out[mine] = self._shard(int(shard))[places[mine]]
        return out

    @property
    def cells_per_side(self) -> int:
        """Sub-cells along each side of a chip in `cells`; 0 where the land cover is known for whole chips only."""
        return int(self.manifest.get("cells_per_side", 0))

    @cached_property
    def _cells(self) -> np.ndarray:
        path = self.folder / "cells.npy"
        if not path.is_file():
            raise DatasetError(
                f"{path}: no such file, though the manifest names {self.cells_per_side} sub-cells a side; run "
                "`geokr levir-kr` again, or `dvc pull` where the data set is versioned elsewhere."
            )
        cells: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = (len(self.catalogue), self.cells_per_side, self.cells_per_side, len(self.classes))
        if cells.shape != expected or cells.dtype != np.uint8:
            raise DatasetError(
                f"{path}: found {cells.dtype} of shape {cells.shape}, expected uint8 of shape {expected}; run "
                "`geokr levir-kr` again."
            )
        return cells

    def cells(self, rows: np.ndarray) -> np.ndarray | None:
        """Land cover within chips: which share of each of n x n equal parts is of which class.

        Args:
            rows: int (B,) row numbers of the catalogue, in any order.

        Returns:
            uint8 (B, n, n, K), fraction x 255, rows and columns as those of the pixels; what is missing to 255 is ground
            of unknown class. None where the data set knows whole chips only.

        Raises:
            DatasetError: the file is missing or of another shape than the manifest says.
        """
        return np.ascontiguousarray(self._cells[rows]) if self.cells_per_side else None


def open_levir_kr(folder: Path) -> LevirKR:
    """Open a frozen data set.

    Raises:
        MissingInputError: there is none in ``folder``.
    """
    if not (folder / "manifest.json").is_file():
        raise MissingInputError(f"{folder}: no frozen Levir-KR there (manifest.json); run `geokr levir-kr` first.")
    return LevirKR(folder, read_json(folder / "manifest.json"), read_catalogue(folder / "catalogue.parquet"))
