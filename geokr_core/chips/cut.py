"""Cut scenes into chips: one scene in, one shard out.

A chip is a square window of the scene's own grid, never resampled; the transform in its row is that of exactly the
pixels in the shard. A scene is read once from top to bottom in pieces of a few lines, and written as it is read. How a
shard comes to lie on the disk is in ``shards``, the way to 8 bits in ``stretch``, what makes a chip unfit in ``quality``.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from geokr_core import __version__
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.quality import ChipColumns, chip_sums, fractions
from geokr_core.chips.scene_writer import SceneWriter
from geokr_core.chips.shards import new_shard
from geokr_core.chips.stretch import Stretch, choose_stretch
from geokr_core.chips.windows import ChipWindows, Piece, chip_windows, lines_of_chips
from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.checksums import Entry
from geokr_core.rasters.open_raster import open_raster
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.scenes.reader import SceneReader, open_scene
from geokr_core.scenes.refusals import Refusals
from geokr_core.scenes.scene import Scene
from geokr_core.scenes.scene_outputs import PIXELS, TABLE, SceneOutputs, SceneRecord, chip_outputs
from geokr_core.step.digests import text_digest
from geokr_core.step.files import read_json
from geokr_core.step.processes import in_processes, num_processes
from geokr_core.step.reporter import LOG, RecordingReporter, Reporter
from geokr_core.step.section import effective
from geokr_core.step.summary import Summary
from geokr_core.step.threads import in_order, usable_cores

_BLOCK_CACHE_BYTES = 160_000_000
"""GDAL's cache of decoded blocks: a row of 512-pixel tiles of a scene 30 000 pixels wide with four 16-bit bands fits."""

_SMALL_PIXELS = 4_000_000
"""Pixels up to which a scene is cut by one thread where there are many such scenes: each in one of several processes."""

_MAX_WORKERS = 8
"""Threads beyond these only hold memory: reading takes turns."""


@dataclass(frozen=True)
class SceneCut:
    """What became of one scene: its chips, or the reason why there are none.

    Attributes:
        scene_id: which scene.
        num_chips: chips in its shard.
        reason: why it is quarantined; empty otherwise.
        dropped: windows that gave no chip, by the threshold that they failed.
    """

    scene_id: str
    num_chips: int
    reason: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)


def cut_chips(
    config: ChipsConfig, source: Path, scenes: Path, out: Path, reporter: Reporter = LOG, *, force: bool = False
) -> Summary:
    """Cut every usable scene. Scenes whose shard is current are skipped, so a killed run is resumed where it was.

    Args:
        config: size, stride, bands, stretch and quality thresholds.
        source: the raw scene folder.
        scenes: the inventory's folder.
        out: folder of shards.
        reporter: hears each scene that is quarantined.
        force: cut current scenes too.

    Returns:
        Counts, and a table of scenes: chips, windows dropped by reason, quarantine.

    Raises:
        MissingInputError: no inventory.
        ConfigError: the stretch does not suit the data.
        SceneRefusedError: not one scene gave a chip; lists the reasons.
    """
    usable, refusals = usable_scenes(scenes), Refusals(reporter)
    with reporter.progress("chips", len(usable)) as advance:
        found = {}
        for cut in _cut_all(config, source, scenes, usable.values(), out, reporter, force=force):
            found[cut.scene_id] = cut
            if cut.reason:
                refusals.refused(cut.scene_id, cut.reason)
            else:
                refusals.usable()
            advance(1)
    cuts = [found[scene_id] for scene_id in usable]
    chip_outputs(out).finish(usable)
    quarantined = [cut for cut in cuts if cut.reason]
    if len(quarantined) == len(cuts):
        raise SceneRefusedError(f"{source}: none of {len(cuts)} scenes gave a chip:\n{refusals.named()}")
    num_chips = sum(cut.num_chips for cut in cuts)
    return Summary(
        numbers={
            "num_chips": num_chips,
            "num_shards": len(cuts) - len(quarantined),
            "num_quarantined": len(quarantined),
            "num_dropped": sum(sum(cut.dropped.values()) for cut in cuts),
            "megabytes": round(num_chips * config.size_px**2 * len(config.bands) / 1e6, 2),
        },
        table=[_table_row(cut, cuts) for cut in cuts[:50]],
        picture_png=_preview(out, cuts, config),
        warnings=[f"{cut.scene_id}: {cut.reason}" for cut in quarantined],
    )


