"""The label of a chip: the proportions of land cover on its ground, counted exactly on the product's own grid.

Where tiles overlap, each piece of ground votes once: the tile whose centre is nearest to the chip's centre has the
first word, and the next tile is asked only for the ground that the first does not cover. For GlobeLand30 that is the
tile whose nominal belt the chip lies in. Nothing is resampled; cells of geographic grids weigh by their true area.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geokr_core.chips import read_rows, shard_ids
from geokr_core.config import ProportionsConfig, as_plain
from geokr_core.coverage import class_areas, edges_of_polygons, edges_of_rings, signed_areas
from geokr_core.errors import LandCoverError, MissingInputError
from geokr_core.files import file_md5, read_json, text_digest, whole_file, write_json
from geokr_core.grid import Grid, reproject, unwrap_lon
from geokr_core.landcover import EXCLUDED, UNKNOWN, LandCover, Product, Tile, open_land_cover, slots_of
from geokr_core.raster_files import open_raster
from geokr_core.reporter import Reporter
from geokr_core.summary import Summary

_COVERED = 1.0 - 1e-9
"""Share of a chip from which it counts as wholly covered."""

_CELLS_PER_BLOCK = 16_000_000
"""Land-cover cells held in memory at a time."""

_TILE_EDGE_SEGMENTS = 64
"""Straight pieces into which the edge of a tile is cut before it is carried to a neighbour's CRS."""

_MARK = b"geokr_inputs"


def count_proportions(
    config: ProportionsConfig, source: Path, land_cover: Path, chips: Path, out: Path, reporter: Reporter
) -> Summary:
    """Count land cover under every chip. Scenes that are current are passed over.

    Args:
        config: how chip edges are carried to another CRS.
        source: the land-cover folder.
        land_cover: the index of its tiles.
        chips: folder of shards.
        out: folder that gets ``<scene_id>.parquet``, one row a chip, and ``legend.json``.
        reporter: hears each scene that is quarantined.

    Returns:
        Counts, and the mean proportions as table.

    Raises:
        MissingInputError: no shards or no index.
        UnknownLegendCodeError: a land-cover raster holds a code its legend does not list.
        LandCoverError: a tile cannot be read, or no scene at all overlaps its product.
    """
    scene_ids = shard_ids(chips)
    reasons: dict[str, str] = {}
    with reporter.progress("proportions", len(scene_ids)) as advance:
        for scene_id in scene_ids:
            if reason := count_scene(config, source, land_cover, chips, scene_id, out):
                reasons[scene_id] = reason
                reporter.warning(f"scene {scene_id} quarantined: {reason}")
            advance(1)
    _drop_vanished(out, set(scene_ids))
    if len(reasons) == len(scene_ids):
        raise LandCoverError(
            f"{source}: none of {len(scene_ids)} scenes lies on known land cover. First reason: {next(iter(reasons.values()))}. "
            "Check that `land_cover` names products of the scenes' ground."
        )
    return _summary(out, [s for s in scene_ids if s not in reasons], reasons)


def count_scene(
    config: ProportionsConfig, source: Path, land_cover: Path, chips: Path, scene_id: str, out: Path, *,
    force: bool = False,
) -> str:  # fmt: skip
    """Count land cover under the chips of one scene.

    Args:
        config: how chip edges are carried to another CRS.
        source: the land-cover folder.
        land_cover: the index of its tiles.
        chips: folder of shards.
        scene_id: which scene.
        out: folder that gets ``<scene_id>.parquet``, or ``<scene_id>.quarantine.json``.
        force: count even if the scene is current.

    Returns:
        Empty, or why the scene is quarantined: none of its ground has known land cover.

    Raises:
        MissingInputError: the scene has no shard, or there is no index.
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    index = open_land_cover(land_cover)
    _write_legend(config, index, out)
    table, refusal = out / f"{scene_id}.parquet", out / f"{scene_id}.quarantine.json"
    mark = _mark(config, land_cover, chips, scene_id)
    if not force and (done := _current(table, refusal, mark)) is not None:
        return done
    rows = read_rows(chips, scene_id)
    counted = count_rows(config, source, index, rows)
    if (counted["unknown_fraction"] >= _COVERED).all():
        product = index.products[rows["land_cover"].iloc[0]]
        west, east = rows["lon"].min(), rows["lon"].max()
        south, north = rows["lat"].min(), rows["lat"].max()
        reason = (
            f"no known land cover of product {product.config.name!r} under any of {len(rows)} chips; they lie at "
            f"{south:.3f}…{north:.3f}° N, {west:.3f}…{east:.3f}° E, the tiles at {_extent(product)}"
        )
        table.unlink(missing_ok=True)
        write_json(refusal, {"scene_id": scene_id, "reason": reason, "inputs": mark})
        return reason
    content = pa.Table.from_pandas(counted, preserve_index=False)
    with whole_file(table) as partial:
        pq.write_table(
            content.replace_schema_metadata({**(content.schema.metadata or {}), _MARK: mark.encode()}),
            partial,
            compression="zstd",
        )
    refusal.unlink(missing_ok=True)
    return ""


def is_scene_current(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str, out: Path) -> bool:
    """Whether the scene's proportions, or its refusal, are what its chips, the index and ``config`` give."""
    table, refusal = out / f"{scene_id}.parquet", out / f"{scene_id}.quarantine.json"
    return _current(table, refusal, _mark(config, land_cover, chips, scene_id)) is not None


