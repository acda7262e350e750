"""What would be read, and how much that is: items, assets, and the window of each in the asset's own grid.

Planning reads headers only. Nothing is resampled: a window is the smallest block of whole pixels that holds the area.
"""

import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pystac
from affine import Affine
from rasterio.io import DatasetReader

from geokr_core.acquisition.catalogues import Catalogue, CatalogueCollection, FetchConfig
from geokr_core.acquisition.search import Area, find_items, item_span
from geokr_core.acquisition.web import Address, Web, shown
from geokr_core.errors import AcquisitionError
from geokr_core.rasters.grid import Grid, reproject, unit_ring
from geokr_core.step.digests import text_digest
from geokr_core.step.reporter import Reporter

_EDGE_SEGMENTS = 32
"""Pieces that the area's edges are cut into before they are carried into an asset's CRS."""

_SMALL_BLOCK_BYTES = 1 << 20
"""A block this small is read as a window whatever its shape."""


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written.

    Attributes:
        path: below the output folder.
        item: the item it comes from.
        collection: of the configuration.
        role: common band name, ``quality`` or ``land_cover``.
        asset: asset key.
        href: address in the catalogue, with its query.
        mark: digest of what was asked; a finished file with the same mark is not read again.
        checksum: ``file:checksum`` of the catalogue, or None.
        window: rows, columns, height and width in the asset, or None where it is finished or known only once read.
        grid: of the window, or None as above.
        whole: the asset is downloaded whole and cut here.
        num_bytes: what the transfer and the file are bounded by; 0 where it is finished.
        estimated_bytes: what the transfer will be about.
    """

    path: Path
    item: pystac.Item
    collection: CatalogueCollection
    role: str
    asset: str
    href: str
    mark: str
    checksum: str | None
    window: tuple[int, int, int, int] | None = None
    grid: Grid | None = None
    whole: bool = False
    num_bytes: int = 0
    estimated_bytes: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Finished:
    """What is known of a file that is there already.

    Attributes:
        grid: its grid, or None where the first run could not know it before reading either.
    """

    grid: Grid | None


FinishedGrid = Callable[[PlannedFile], Finished | None]


@dataclass(frozen=True)
class FetchPlan:
    """What would be fetched.

    Attributes:
        files: in the order they are read.
        area: over which each collection is read, by name.
        broken: items that cannot be read, with the reason.
        empty: items whose rasters hold no pixel of the area.
    """

    files: tuple[PlannedFile, ...]
    area: Mapping[str, Area]
    broken: Mapping[str, str]
    empty: tuple[str, ...]

    @property
    def estimated_bytes(self) -> int:
        """How much will be transferred, about."""
        return sum(file.estimated_bytes for file in self.files)

    @property
    def num_bytes(self) -> int:
        """More than this is neither transferred nor written, whatever the servers send."""
        return sum(file.num_bytes for file in self.files)

    def table(self) -> list[dict[str, str | int | float]]:
        """One row an item: when, how cloudy, how many files, how large."""
        rows: dict[tuple[str, str], list[PlannedFile]] = {}
        for file in self.files:
            rows.setdefault((file.collection.name, file.item.id), []).append(file)
        return [
            {
                "collection": name,
                "item": item,
                "date": item_span(files[0].item)[0].date().isoformat(),
                "cloud_percent": round(float(files[0].item.properties.get("eo:cloud_cover", 0) or 0), 1),
                "files": len(files),
                "finished": sum(file.finished for file in files),
                "size_px": next((f"{f.grid.width}x{f.grid.height}" for f in files if f.grid), ""),
                "how": "whole" if any(f.whole for f in files) else "windows",
                "about_mb": round(sum(f.estimated_bytes for f in files) / 1e6, 2),
            }
            for (name, item), files in rows.items()
        ]


def make_plan(
    config: FetchConfig, webs: Mapping[str, Web], reporter: Reporter, finished_grid: FinishedGrid
) -> FetchPlan:
    """Search, and read the headers of what is not there yet.

    Args:
        config: what is asked for.
        webs: requests by catalogue name.
        reporter: shows progress.
        finished_grid: tells whether a file is there already, as asked.

    Returns:
        The plan. Land cover is planned over all ground that the scenes' windows show.

    Raises:
        AcquisitionError: a catalogue cannot be read, or no item was found.
    """
    asked = Area.of(config.bbox)
    ground = asked
    files: list[PlannedFile] = []
    areas: dict[str, Area] = {}
    broken: dict[str, str] = {}
    empty: list[str] = []
    for catalogue, collection in config.wanted:
        # The window of a scene is a box in its own grid and reaches over the edges of the box that was asked for.
        area = asked if collection.kind == "scenes" else ground
        web = webs[catalogue.name]
        items = find_items(catalogue, collection, web, config, area)
        if not items:
            raise AcquisitionError(_nothing(catalogue, collection, config))
        areas[collection.name] = area
        with (
            reporter.progress(f"headers of {collection.name}", len(items)) as advance,
            ThreadPoolExecutor(config.connections) as pool,
        ):
            tasks = [pool.submit(_plan_item, item, collection, web, area, finished_grid) for item in items]
            for item, task in zip(items, tasks, strict=True):
                try:
                    planned = task.result()
                except AcquisitionError as error:
                    broken[f"{collection.name}/{item.id}"] = str(error)
                    planned = []
                else:
                    empty += [] if planned else [f"{collection.name}/{item.id}"]
                for file in planned:
                    if collection.kind == "scenes" and file.grid is not None:
                        ground = ground.with_outline(file.grid.lonlat(file.grid.outline_xy(_EDGE_SEGMENTS)))
                files += planned
                advance(1)
    return FetchPlan(tuple(files), areas, broken, tuple(empty))


def _nothing(catalogue: Catalogue, collection: CatalogueCollection, config: FetchConfig) -> str:
    when = f"{config.dates[0]} to {config.dates[1]}" if collection.kind == "scenes" else f"edition {collection.year}"
    clouds = f", at most {config.max_cloud_cover_percent:g} % cloud" if collection.kind == "scenes" else ""
    return (
        f"{shown(catalogue.url)}: collection {collection.collection!r} has nothing over {','.join(map(str, config.bbox))} "
        f"({when}{clouds}). The order is west,south,east,north; widen box, dates or cloud cover."
    )


def safe_name(identifier: str) -> str:
    """An item's id as a file name: no separators, no leading dot, at most 100 characters, distinct for distinct ids."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", identifier).strip("-._")[:100]
    return name if name == identifier else f"{name or 'item'}-{text_digest(identifier)[:8]}"