def _cut_all(
    config: ChipsConfig,
    source: Path,
    scenes: Path,
    usable: Collection[Scene],
    out: Path,
    reporter: Reporter,
    *,
    force: bool,
) -> Iterator[SceneCut]:
    """Cut scenes: many small ones in several processes, the others one after the other in several threads."""
    outputs = chip_outputs(out)
    small = [] if force else _small_to_do(config, usable, outputs)
    processes = num_processes(config.workers, len(small))
    elsewhere = {scene.scene_id for scene in small} if processes > 1 else set[str]()
    if elsewhere:
        work = partial(_cut_elsewhere, config.model_copy(update={"workers": 1}), source, scenes, out)
        for cut, warnings, checksums in in_processes(work, small, processes):
            outputs.take_over(checksums)
            for warning in warnings:
                reporter.warning(warning)
            yield cut
    for scene in usable:
        if scene.scene_id not in elsewhere:
            yield cut_scene(config, source, scenes, scene, out, force=force, reporter=reporter)


def _small_to_do(config: ChipsConfig, scenes: Iterable[Scene], outputs: SceneOutputs) -> list[Scene]:
    """Scenes to be cut that are too small for several threads to find work in one."""
    small = (scene for scene in scenes if scene.grid.width * scene.grid.height <= _SMALL_PIXELS)
    return [scene for scene in small if outputs.current(scene.scene_id, scene_inputs(config, scene)) is None]


def _cut_elsewhere(
    config: ChipsConfig, source: Path, scenes: Path, out: Path, scene: Scene
) -> tuple[SceneCut, Sequence[str], Mapping[str, Entry]]:
    """Cut a scene in another process; with what it warns of, and the checksums of what it wrote."""
    reporter = RecordingReporter()
    cut = cut_scene(config, source, scenes, scene, out, reporter=reporter)
    return cut, reporter.warnings, chip_outputs(out).checksums_of(scene.scene_id)


def _table_row(cut: SceneCut, cuts: list[SceneCut]) -> dict[str, Any]:
    """One scene of the summary; a column for each threshold that any scene's windows failed."""
    failed = sorted({name for other in cuts for name in other.dropped})
    dropped = {f"dropped_by_{name}": cut.dropped.get(name, 0) for name in failed}
    return {"scene": cut.scene_id, "chips": cut.num_chips, **dropped, "quarantined": cut.reason}


def cut_scene(
    config: ChipsConfig,
    source: Path,
    scenes: Path,
    scene: Scene,
    out: Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
) -> SceneCut:
    """Cut one scene into its shard, or write down why that cannot be.

    Safe to call from several processes at once: one cuts, the others wait and find the shard current.

    Args:
        config: how to cut.
        source: the raw scene folder.
        scenes: the inventory's folder.
        scene: from the inventory.
        out: folder of shards; gets ``<scene_id>.npy``, ``.parquet`` and ``.record.json``, or ``.quarantine.json``.
        force: cut even if the shard is current.
        reporter: hears which files are damaged and made again.

    Returns:
        The number of chips, or the reason of the quarantine.

    Raises:
        ConfigError: the stretch does not suit the data.
        OSError: the file system refused; an earlier shard is left as it was.
    """
    outputs, inputs = chip_outputs(out), scene_inputs(config, scene)
    outputs.share(_how(config, scenes))
    if not force and (done := outputs.current(scene.scene_id, inputs)) is not None:
        return _as_cut(done)
    with outputs.only_one(scene.scene_id):
        # The last holder of the lock may have cut it.
        if not force and (done := outputs.current(scene.scene_id, inputs)) is not None:
            return _as_cut(done)
        outputs.report_damage(scene.scene_id, inputs, reporter)
        try:
            return _cut(config, source, scene, outputs, inputs)
        except SceneRefusedError as error:
            outputs.quarantine(scene.scene_id, inputs, str(error))
            return SceneCut(scene.scene_id, 0, str(error))


def is_scene_current(config: ChipsConfig, scene: Scene, out: Path) -> bool:
    """Whether the scene's shard, or its quarantine, is what its pixels and ``config`` give, and undamaged."""
    return chip_outputs(out).current(scene.scene_id, scene_inputs(config, scene)) is not None