def _mark(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str) -> str:
    inputs = (chips / f"{scene_id}.parquet", land_cover / "tiles.parquet", land_cover / "products.json")
    return text_digest([*(file_md5(path) for path in inputs), as_plain(config)])


def _current(table: Path, refusal: Path, mark: str) -> str | None:
    if refusal.exists():
        record = read_json(refusal)
        return str(record["reason"]) if record["inputs"] == mark else None
    if table.exists() and (pq.read_metadata(table).metadata or {}).get(_MARK) == mark.encode():
        return ""
    return None


def _extent(product: Product) -> str:
    west, south, east, north = shapely.total_bounds([tile.footprint for tile in product.tiles])
    return f"{south:.3f}…{north:.3f}° N, {west:.3f}…{east:.3f}° E"


def _write_legend(config: ProportionsConfig, index: LandCover, out: Path) -> None:
    legend = index.legend
    content = {
        "legend": legend.name,
        "digest": legend.digest,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "products": [as_plain(product.config) for product in index.products.values()],
        "config": as_plain(config),
    }
    if not (out / "legend.json").exists() or read_json(out / "legend.json") != content:
        write_json(out / "legend.json", content)


def _drop_vanished(out: Path, scene_ids: set[str]) -> None:
    for path in out.iterdir():
        name = path.name.removesuffix(".quarantine.json")
        stem = name if name != path.name else path.stem
        if path.name != "legend.json" and stem not in scene_ids:
            path.unlink()


