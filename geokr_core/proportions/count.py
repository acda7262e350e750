"""Count land cover under the chips of all scenes: one table a scene, and what belongs beside it.

Which ground is of which class is found in ``tiles``, the columns of a label are made in ``labels``; here are the files
and what makes them current.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geokr_core import __version__
from geokr_core.chips.read import read_rows, shard_ids
from geokr_core.errors import LandCoverError, MissingInputError
from geokr_core.land_cover.legend import fraction_columns
from geokr_core.land_cover.open_tiles import close_tiles
from geokr_core.land_cover.product import LandCover, Product, open_land_cover
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.labels import CHIP_COLUMNS, SceneChips, count_chips, count_squares
from geokr_core.rasters.checksums import Entry, Mark, file_mark
from geokr_core.scenes.refusals import Refusals
from geokr_core.scenes.scene_outputs import CELLS, LEGEND_FILE, PIXELS, TABLE, chip_outputs, proportion_outputs
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.files import read_json
from geokr_core.step.processes import in_processes, num_processes
from geokr_core.step.reporter import LOG, RecordingReporter, Reporter
from geokr_core.step.section import as_plain, effective
from geokr_core.step.summary import Summary

_INDEX_FILES = ("tiles.parquet", "products.json")


def count_proportions(
    config: ProportionsConfig, source: Path, land_cover: Path, chips: Path, out: Path, reporter: Reporter = LOG
) -> Summary:
    """Count land cover under every chip. Scenes that are current are skipped.

    Args:
        config: how chip edges are carried to another CRS, and how many processes count; the result is the same.
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
    scene_ids, outputs = shard_ids(chips), proportion_outputs(out)
    index = _opened_index(land_cover)
    outputs.share(_legend(config, index))
    found: dict[str, _Counted] = {}
    refusals = Refusals(reporter)
    with reporter.progress("proportions", len(scene_ids)) as advance:
        for counted in _count_all(config, source, land_cover, chips, scene_ids, out, reporter):
            found[counted.scene_id] = counted
            if counted.reason:
                refusals.refused(counted.scene_id, counted.reason)
            else:
                refusals.usable()
            advance(1)
    reasons = {scene_id: found[scene_id].reason for scene_id in scene_ids if found[scene_id].reason}
    outputs.finish(scene_ids)
    if len(reasons) == len(scene_ids):
        raise LandCoverError(
            f"{source}: none of {len(scene_ids)} scenes lies on known land cover. Check that `land_cover` names products of "
            f"the scenes' ground. The reasons:\n{refusals.named()}"
        )
    return _summary(out, [found[s] for s in scene_ids if s not in reasons], reasons)


def _count_all(
    config: ProportionsConfig,
    source: Path,
    land_cover: Path,
    chips: Path,
    scene_ids: Sequence[str],
    out: Path,
    reporter: Reporter,
) -> Iterator["_Counted"]:
    """What became of each scene: of those that are current, then of those that are counted, in order."""
    outputs, to_do = proportion_outputs(out), []
    for scene_id in scene_ids:
        if (done := outputs.current(scene_id, _inputs(config, land_cover, chips, scene_id))) is not None:
            yield _Counted(scene_id, done.reason)
        else:
            to_do.append(scene_id)
    work = partial(_counted, config, source, land_cover, chips, out)
    try:
        for counted in in_processes(work, to_do, num_processes(config.workers, len(to_do))):
            outputs.take_over(counted.checksums)
            for warning in counted.warnings:
                reporter.warning(warning)
            yield counted
    finally:
        close_tiles()


@dataclass(frozen=True)
class _Counted:
    """What became of a scene.

    Attributes:
        scene_id: which scene.
        reason: why it is quarantined; empty where it is not.
        warnings: what the process that counted it warns of.
        checksums: of the files that the process wrote.
        shares: the columns that the summary is made of; None where another run counted the scene, and a file has them.
    """

    scene_id: str
    reason: str
    warnings: Sequence[str] = ()
    checksums: Mapping[str, Entry] = field(default_factory=dict)
    shares: Mapping[str, np.ndarray] | None = None


def _counted(
    config: ProportionsConfig, source: Path, land_cover: Path, chips: Path, out: Path, scene_id: str
) -> _Counted:
    """Count a scene that is not current. The file that all scenes share is written, and is not asked about again."""
    reporter = RecordingReporter()
    index, inputs = _opened_index(land_cover), _inputs(config, land_cover, chips, scene_id)
    done = _count(config, source, index, chips, scene_id, inputs, out, force=False, reporter=reporter)
    return replace(done, warnings=reporter.warnings, checksums=proportion_outputs(out).checksums_of(scene_id))


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
    index, outputs = _opened_index(land_cover), proportion_outputs(out)
    outputs.share(_legend(config, index))
    inputs = _inputs(config, land_cover, chips, scene_id)
    if not force and (done := outputs.current(scene_id, inputs)) is not None:
        return done.reason
    return _count(config, source, index, chips, scene_id, inputs, out, force=force, reporter=reporter).reason


