"""The label of a chip: the proportions of land cover on its ground, one table a scene, and what belongs beside it.

Which ground is of which class is found out in ``counting``; here are the files, what makes them current, and the
columns of a row.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geokr_core import __version__
from geokr_core.chips.read import read_rows, shard_ids
from geokr_core.errors import LandCoverError
from geokr_core.land_cover.legend import FRACTION, fraction_columns
from geokr_core.land_cover.product import LandCover, Product, open_land_cover
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.seams import TileCells
from geokr_core.proportions.tiles import look_up
from geokr_core.proportions.windows import Windows
from geokr_core.scenes.scene_outputs import CELLS, LEGEND_FILE, PIXELS, TABLE, chip_outputs, proportion_outputs
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import read_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary

_CHIPS_PER_PART = 512
"""Chips whose squares are counted at a time, to bound memory."""


def count_proportions(
    config: ProportionsConfig, source: Path, land_cover: Path, chips: Path, out: Path, reporter: Reporter = LOG
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
            if reason := count_scene(config, source, land_cover, chips, scene_id, out, reporter=reporter):
                reasons[scene_id] = reason
                reporter.warning(f"scene {scene_id} quarantined: {reason}")
            advance(1)
    proportion_outputs(out).finish(scene_ids)
    if len(reasons) == len(scene_ids):
        raise LandCoverError(
            f"{source}: none of {len(scene_ids)} scenes lies on known land cover. First reason: {next(iter(reasons.values()))}. "
            "Check that `land_cover` names products of the scenes' ground."
        )
    return _summary(out, [s for s in scene_ids if s not in reasons], reasons)


def count_scene(
    config: ProportionsConfig,
    source: Path,
    land_cover: Path,
    chips: Path,
    scene_id: str,
    out: Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
) -> str:
    """Count land cover under the chips of one scene.

    Args:
        config: how chip edges are carried to another CRS.
        source: the land-cover folder.
        land_cover: the index of its tiles.
        chips: folder of shards.
        scene_id: which scene.
        out: folder that gets ``<scene_id>.parquet``, ``.cells.npy`` and ``.record.json``, or ``.quarantine.json``.
        force: count even if the scene is current.
        reporter: hears which files are damaged and made again.

    Returns:
        Empty, or why the scene is quarantined: none of its ground has known land cover.

    Raises:
        MissingInputError: the scene has no shard, or there is no index.
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    index, outputs = open_land_cover(land_cover), proportion_outputs(out)
    outputs.share(_legend(config, index))
    inputs = _inputs(config, land_cover, chips, scene_id)
    if not force and (done := outputs.current(scene_id, inputs)) is not None:
        return done.reason
    with outputs.only_one(scene_id):
        # Whoever held the lock before may have done it.
        if not force and (done := outputs.current(scene_id, inputs)) is not None:
            return done.reason
        outputs.report_damage(scene_id, inputs, reporter)
        rows = read_rows(chips, scene_id)
        counted = count_rows(config, source, index, rows)
        if not (counted["known_fraction"] > 0).any():
            reason = _nothing_known(index.products[rows["land_cover"].iloc[0]], rows, counted)
            outputs.quarantine(scene_id, inputs, reason)
            return reason
        endings = (CELLS, TABLE) if config.cells_per_side else (TABLE,)
        with outputs.making(scene_id, inputs, endings) as unfinished:
            if config.cells_per_side:
                with unfinished.paths[CELLS].open("wb") as stream:
                    np.save(stream, count_cells(config, source, index, rows), allow_pickle=False)
            pq.write_table(
                pa.Table.from_pandas(counted, preserve_index=False), unfinished.paths[TABLE], compression="zstd"
            )
    return ""


def _nothing_known(product: Product, rows: pd.DataFrame, counted: pd.DataFrame) -> str:
    west, east, south, north = rows["lon"].min(), rows["lon"].max(), rows["lat"].min(), rows["lat"].max()
    kinds = ("outside", "unknown", "sea", "excluded")
    shares = ", ".join(f"{kind} {counted[f'{kind}_fraction'].mean():.0%}" for kind in kinds)
    return (
        f"no known land cover of product {product.config.name!r} under any of {len(rows)} chips ({shares}); they lie at "
        f"{south:.3f}…{north:.3f}° N, {west:.3f}…{east:.3f}° E, the tiles at {_extent(product)}"
    )


def is_scene_current(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str, out: Path) -> bool:
    """Whether the scene's proportions, or its quarantine, are what its inputs give, and undamaged."""
    inputs = _inputs(config, land_cover, chips, scene_id)
    return proportion_outputs(out).current(scene_id, inputs) is not None


def _inputs(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str) -> str:
    """Digest of all that a scene's proportions are a function of."""
    files = (chips / f"{scene_id}{TABLE}", land_cover / "tiles.parquet", land_cover / "products.json")
    return text_digest([*(file_md5(path) for path in files), as_plain(config), __version__])


def _extent(product: Product) -> str:
    west, south, east, north = shapely.total_bounds([tile.footprint for tile in product.tiles])
    return f"{south:.3f}…{north:.3f}° N, {west:.3f}…{east:.3f}° E"


def _legend(config: ProportionsConfig, index: LandCover) -> dict[str, Any]:
    """What the file that speaks of all scenes holds."""
    legend = index.legend
    return {
        "legend": legend.name,
        "digest": legend.digest,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "products": [as_plain(product.config) for product in index.products.values()],
        "config": as_plain(config),
    }


