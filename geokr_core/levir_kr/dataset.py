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
import pyarrow as pa

from geokr_core.errors import DatasetError, MissingInputError
from geokr_core.land_cover.legend import fraction_columns
from geokr_core.levir_kr.catalogue import read_catalogue
from geokr_core.rasters.checksums import Checksums
from geokr_core.scenes.scene_outputs import checksums_memory, mapped_array
from geokr_core.step.digests import data_version, file_md5, text_digest
from geokr_core.step.files import read_json, write_json

MANIFEST_FILE = "manifest.json"
"""Counts, hashes, legend and configuration of a data set, and the md5 of its other files."""

CATALOGUE_FILE = "catalogue.parquet"
"""One row a chip."""

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
        return self.catalogue[fraction_columns(self.classes)].to_numpy(dtype=np.float32)

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

    @property
    def chips_folder(self) -> Path:
        """Where the shards lie."""
        return (self.folder / str(self.manifest["chips_folder"])).resolve()

    def damaged(self, *, deep: bool = False) -> dict[str, str]:
        """Files that are not what was frozen, by path, and what is wrong with each.

        Args:
            deep: read every byte. Otherwise a file is read only where its size, inode or one of its times is not what
                it was when its bytes were last compared.
        """
        own = {self.folder / name: md5 for name, md5 in self.manifest.get("files", {}).items()}
        shards = {self.chips_folder / name: md5 for name, md5 in self.manifest["shards"].items()}
        return _differing(self.folder, own, deep=deep) | _differing(self.chips_folder, shards, deep=deep)

    @cached_property
    def _shard(self) -> Callable[[int], np.ndarray]:
        """Maps a shard into memory by its number; those used least lately are closed again."""
        folder = self.chips_folder
        names = list(self.manifest["shards"])
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise DatasetError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing (first: {missing[0]}). "
                "Run `geokr chips`, or `dvc pull` where the data set is versioned elsewhere."
            )

        chip_shape = (self.chip_size_px, self.chip_size_px, len(self.bands))

        # A map holds a file descriptor, of which many systems grant a process 1,024: an archive has more scenes.
        @lru_cache(maxsize=max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        def mapped(number: int) -> np.ndarray:
            path = folder / names[number]
            try:
                shard = mapped_array(path)
            except (OSError, ValueError) as error:
                raise DatasetError(f"{path}: {error}. Run `geokr chips`, which makes the scene again.") from error
            if shard.shape[1:] != chip_shape:
                raise DatasetError(
                    f"{path}: chips of {shard.shape[1:]} found, expected {chip_shape}. Run `geokr chips` and "
                    "`geokr levir-kr` again."
                )
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
            DatasetError: a shard is missing, cut off or of another kind, or has fewer chips than the catalogue says.
        """
        out = np.empty((len(rows), self.chip_size_px, self.chip_size_px, len(self.bands)), dtype=np.uint8)
        shards, places = self.shard_of_row[rows], self._row_in_shard[rows]
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            pixels = self._shard(int(shard))
            if places[mine].max() >= len(pixels):
                name = list(self.manifest["shards"])[shard]
                raise DatasetError(
                    f"{self.chips_folder / name}: {len(pixels)} chips found, the catalogue knows "
                    f"{places[mine].max() + 1} or more. Run `geokr chips` and `geokr levir-kr` again."
                )
            out[mine] = pixels[places[mine]]
        return out

    @property
    def cells_per_side(self) -> int:
        """Sub-cells along each side of a chip in `cells`; 0 where the land cover is known for whole chips only."""
        return int(self.manifest.get("cells_per_side", 0))

    @cached_property
    def _cells(self) -> np.ndarray:
        path = self.folder / CELLS_FILE
        try:
            cells = mapped_array(path)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: no such file, though the manifest names {self.cells_per_side} sub-cells a side; run "
                "`geokr levir-kr` again, or `dvc pull` where the data set is versioned elsewhere."
            ) from error
        except ValueError as error:
            raise DatasetError(f"{path}: {error}; run `geokr levir-kr` again.") from error
        expected = (len(self.catalogue), self.cells_per_side, self.cells_per_side, len(self.classes))
        if cells.shape != expected:
            raise DatasetError(
                f"{path}: found {cells.dtype} of shape {cells.shape}, expected uint8 of shape {expected}; run "
                "`geokr levir-kr` again."
            )
        _require_unchanged(self.folder, self.manifest, CELLS_FILE)
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
        DatasetError: its manifest or its catalogue is not what was frozen.
    """
    manifest = _read_manifest(folder)
    path = folder / CATALOGUE_FILE
    try:
        _require_unchanged(folder, manifest, CATALOGUE_FILE)
        catalogue = read_catalogue(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: {error}; run `geokr levir-kr` again.") from error
    return LevirKR(folder, manifest, catalogue)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with the md5 of the files beside it and a digest of its content.

    Args:
        folder: of the data set; its other files are there already.
        manifest: what the manifest is to hold besides.

    Raises:
        OSError: the file system refused.
    """
    files = {name: file_md5(folder / name) for name in (CATALOGUE_FILE, CELLS_FILE) if (folder / name).exists()}
    content = {**manifest, "files": files}
    content.pop("digest", None)
    write_json(folder / MANIFEST_FILE, {**content, "digest": text_digest(content)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingInputError(f"{folder}: no frozen Levir-KR there ({MANIFEST_FILE}); run `geokr levir-kr` first.")
    try:
        manifest: dict[str, Any] = read_json(path)
        # Data sets of earlier versions carry no digest.
        digest = manifest.pop("digest", None)
        unchanged = digest is None or digest == text_digest(manifest)
        missing = [
            name for name in ("shards", "classes", "bands", "chip_size_px", "chips_folder") if name not in manifest
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"{path}: not a readable manifest ({error}); run `geokr levir-kr` again.") from error
    if not unchanged or missing:
        found = f"lacks {', '.join(missing)}" if missing else "not what was written"
        raise DatasetError(f"{path}: {found}; run `geokr levir-kr` again.")
    return manifest


def _require_unchanged(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    files = manifest.get("files", {})
    expected = {folder / name: str(files[name])} if name in files else {}
    for path, fault in _differing(folder, expected, deep=False).items():
        raise DatasetError(f"{path}: {fault}; run `geokr levir-kr` again.")


def _differing(folder: Path, expected: Mapping[Path, str], *, deep: bool) -> dict[str, str]:
    """Files whose md5 is not the expected one, by path, and what is wrong with each.

    Args:
        folder: of a step's output; its memory of checksums is asked, and not written to.
        expected: md5 by path.
        deep: read every byte.
    """
    checksums = Checksums(checksums_memory(folder))
    found = {}
    for path, md5 in expected.items():
        try:
            digest = file_md5(path) if deep else checksums.md5(path)
        except OSError as error:
            found[str(path)] = "missing" if isinstance(error, FileNotFoundError) else str(error)
        else:
            if digest != md5:
                found[str(path)] = "not the bytes that were written"
    return found
