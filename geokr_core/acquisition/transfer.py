"""Reading what was planned: a window out of a cloud-optimised file, or a whole file that is verified and then cut.

A file appears whole or not at all, pixels and place as in the asset, with a record beside it. The record is what makes
a file count as finished: the same request finds it and reads nothing again.
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from geokr_core.acquisition.plan import Finished, PlannedFile, bare, grid_of, window_of
from geokr_core.acquisition.search import Area, item_span
from geokr_core.acquisition.web import Address, Web, shown, verify_multihash
from geokr_core.errors import AcquisitionError
from geokr_core.rasters.grid import Grid
from geokr_core.rasters.open_raster import DRIVERS
from geokr_core.step.digests import sha256
from geokr_core.step.files import read_json, whole_file, write_json
from geokr_core.step.section import as_plain

RECORD_SUFFIX = ".record.json"
_STRIP_BYTES = 1 << 24
"""Pixels read between two retries: enough to use wide requests, little to read again."""
_TILE_PX = 256


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(path.name + RECORD_SUFFIX)


def finished(out: Path, file: PlannedFile) -> Finished | None:
    """What is known of a file if it is there as asked, with the bytes that were recorded; else None."""
    path = out / file.path
    if not (path.is_file() and record_path(path).is_file()):
        return None
    record = read_json(record_path(path))
    if record["mark"] != file.mark or record["sha256"] != sha256(path):
        return None
    return Finished(Grid.of_columns(record["grid"]) if record["grid_known_before"] else None)


def transfer(file: PlannedFile, web: Web, area: Area, out: Path) -> Mapping[str, Any]:
    """Read one file and write it with its record.

    Args:
        file: what was planned.
        web: requests to its catalogue.
        area: what to cut, where the plan could not know the window.
        out: folder of the acquisition.

    Returns:
        The record.

    Raises:
        AcquisitionError: it cannot be read, is not what the catalogue says, or grew since it was planned.
    """
    path = out / file.path
    with whole_file(path) as partial:
        if file.whole:
            grid = _from_whole(file, web, area, partial)
        else:
            job = _WindowJob(file, partial)
            try:
                web.read(file.href, job.run)
            finally:
                job.close()
            grid = job.grid
    record = _record(file, grid, path)
    write_json(record_path(path), record)
    return record


def _record(file: PlannedFile, grid: Grid, path: Path) -> dict[str, Any]:
    first, last = item_span(file.item)
    return {
        "mark": file.mark,
        "path": file.path.as_posix(),
        "role": file.role,
        "item": file.item.id,
        "collection": as_plain(file.collection),
        "datetime": [first.isoformat(), last.isoformat()],
        "asset": file.asset,
        "href": shown(bare(file.href)),
        "catalogue_checksum": file.checksum,
        "catalogue_checksum_verified": bool(file.whole and file.checksum),
        "how": "whole file, cut here" if file.whole else "window",
        "sha256": sha256(path),
        "num_bytes": path.stat().st_size,
        "grid_known_before": file.grid is not None,
        "grid": grid.columns(),
    }


@dataclass
class _WindowJob:
    """A window being read; `run` may be called again after a failure and goes on at the strip that failed."""

    file: PlannedFile
    target_path: Path
    next_row: int = 0
    grid: Grid = field(init=False)
    target: Any = None

    def run(self, address: Address, source: DatasetReader) -> None:
        """Read what is still to read."""
        if self.file.window is None or self.file.grid is None:
            raise AcquisitionError(f"{shown(self.file.href)}: planned without a window.")
        row, col, height, width = self.file.window
        if grid_of(source, self.file.href).window(row, col, height, width) != self.file.grid:
            raise AcquisitionError(
                f"{shown(self.file.href)}: its grid changed since it was planned; run the command again."
            )
        if self.target is None:
            self.grid = self.file.grid
            self.target = _create(self.target_path, source, self.grid, self.file)
        itemsize = sum(np.dtype(kind).itemsize for kind in source.dtypes)
        # Whole tiles of the target, so that none is compressed twice.
        lines = max(1, _STRIP_BYTES // (width * itemsize * _TILE_PX)) * _TILE_PX
        while self.next_row < height:
            count = min(lines, height - self.next_row)
            pixels = source.read(window=Window(col, row + self.next_row, width, count))
            self.target.write(pixels, window=Window(0, self.next_row, width, count))
            self.next_row += count

    def close(self) -> None:
        """Finish the target file."""
        if self.target is not None:
            self.target.close()


def _from_whole(file: PlannedFile, web: Web, area: Area, partial: Path) -> Grid:
    address = web.locate(file.href)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=partial.parent) as folder:
        local = Path(address.url)
        if address.is_remote:
            local = Path(folder, f"asset{address.suffix}")
            web.download(address, local, file.checksum, file.num_bytes)
        elif file.checksum is not None:
            verify_multihash(local, file.checksum, shown(file.href))
        try:
            with rasterio.open(local, driver=DRIVERS[address.suffix]) as source:
                whole = grid_of(source, file.href)
                window = file.window or window_of(whole, area)
                if window is None:
                    raise AcquisitionError(f"{shown(file.href)}: its raster holds no pixel of the box.")
                job = _WindowJob(replace(file, window=window, grid=whole.window(*window)), partial)
                try:
                    job.run(address, source)
                finally:
                    job.close()
                return job.grid
        except RasterioError as error:
            raise AcquisitionError(
                f"{shown(file.href)}: downloaded whole but not readable ({error}); the file is damaged at its source."
            ) from None


def _create(path: Path, source: DatasetReader, grid: Grid, file: PlannedFile) -> Any:
    kinds = {np.dtype(kind) for kind in source.dtypes}
    predictor = 3 if all(kind.kind == "f" for kind in kinds) else 2 if all(kind.kind in "iu" for kind in kinds) else 1
    target = rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=grid.width,
        height=grid.height,
        count=source.count,
        dtype=source.dtypes[0],
        crs=grid.crs,
        transform=grid.transform,
        nodata=source.nodata,
        tiled=True,
        blockxsize=_TILE_PX,
        blockysize=_TILE_PX,
        compress="deflate",
        predictor=predictor,
        bigtiff="if_safer",
        sparse_ok=False,
    )
    target.scales, target.offsets = source.scales, source.offsets
    target.colorinterp = source.colorinterp
    if file.role in ("land_cover", "quality"):
        with suppress(ValueError):  # most have none
            target.write_colormap(1, source.colormap(1))
    if file.collection.kind == "scenes":
        first, _ = item_span(file.item)
        # GDAL's name for it; the inventory of scenes reads it.
        target.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=first.strftime("%Y-%m-%d %H:%M:%S"))
    return target