def count_rows(config: ProportionsConfig, source: Path, index: LandCover, rows: pd.DataFrame) -> pd.DataFrame:
    """Count land cover under the chips of one scene.

    Args:
        config: how chip edges are carried to another CRS.
        source: the land-cover folder.
        index: products and legend.
        rows: catalogue rows of one scene: ``chip_id``, ``crs_wkt``, ``transform``, ``size_px``, ``lon``, ``lat``,
            ``acquired``, ``land_cover``.

    Returns:
        One row a chip: ``chip_id``, ``product``, ``edition_year``, ``unknown_fraction`` (no data or no tile),
        ``excluded_fraction`` (classes outside the legend), ``num_cells`` (cells of known class, in cells),
        ``gap_days`` (image minus middle of the edition year, NaN without a date), and one ``fraction_<class>`` of the
        known ground a class, summing to 1 (all 0 where nothing is known).

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    product = index.products[rows["land_cover"].iloc[0]]
    num_classes = len(index.legend.classes)
    shares, num_cells = _Count(config, source, product, num_classes).run(rows)
    # Line integrals cancel to zero only within rounding: a share below a billionth is none.
    shares = np.where(shares < 1e-9, 0.0, shares)
    known = shares[:, :num_classes].sum(axis=1)
    fractions = np.divide(
        shares[:, :num_classes], known[:, None], out=np.zeros((len(rows), num_classes)), where=known[:, None] > 0
    )
    excluded = shares[:, num_classes + 1]
    return pd.DataFrame(
        {
            "chip_id": rows["chip_id"].to_numpy(),
            "product": product.config.name,
            "edition_year": product.config.year,
            "unknown_fraction": (1.0 - known - excluded).clip(0.0, 1.0),
            "excluded_fraction": excluded,
            "num_cells": num_cells,
            "gap_days": _gap_days(rows["acquired"], product),
            **{f"fraction_{name}": fractions[:, k] for k, name in enumerate(index.legend.classes)},
        }
    )


def _gap_days(acquired: Sequence[str] | pd.Series, product: Product) -> np.ndarray:
    epoch = product.config.epoch
    return np.array([(date.fromisoformat(d) - epoch).days if d else np.nan for d in acquired], dtype=np.float64)


class _Count:
    """Counting one scene's chips over the tiles of one product."""

    def __init__(self, config: ProportionsConfig, source: Path, product: Product, num_classes: int) -> None:
        self._config, self._source, self._product = config, source, product
        # Slots after the classes: unknown, then excluded.
        self._num_slots = num_classes + 2
        self._remap = np.arange(256, dtype=np.uint8)
        self._remap[[UNKNOWN, EXCLUDED]] = [num_classes, num_classes + 1]

    def run(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the chip's ground by slot, float64 (N, K + 2), and known cells, float64 (N,)."""
        shares = np.zeros((len(rows), self._num_slots))
        cells = np.zeros(len(rows))
        outlines = self._outlines(rows)
        wkt = str(rows["crs_wkt"].iloc[0])
        order = self._tile_order(rows)
        for rank in range(order.shape[1]):
            for tile_index in np.unique(order[:, rank]):
                open_chips = np.flatnonzero((order[:, rank] == tile_index) & (shares.sum(axis=1) < _COVERED))
                if len(open_chips):
                    tile = self._product.tiles[tile_index]
                    earlier = order[open_chips, :rank]
                    self._add_tile(
                        tile, wkt, outlines[open_chips], rows.iloc[open_chips], earlier, open_chips, shares, cells
                    )
        return shares, cells

    def _outlines(self, rows: pd.DataFrame) -> np.ndarray:
        transforms = np.array(rows["transform"].tolist(), dtype=np.float64)
        a, b, c, d, e, f = transforms.T
        size = int(rows["size_px"].iloc[0])
        unit = Grid(CRS.from_epsg(4326), Affine.identity(), size, size)
        ring = unit.outlines_xy(np.zeros(1), np.zeros(1), size, self._config.edge_segments)[0]
        x = a[:, None] * ring[:, 0] + b[:, None] * ring[:, 1] + c[:, None]
        y = d[:, None] * ring[:, 0] + e[:, None] * ring[:, 1] + f[:, None]
        return np.stack([x, y], axis=-1)

    def _tile_order(self, rows: pd.DataFrame) -> np.ndarray:
        """Tiles in the order in which each chip asks them, int (N, T); only tiles near the scene take part."""
        lon, lat = rows["lon"].to_numpy(), rows["lat"].to_numpy()
        near = [i for i, tile in enumerate(self._product.tiles) if _near(tile.footprint, lon, lat)]
        if not near:
            return np.zeros((len(rows), 0), dtype=np.int64)
        centres = np.array([self._product.tiles[i].footprint.centroid.coords[0] for i in near])
        dx = unwrap_lon(lon[:, None] - centres[None, :, 0], 0.0) * np.cos(np.radians(lat))[:, None]
        distance = np.hypot(dx, lat[:, None] - centres[None, :, 1])
        return np.asarray(near)[np.argsort(distance, axis=1, kind="stable")]

    def _add_tile(
        self, tile: Tile, wkt: str, outlines: np.ndarray, rows: pd.DataFrame, earlier: np.ndarray, chips: np.ndarray,
        shares: np.ndarray, cells: np.ndarray,
    ) -> None:  # fmt: skip
        """Let one tile vote on the ground of some chips that earlier tiles have not covered."""
        rings = _to_pixels(outlines, wkt, tile, rows["lon"].to_numpy())
        finite = np.isfinite(rings).all(axis=(1, 2))
        rings, chips, earlier = rings[finite], chips[finite], earlier[finite]
        # Whole turns of longitude: a chip beyond the tile's right edge may lie on its left part.
        turn = 360.0 / tile.grid.transform.a if tile.grid.crs.is_geographic else None
        shifts = (0.0,) if turn is None else (0.0, turn, -turn)
        for shift in shifts:
            moved = rings + np.array([shift, 0.0])
            touching = _touching(moved, tile.grid)
            for block in _blocks(moved, touching, tile.grid):
                taken = [self._taken(tile, earlier[k], shift) for k in block] if earlier.shape[1] else None
                self._vote(tile, moved[block], taken, chips[block], shares, cells)

    def _taken(self, tile: Tile, earlier: np.ndarray, shift: float) -> shapely.Geometry:
        """Ground that earlier tiles of a chip cover, in this tile's pixel coordinates."""
        near_lon = np.array([tile.footprint.centroid.x])
        covered = []
        for other in (self._product.tiles[index] for index in earlier):
            ring = _to_pixels(other.grid.outline_xy(_TILE_EDGE_SEGMENTS)[None], other.grid.wkt, tile, near_lon)[0]
            if np.isfinite(ring).all():
                covered.append(shapely.Polygon(ring + np.array([shift, 0.0])))
        return shapely.union_all(covered)

    def _vote(
        self,
        tile: Tile,
        rings: np.ndarray,
        taken: list[shapely.Geometry] | None,
        chips: np.ndarray,
        shares: np.ndarray,
        cells: np.ndarray,
    ) -> None:
        row0, col0, height, width = _bounds(rings, tile.grid)
        slots = self._read(tile, row0, col0, height, width)
        local = rings - np.array([col0, row0])
        whole = np.abs(signed_areas(local))
        if taken is None:
            edges = edges_of_rings(local)
        else:
            offset = np.array([col0, row0])
            edges = edges_of_polygons(
                [
                    shapely.Polygon(ring).difference(shapely.transform(gone, lambda xy: xy - offset))
                    for ring, gone in zip(local, taken, strict=True)
                ]
            )
        plain = np.ones(height)
        covered = class_areas(slots, edges, self._num_slots, plain)
        weights = row_weights(tile.grid, row0, height)
        weighted = covered if weights is None else class_areas(slots, edges, self._num_slots, weights)
        covered_cells = covered.sum(axis=1)
        total = weighted.sum(axis=1, keepdims=True)
        mix = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
        # `np.add.at` is not needed: a chip appears once in a block.
        shares[chips] += mix * (covered_cells / whole)[:, None]
        cells[chips] += mix[:, : self._num_slots - 2].sum(axis=1) * covered_cells

    def _read(self, tile: Tile, row: int, col: int, height: int, width: int) -> np.ndarray:
        path = self._source / tile.file
        try:
            with open_raster(path) as source:
                codes = source.read(1, window=Window(col, row, width, height))
        except RasterioError as error:
            raise LandCoverError(
                f"{path}: unreadable at lines {row}–{row + height - 1}: {error}. Fetch the tile again."
            ) from error
        return np.asarray(self._remap[slots_of(codes, tile, self._product.lookup)])


def row_weights(grid: Grid, row: int, height: int) -> np.ndarray | None:
    """Relative ground area of the cells in each row of a geographic grid; None where all cells count alike.

    On the sphere the area between two parallels is proportional to the difference of the sines of their latitudes.

    Returns:
        float64 (height,), 1 at the equator for square cells of one degree per degree.
    """
    if not grid.crs.is_geographic:
        return None
    edges = np.radians((grid.transform.f + grid.transform.e * np.arange(row, row + height + 1)).clip(-90.0, 90.0))
    return np.asarray(np.abs(np.diff(np.sin(edges))) / np.radians(abs(grid.transform.e)))


def _near(footprint: shapely.Polygon, lon: np.ndarray, lat: np.ndarray, margin_deg: float = 5.0) -> bool:
    west, south, east, north = footprint.bounds
    middle = (west + east) / 2
    apart = np.abs(unwrap_lon(lon - middle, 0.0)) > (east - west) / 2 + margin_deg
    return not bool((apart | (lat < south - margin_deg) | (lat > north + margin_deg)).all())


def _to_pixels(outlines: np.ndarray, wkt: str, tile: Tile, near_lon: np.ndarray) -> np.ndarray:
    """Outlines (N, P, 2) of CRS ``wkt`` in the tile's (col, row)."""
    xy = reproject(outlines, wkt, tile.grid.wkt)
    if tile.grid.crs.is_geographic:
        xy[..., 0] = unwrap_lon(xy[..., 0], np.broadcast_to(near_lon[:, None], xy.shape[:2]))
    a, b, c, d, e, f = tuple(~tile.grid.transform)[:6]
    return np.stack([a * xy[..., 0] + b * xy[..., 1] + c, d * xy[..., 0] + e * xy[..., 1] + f], axis=-1)


def _touching(rings: np.ndarray, grid: Grid) -> np.ndarray:
    low, high = rings.min(axis=1), rings.max(axis=1)
    return np.flatnonzero((high > 0).all(axis=1) & (low[:, 0] < grid.width) & (low[:, 1] < grid.height))


def _bounds(rings: np.ndarray, grid: Grid) -> tuple[int, int, int, int]:
    """First row, first column, height and width of the cells that the rings touch, within the grid."""
    low = np.floor(rings.min(axis=(0, 1))).astype(int).clip(0, [grid.width - 1, grid.height - 1])
    high = np.ceil(rings.max(axis=(0, 1))).astype(int).clip(1, [grid.width, grid.height])
    return int(low[1]), int(low[0]), int(max(high[1] - low[1], 1)), int(max(high[0] - low[0], 1))


def _blocks(rings: np.ndarray, touching: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """Split chips, in their order, into blocks whose common window of cells fits in memory."""
    if not len(touching):
        return []
    _, _, height, width = _bounds(rings[touching], grid)
    if height * width <= _CELLS_PER_BLOCK or len(touching) == 1:
        return [touching]
    half = len(touching) // 2
    return _blocks(rings, touching[:half], grid) + _blocks(rings, touching[half:], grid)


def scene_summary(out: Path, chips: Path, scene_id: str) -> Summary:
    """What one scene's proportions show for themselves, or why there are none.

    Raises:
        MissingInputError: the scene has not been counted.
    """
    refusal, path = out / f"{scene_id}.quarantine.json", out / f"{scene_id}.parquet"
    if refusal.exists():
        reason = read_json(refusal)["reason"]
        return Summary({"num_chips": 0, "quarantined": reason}, warnings=[f"{scene_id}: {reason}"])
    if not path.exists():
        raise MissingInputError(f"{path}: scene {scene_id} has no proportions; run `geokr proportions` first.")
    from geokr_core.pictures import panel

    table, legend = pd.read_parquet(path), read_json(out / "legend.json")
    fractions = table[[f"fraction_{name}" for name in legend["classes"]]].to_numpy()
    rows = read_rows(chips, scene_id)
    images = np.load(chips / f"{scene_id}.npy", mmap_mode="r", allow_pickle=False)
    chosen = np.linspace(0, len(images) - 1, min(24, len(images))).astype(int)
    return Summary(
        numbers={
            "num_chips": len(table),
            "unknown_fraction": round(float(table["unknown_fraction"].mean()), 4),
            "excluded_fraction": round(float(table["excluded_fraction"].mean()), 4),
            "num_cells": round(float(table["num_cells"].mean()), 2),
        },
        table=[
            {"class": n, "fraction": round(float(v), 4)}
            for n, v in zip(legend["classes"], fractions.mean(axis=0), strict=True)
        ],
        picture_png=panel(images[chosen], fractions[chosen], tuple(rows["bands"].iloc[0]), tuple(legend["colours"])),
    )


def _summary(out: Path, scene_ids: list[str], reasons: dict[str, str]) -> Summary:
    legend: dict[str, Any] = read_json(out / "legend.json")
    table = pd.concat([pd.read_parquet(out / f"{scene_id}.parquet") for scene_id in scene_ids], ignore_index=True)
    return Summary(
        numbers={
            "num_chips": len(table),
            "num_scenes": len(scene_ids),
            "num_quarantined": len(reasons),
            "unknown_fraction": round(float(table["unknown_fraction"].mean()), 4),
            "excluded_fraction": round(float(table["excluded_fraction"].mean()), 4),
            "median_cells": round(float(table["num_cells"].median()), 2),
        },
        table=[
            {"class": name, "fraction": round(float(table[f"fraction_{name}"].mean()), 4)} for name in legend["classes"]
        ],
        warnings=[f"{scene_id}: {reason}" for scene_id, reason in reasons.items()],
    )