def _files_of(item: pystac.Item, collection: CatalogueCollection, area: Area) -> list[PlannedFile]:
    name = safe_name(item.id)
    if collection.kind == "scenes":
        roles = dict(collection.bands) | ({"quality": collection.quality} if collection.quality else {})
        folder = Path("scenes", collection.name, name)
    else:
        roles, folder = {"land_cover": str(collection.asset)}, Path("land_cover", collection.name)
    files = []
    for role, key in roles.items():
        asset = item.assets.get(key)
        if asset is None:
            raise AcquisitionError(f"item {item.id!r} has no asset {key!r}; it has {', '.join(sorted(item.assets))}.")
        href = str(asset.get_absolute_href() or asset.href)
        checksum = asset.extra_fields.get("file:checksum")
        path = folder / (f"{name}_{role}.tif" if collection.kind == "scenes" else f"{name}.tif")
        mark = text_digest(
            [collection.collection, item.id, key, bare(href), list(area.bbox), collection.whole_assets, checksum]
        )
        files.append(PlannedFile(path, item, collection, role, key, href, mark, checksum))
    return files


def bare(href: str) -> str:
    """An address without its query: the same file has the same one, however often it is signed anew."""
    parts = urlsplit(href)
    return urlunsplit(parts._replace(query="", fragment=""))


def _plan_item(
    item: pystac.Item, collection: CatalogueCollection, web: Web, area: Area, finished_grid: FinishedGrid
) -> list[PlannedFile]:
    planned = []
    for file in _files_of(item, collection, area):
        done = finished_grid(file)
        if done is not None:
            planned.append(replace(file, finished=True, grid=done.grid))
        elif (fresh := _plan_file(file, web, area)) is not None:
            planned.append(fresh)
    grids = {file.role: file.grid for file in planned if file.role in collection.bands and file.grid is not None}
    for role, grid in grids.items():
        if grid != (first := next(iter(grids.values()))):
            raise AcquisitionError(
                f"item {item.id!r}: band {role} has pixels of {grid.gsd_m:.1f} m on another grid than "
                f"{next(iter(grids))} ({first.gsd_m:.1f} m). Nothing is resampled here: configure bands of one grid a collection."
            )
    return planned