def scene_inputs(config: ChipsConfig, scene: Scene) -> str:
    """Digest of all that a shard is a function of: pixels, place and what the rows repeat of the scene, and the code."""
    grid = [scene.grid.wkt, tuple(scene.grid.transform), scene.grid.height, scene.grid.width]
    told = {field.name: getattr(scene, field.name) for field in fields(scene) if field.name != "grid"}
    return text_digest([told, grid, effective(config), __version__, *config.code_mark()])


def _as_cut(record: SceneRecord) -> SceneCut:
    notes = record.notes
    return SceneCut(record.scene_id, int(notes.get("num_chips", 0)), record.reason, notes.get("dropped", {}))


def _how(config: ChipsConfig, scenes: Path) -> dict[str, Any]:
    """What the file that all scenes share holds."""
    generated = bool(read_json(scenes / "inventory.json")["generated_world"])
    return {
        "bands": list(config.bands),
        "size_px": config.size_px,
        "config": effective(config),
        "generated_world": generated,
    }


def _cut(config: ChipsConfig, source: Path, scene: Scene, outputs: SceneOutputs, inputs: str) -> SceneCut:
    windows = chip_windows(config, scene.grid)
    workers = min(_MAX_WORKERS, config.workers or usable_cores())
    with (
        rasterio.Env(GDAL_CACHEMAX=_BLOCK_CACHE_BYTES, GDAL_NUM_THREADS=_decoding_threads(source, scene, workers)),
        open_scene(source, scene, config.bands) as reader,
    ):
        stretch = choose_stretch(config, scene, reader)
        pieces = in_order(_stretcher(reader, stretch, windows), windows.pieces, workers)
        num_bands = len(config.bands)
        with (
            closing(pieces),
            outputs.making(scene.scene_id, inputs, (PIXELS, TABLE)) as unfinished,
        ):
            shard_files = unfinished.paths[PIXELS], unfinished.paths[TABLE]
            with new_shard(*shard_files, size_px=config.size_px, num_bands=num_bands) as shard:
                writer = SceneWriter(config, scene, stretch, shard, windows.columns)
                for top, line, sums, has_cloud_mask in lines_of_chips(pieces, windows, scene.grid.width, num_bands):
                    quality = fractions(sums, config.size_px, num_bands, has_cloud_mask=has_cloud_mask)
                    writer.add_line(top, line, quality)
                writer.finish()
            unfinished.notes = {"num_chips": shard.num_chips, "dropped": writer.dropped}
    return SceneCut(scene.scene_id, shard.num_chips, dropped=writer.dropped)


def _decoding_threads(source: Path, scene: Scene, workers: int) -> int:
    """Threads in which GDAL decodes blocks: all for compressed or tiled files, one for plain lines.

    Plain lines are too little work for a thread: two threads take twice as long as one.
    """
    try:
        with open_raster(source / scene.files[0]) as dataset:
            plain_lines = dataset.compression is None and dataset.block_shapes[0][1] == dataset.width
    except RasterioError as error:
        raise SceneRefusedError(f"cannot be opened: {error}") from error
    return 1 if plain_lines else workers


def _stretcher(reader: SceneReader, stretch: Stretch, windows: ChipWindows) -> Callable[[tuple[int, int]], Piece]:
    """What is done with a piece, in any thread: read it, one thread at a time, then stretch it and sum up its quality."""
    turn = threading.Lock()
    columns = ChipColumns(windows.columns, windows.size_px)

    def stretch_piece(piece: tuple[int, int]) -> Piece:
        with turn:
            pixels, valid = reader.read(*piece)
            cloud = reader.read_cloud(*piece)
        mask = None if valid.all() else valid
        planes = stretch.planes(pixels, mask)
        sums = chip_sums(planes, mask, cloud, columns, windows.group_lines)
        return Piece(piece[0], np.stack(planes, axis=-1), sums, cloud is not None)

    return stretch_piece


def _preview(out: Path, cuts: list[SceneCut], config: ChipsConfig) -> bytes:
    from geokr_core.pictures.images import as_rgb, mosaic, png

    shards = [cut for cut in cuts if not cut.reason]
    chosen = [shards[i] for i in np.linspace(0, len(shards) - 1, min(24, len(shards))).astype(int)]
    tiles = []
    for cut in chosen:
        shard = np.load(out / f"{cut.scene_id}.npy", mmap_mode="r", allow_pickle=False)
        tiles.append(shard[len(shard) // 2])
    return png(mosaic(as_rgb(np.stack(tiles), config.bands), columns=8))