def _count(
    config: ProportionsConfig,
    source: Path,
    index: LandCover,
    chips: Path,
    scene_id: str,
    inputs: str,
    out: Path,
    *,
    force: bool,
    reporter: Reporter | None,
) -> _Counted:
    outputs = proportion_outputs(out)
    with outputs.only_one(scene_id):
        # The last holder of the lock may have counted it.
        if not force and (done := outputs.current(scene_id, inputs)) is not None:
            return _Counted(scene_id, done.reason)
        outputs.report_damage(scene_id, inputs, reporter)
        scene = SceneChips.of_table(chip_outputs(chips).table(scene_id, CHIP_COLUMNS), index, source)
        counted = count_chips(config, index, scene)
        if not (counted["known_fraction"] > 0).any():
            reason = _nothing_known(scene, counted)
            outputs.quarantine(scene_id, inputs, reason)
            return _Counted(scene_id, reason)
        endings = (CELLS, TABLE) if config.cells_per_side else (TABLE,)
        with outputs.making(scene_id, inputs, endings) as unfinished:
            if config.cells_per_side:
                with unfinished.paths[CELLS].open("wb") as stream:
                    np.save(stream, count_squares(config, scene), allow_pickle=False)
            content = pa.BufferOutputStream()  # written at once: a small table's columns one by one would take longer
            pq.write_table(pa.table(counted), content, compression="zstd")
            unfinished.paths[TABLE].write_bytes(content.getvalue())
    return _Counted(scene_id, "", shares={name: counted[name] for name in _summed(index.legend.classes)})


def _nothing_known(scene: SceneChips, counted: Mapping[str, Any]) -> str:
    lon, lat = scene.windows.lon, scene.windows.lat
    kinds = ("outside", "unknown", "sea", "excluded")
    shares = ", ".join(f"{kind} {counted[f'{kind}_fraction'].mean():.0%}" for kind in kinds)
    return (
        f"no known land cover of product {scene.product.config.name!r} under any of {len(lon)} chips ({shares}); they lie at "
        f"{lat.min():.3f}…{lat.max():.3f}° N, {lon.min():.3f}…{lon.max():.3f}° E, the tiles at {_extent(scene.product)}"
    )


def is_scene_current(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str, out: Path) -> bool:
    """Whether the scene's proportions, or its quarantine, are what its inputs give, and undamaged."""
    inputs = _inputs(config, land_cover, chips, scene_id)
    return proportion_outputs(out).current(scene_id, inputs) is not None


def _inputs(config: ProportionsConfig, land_cover: Path, chips: Path, scene_id: str) -> str:
    """Digest of all that a scene's proportions are a function of."""
    index = _index_md5s(land_cover, _index_marks(land_cover))
    return text_digest(
        [file_md5(chips / f"{scene_id}{TABLE}"), *index, effective(config), __version__, *config.code_mark()]
    )


def _opened_index(land_cover: Path) -> LandCover:
    """`open_land_cover`, once a process for as long as the index is not made again."""
    return _opened(land_cover, _index_marks(land_cover))


def _index_marks(land_cover: Path) -> tuple[Mark, ...]:
    try:
        return tuple(file_mark(land_cover / name) for name in _INDEX_FILES)
    except FileNotFoundError as error:
        raise MissingInputError(f"{land_cover}: no index of land-cover tiles; run `geokr land-cover` first.") from error


@lru_cache(maxsize=4)
def _opened(land_cover: Path, marks: tuple[Mark, ...]) -> LandCover:
    return open_land_cover(land_cover)


@lru_cache(maxsize=4)
def _index_md5s(land_cover: Path, marks: tuple[Mark, ...]) -> tuple[str, ...]:
    return tuple(file_md5(land_cover / name) for name in _INDEX_FILES)


def _extent(product: Product) -> str:
    west, south, east, north = shapely.total_bounds([tile.footprint for tile in product.tiles])
    return f"{south:.3f}…{north:.3f}° N, {west:.3f}…{east:.3f}° E"


def _legend(config: ProportionsConfig, index: LandCover) -> dict[str, Any]:
    """What the file that all scenes share holds."""
    legend = index.legend
    return {
        "legend": legend.name,
        "digest": legend.digest,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "products": [as_plain(product.config) for product in index.products.values()],
        "config": effective(config),
    }


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


def _summed(classes: Sequence[str]) -> tuple[str, ...]:
    """Columns that the summary is made of."""
    return ("unknown_fraction", "excluded_fraction", "num_cells", *fraction_columns(classes))


def _summary(out: Path, scenes: Sequence[_Counted], reasons: Mapping[str, str]) -> Summary:
    legend: dict[str, Any] = read_json(out / LEGEND_FILE)
    columns, outputs = _summed(legend["classes"]), proportion_outputs(out)
    parts = [scene.shares or outputs.table(scene.scene_id, columns) for scene in scenes]
    values = {name: np.concatenate([part[name] for part in parts]) for name in columns}
    return Summary(
        numbers={
            "num_chips": len(values["num_cells"]),
            "num_scenes": len(scenes),
            "num_quarantined": len(reasons),
            "unknown_fraction": round(float(values["unknown_fraction"].mean()), 4),
            "excluded_fraction": round(float(values["excluded_fraction"].mean()), 4),
            "median_cells": round(float(np.median(values["num_cells"])), 2),
        },
        table=[
            {"class": name, "fraction": round(float(values[share].mean()), 4)}
            for name, share in zip(legend["classes"], fraction_columns(legend["classes"]), strict=True)
        ],
        warnings=[f"{scene_id}: {reason}" for scene_id, reason in reasons.items()],
    )