def count_rows(config: ProportionsConfig, source: Path, index: LandCover, rows: pd.DataFrame) -> pd.DataFrame:
    """Count land cover under the chips of one scene.

    Args:
        config: how chip edges are carried to another CRS.
        source: the land-cover folder.
        index: products and legend.
        rows: catalogue rows of one scene: ``chip_id``, ``crs_wkt``, ``transform``, ``size_px``, ``lon``, ``lat``,
            ``acquired``, ``land_cover``.

    Returns:
        One row a chip: ``chip_id``, ``product``, ``edition_year``; how the chip's ground divides into
        ``known_fraction`` (classes of the legend), ``excluded_fraction`` (classes outside it), ``sea_fraction`` (where
        the product tells it from water), ``unknown_fraction`` (no data) and ``outside_fraction`` (beyond every tile),
        which sum to 1; ``num_cells`` (cells of known class, in cells), ``gap_days`` (image minus middle of the edition
        year, NaN without a date), and one ``fraction_<class>`` of the known ground a class, summing to 1 (all 0 where
        nothing is known).

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    product = index.products[rows["land_cover"].iloc[0]]
    # One scene, one acquisition: all its chips are described by the same edition.
    year = product.edition(str(rows["acquired"].iloc[0]))
    windows = Windows.of_rows(rows)
    cells = TileCells(source, product, len(index.legend.classes))
    ground = look_up(windows, product.placed_in(year), cells, config.edge_segments)
    known = ground.classes.sum(axis=1)
    fractions = np.divide(ground.classes, known[:, None], out=np.zeros_like(ground.classes), where=known[:, None] > 0)
    return pd.DataFrame(
        {
            "chip_id": rows["chip_id"].to_numpy(),
            "product": product.config.name,
            "edition_year": year,
            "known_fraction": known,
            "excluded_fraction": ground.excluded,
            "sea_fraction": ground.sea,
            "unknown_fraction": ground.unknown,
            "outside_fraction": ground.outside,
            "num_cells": ground.num_cells,
            "gap_days": [product.gap_days(acquired, year) for acquired in rows["acquired"]],
            **{f"{FRACTION}{name}": fractions[:, k] for k, name in enumerate(index.legend.classes)},
        }
    )


def count_cells(config: ProportionsConfig, source: Path, index: LandCover, rows: pd.DataFrame) -> np.ndarray:
    """Count land cover under a grid of squares inside each chip, for labels that follow a crop.

    Args:
        config: ``cells_per_side`` n, and how edges are carried to another CRS.
        source: the land-cover folder.
        index: products and legend.
        rows: as for `count_rows`.

    Returns:
        uint8 (N, n, n, K): share of the square's whole ground in each class, times 255; rows and columns as in the
        chip's pixels. What is missing to 255 is not known.

    Raises:
        UnknownLegendCodeError: a code that the legend does not list.
        LandCoverError: a tile cannot be read.
    """
    side = config.cells_per_side
    product = index.products[rows["land_cover"].iloc[0]]
    placed = product.placed_in(product.edition(str(rows["acquired"].iloc[0])))
    cells = TileCells(source, product, len(index.legend.classes))
    windows, num_classes = Windows.of_rows(rows), len(index.legend.classes)
    # A square is small enough for straight edges wherever the chip's own are cut into as many pieces.
    segments = max(1, config.edge_segments // side)
    parts = []
    for first in range(0, len(rows), _CHIPS_PER_PART):
        squares = windows[first : first + _CHIPS_PER_PART].cells(side)
        ground = look_up(squares, placed, cells, segments)
        parts.append(_as_bytes(ground.classes).reshape(-1, side, side, num_classes))
    return np.concatenate(parts)


def _as_bytes(shares: np.ndarray) -> np.ndarray:
    """Shares of 1 as bytes whose sum is that of the shares: the largest remainders are rounded up."""
    scaled = shares * 255.0
    whole = np.floor(scaled + 1e-6)
    missing = np.rint(scaled.sum(axis=1) - whole.sum(axis=1)).astype(int)
    rank = np.argsort(np.argsort(whole - scaled, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(whole + (rank < missing[:, None]), dtype=np.uint8)


def scene_summary(out: Path, chips: Path, scene_id: str) -> Summary:
    """What one scene's proportions show for themselves, or why there are none.

    Raises:
        MissingInputError: the scene has not been counted.
    """
    outputs = proportion_outputs(out)
    if (reason := outputs.reason(scene_id)) is not None:
        return Summary({"num_chips": 0, "quarantined": reason}, warnings=[f"{scene_id}: {reason}"])
    table = outputs.table(scene_id).to_pandas()
    from geokr_core.pictures.images import panel

    legend = read_json(out / LEGEND_FILE)
    fractions = table[fraction_columns(legend["classes"])].to_numpy()
    rows = read_rows(chips, scene_id)
    images = chip_outputs(chips).array(scene_id, PIXELS)
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
    legend: dict[str, Any] = read_json(out / LEGEND_FILE)
    table = pd.concat(
        [proportion_outputs(out).table(scene_id).to_pandas() for scene_id in scene_ids], ignore_index=True
    )
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
            {"class": name, "fraction": round(float(table[f"{FRACTION}{name}"].mean()), 4)}
            for name in legend["classes"]
        ],
        warnings=[f"{scene_id}: {reason}" for scene_id, reason in reasons.items()],
    )