def _plan_file(file: PlannedFile, web: Web, area: Area) -> PlannedFile | None:
    address = web.locate(file.href)
    if not address.ranges:
        # Only the whole file can be had, and only then is its grid known.
        return replace(file, whole=True, num_bytes=_length(address), estimated_bytes=_length(address))
    return web.read(file.href, lambda found, source: _plan_window(file, found, source, area))


def _plan_window(file: PlannedFile, address: Address, source: DatasetReader, area: Area) -> PlannedFile | None:
    grid = grid_of(source, file.href)
    window = window_of(grid, area)
    if window is None:
        return None
    row, col, height, width = window
    itemsize = sum(np.dtype(kind).itemsize for kind in source.dtypes)
    pixel_bytes = height * width * itemsize
    part = replace(file, window=window, grid=grid.window(*window))
    block_height, block_width = source.block_shapes[0]
    tiled = block_width < source.width or block_height * block_width * itemsize <= _SMALL_BLOCK_BYTES
    if file.collection.whole_assets or not tiled or address.suffix != ".tif":
        length = _length(address)
        return replace(part, whole=True, num_bytes=max(length, pixel_bytes), estimated_bytes=length)
    rows = -(-(row + height) // block_height) - row // block_height
    cols = -(-(col + width) // block_width) - col // block_width
    touched = rows * block_height * cols * block_width * itemsize
    # A third more for overviews; the file's own compression is the best guess for the window's.
    stored = source.height * source.width * itemsize * (4 / 3 if source.overviews(1) else 1)
    share = 1.0 if address.num_bytes is None else min(1.0, address.num_bytes / stored)
    return replace(part, num_bytes=max(touched, pixel_bytes), estimated_bytes=round(touched * share))


def _length(address: Address) -> int:
    if address.num_bytes is None:
        raise AcquisitionError(
            f"{shown(address.url)}: the server does not say how long the file is; it is not downloaded."
        )
    return address.num_bytes


def grid_of(source: DatasetReader, href: str) -> Grid:
    """The grid of an open asset.

    Raises:
        AcquisitionError: it has no CRS or no geotransform.
    """
    if source.crs is None or source.transform == Affine.identity() or source.transform.is_degenerate:
        raise AcquisitionError(f"{shown(href)}: no CRS or no geotransform; only map-projected assets can be cut.")
    return Grid.of(source)


def window_of(grid: Grid, area: Area) -> tuple[int, int, int, int] | None:
    """The smallest block of whole pixels that holds the area, clipped to the grid.

    Args:
        grid: of the asset.
        area: in degrees.

    Returns:
        Row, column, height and width in pixels; None where grid and area do not meet.

    Raises:
        AcquisitionError: the area meets the grid on both of its sides, as a global map meets a box across the
            antimeridian.
    """
    west, south, east, north = grid.footprint(_EDGE_SEGMENTS).bounds
    windows = []
    for turn in (-360.0, 0.0, 360.0):
        box = (max(west, area.west + turn), max(south, area.south), min(east, area.east + turn), min(north, area.north))
        if box[0] < box[2] and box[1] < box[3] and (window := _window_of_box(grid, box)) is not None:
            windows.append(window)
    if len(windows) > 1:
        raise AcquisitionError(
            "the box meets both sides of a raster that goes round the Earth; fetch each side by itself."
        )
    return windows[0] if windows else None


def _window_of_box(grid: Grid, box: tuple[float, float, float, float]) -> tuple[int, int, int, int] | None:
    ring = unit_ring(_EDGE_SEGMENTS) * np.array([box[2] - box[0], box[3] - box[1]]) + np.array([box[0], box[1]])
    if grid.crs.is_geographic:
        xy = ring
    else:
        xy = reproject(ring, "EPSG:4326", grid.wkt)
        xy = xy[np.isfinite(xy).all(axis=1)]
        if not len(xy):
            return None
    col, row = grid.pixel(xy[:, 0], xy[:, 1]).T
    first_col, last_col = _whole_pixels(col, grid.width)
    first_row, last_row = _whole_pixels(row, grid.height)
    if first_col >= last_col or first_row >= last_row:
        return None
    return first_row, first_col, last_row - first_row, last_col - first_col


def _whole_pixels(position: np.ndarray, size: int) -> tuple[int, int]:
    # Rounding of the projection must not add a line of pixels.
    first, last = math.floor(position.min() + 1e-6), math.ceil(position.max() - 1e-6)
    return max(0, first), min(size, last)
