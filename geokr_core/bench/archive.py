"""Counting the land cover of an archive of small scenes: what a scene costs as scenes and land-cover tiles become many.

Scenes are of four chips. Tiles that no scene lies on are entries of the index without a file: who opens one fails.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import shapely

from geokr_core.bench.measure import Measurement
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive

if TYPE_CHECKING:
    from geokr_core.chain.params import Params

SCENES = (100, 400, 1600)
"""Sizes of the archive, under one tile."""

TILES = ((100, True), (1000, True), (2600, False))
"""Tiles of the index over the smallest archive, and whether they lie near its scenes or far away."""

STATUS_SCENES = 4000
"""Scenes of the store that is asked where it stands: a million chips and more."""


def bench_archive(folder: Path) -> Measurement:
    """CPU time of a scene under 2,600 tiles as a multiple of that under one."""
    details: dict[str, float] = {}
    for number in SCENES:
        archive = _Archive(folder / str(number), number)
        details[f"cpu_ms_a_scene_of_{number}"] = archive.cpu_ms(archive.index)
        details[f"cpu_ms_a_scene_of_{number}_nothing_to_do"] = archive.cpu_ms(archive.index)
        if number == SCENES[1]:
            details["times_faster_by_all_cores"] = archive.wall_ms(1) / archive.wall_ms(None)
    growth = details[f"cpu_ms_a_scene_of_{SCENES[-1]}"] / details[f"cpu_ms_a_scene_of_{SCENES[0]}"]
    details["exponent_in_scenes"] = 1.0 + float(np.log(growth) / np.log(SCENES[-1] / SCENES[0]))
    archive = _Archive(folder / str(SCENES[0]), SCENES[0])
    alone = archive.cpu_ms(archive.index, again=True)
    details["cpu_ms_a_scene_under_1_tile"] = alone
    for tiles, near in TILES:
        place = "near" if near else "far"
        details[f"cpu_ms_a_scene_under_{tiles}_tiles_{place}"] = archive.cpu_ms(archive.widened(tiles, near=near))
    details["cpu_ms_a_scene_without_squares"] = without = archive.cpu_ms(archive.index, squares=False)
    for squares, name, mine in ((False, "chips", without), (True, "chips_and_squares", alone)):
        if (rival := archive.exactextract_cpu_ms(squares=squares)) is not None:
            details[f"cpu_ms_a_scene_by_exactextract_{name}"] = rival
            details[f"times_exactextract_{name}"] = mine / rival  # the same polygons
    details |= status_seconds(folder / "status", STATUS_SCENES)
    most, near = TILES[-1]
    ratio = details[f"cpu_ms_a_scene_under_{most}_tiles_{'near' if near else 'far'}"] / alone
    return Measurement("archive", ratio, 1.5, SCENES[0], "scenes of four chips with 64 squares each", details)


def status_seconds(folder: Path, num_scenes: int) -> dict[str, float]:
    """What it takes to say that a store of many scenes is up to date, and to run what has nothing to do.

    The bytes of its files are known, as they are after a run.

    The store is a listing: every file of it is there and recorded, and holds a few bytes, since no more of it is asked.

    Args:
        folder: gets the scenes and the store.
        num_scenes: how many scenes, each with three files of chips and three of proportions.
    """
    from geokr_core.chain.params import load_params
    from geokr_core.chain.run import run
    from geokr_core.chain.status import status
    from geokr_core.errors import ConfigError

    params = load_params(make_small_archive(folder, num_scenes=1, scene_size_px=64))
    _write_listing(params, num_scenes)
    time.sleep(2.5)  # files just written are read again
    status(params)
    details: dict[str, float] = {}
    asked: dict[str, Callable[[], object]] = {
        "status": lambda: status(params),
        "run": lambda: run(params, RecordingReporter(), steps=_LISTED),
        "run_one_step": lambda: run(params, RecordingReporter(), steps=["proportions"]),
    }
    for name, ask in asked.items():
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        details[f"{name}_s_of_{num_scenes}_scenes"] = time.perf_counter() - wall
        details[f"{name}_cpu_s_of_{num_scenes}_scenes"] = time.process_time() - cpu
    found = {one.step: one for one in status(params)}
    if stale := [name for name in _LISTED if found[name].state != "up to date"]:
        raise ConfigError(
            f"bench archive: {stale[0]} is not up to date ({found[stale[0]].reasons}); mend the benchmark."
        )
    return details


_LISTED = ("scenes", "land_cover", "chips", "proportions", "levir_kr")


def _write_listing(params: "Params", num_scenes: int) -> None:
    from geokr_core.chain.contents import Contents
    from geokr_core.chain.freshness import inputs_of
    from geokr_core.chain.record import Record, write_record
    from geokr_core.chain.steps import STEPS, Folders, source_folder
    from geokr_core.step.digests import file_md5, folder_version, text_digest
    from geokr_core.step.summary import Summary, write_summary

    folders, scenes = Folders(params), [f"scene_{number:06d}" for number in range(num_scenes)]
    names = {
        "scenes": ["inventory.parquet", "inventory.json"],
        "land_cover": ["tiles.parquet", "products.json"],
        "chips": ["cut.json", *(f"{scene}{end}" for scene in scenes for end in (".npy", ".parquet", ".record.json"))],
        "proportions": [
            "legend.json",
            *(f"{scene}{end}" for scene in scenes for end in (".cells.npy", ".parquet", ".record.json")),
        ],
        "levir_kr": ["catalogue.parquet", "manifest.json"],
    }
    for scene in scenes:
        (params.scenes.folder / f"{scene}.tif").write_text(scene)
    for step in _LISTED:
        folders[step].mkdir(parents=True)
        for name in names[step]:
            (folders[step] / name).write_text(name)
        contents = Contents(params.store)
        inputs, files = inputs_of(params, STEPS[step], contents), contents.of_output(folders[step])
        sources = {name: contents.of_source(source_folder(params, name)) for name in STEPS[step].sources}
        write_summary(folders.state(step), Summary({"seconds": 0.0}))
        kept = {path.name: file_md5(path) for path in folders.state(step).iterdir()}
        record = Record(inputs, text_digest(inputs), folder_version(files), files, summary=kept)
        write_record(folders.state(step), record, sources)


class _Archive:
    """Small scenes that are cut, and an index of the one tile that they lie on."""

    def __init__(self, folder: Path, num_scenes: int) -> None:
        from geokr_core.chain.params import load_params
        from geokr_core.chips.cut import cut_chips
        from geokr_core.land_cover.tile_index import index_products
        from geokr_core.scenes.inventory import take_inventory

        made = (folder / "params.yaml").exists()
        path = folder / "params.yaml" if made else make_small_archive(folder, num_scenes=num_scenes, scene_size_px=64)
        self._params, self._num_scenes, self._reporter = load_params(path), num_scenes, RecordingReporter()
        self._store = self._params.store
        self.index = self._store / "land_cover"
        if not made:
            take_inventory(self._params.scenes, self._store / "scenes", self._reporter)
            source = self._params.scenes.folder
            cut_chips(self._params.chips, source, self._store / "scenes", self._store / "chips", self._reporter)
            index_products(self._params.land_cover, self.index, self._reporter)

    def cpu_ms(self, index: Path, *, again: bool = False, squares: bool = True) -> float:
        """CPU milliseconds a scene of the whole step; a second call for the same index has nothing to do.

        Args:
            index: of the land cover.
            again: count anew what was counted.
            squares: count the squares inside each chip, too.
        """
        # The time of other processes would not be seen here.
        name = f"{index.name}_again" if again else f"counted_{index.name}"
        out = self._store / (name if squares else f"{name}_without_squares")
        started = time.process_time()
        self._count(index, out, workers=1, squares=squares)
        return (time.process_time() - started) / self._num_scenes * 1e3

    def wall_ms(self, workers: int | None) -> float:
        """Milliseconds a scene of the whole step by so many processes; None: one a usable core."""
        out = self._store / f"counted_by_{workers or 'all'}"
        started = time.perf_counter()
        self._count(self.index, out, workers=workers)
        return (time.perf_counter() - started) / self._num_scenes * 1e3

    def _count(self, index: Path, out: Path, *, workers: int | None, squares: bool = True) -> None:
        from geokr_core.proportions.count import count_proportions

        changed = {"workers": workers} if squares else {"workers": workers, "cells_per_side": 0}
        config = self._params.proportions.model_copy(update=changed)
        count_proportions(config, self._params.land_cover.folder, index, self._store / "chips", out, self._reporter)

    def widened(self, num_tiles: int, *, near: bool) -> Path:
        """The index with more tiles, around the one there is or on the other side of the Earth."""
        import geopandas as gpd

        table = gpd.read_parquet(self.index / "tiles.parquet")
        west, south, east, north = table.total_bounds
        side = int(np.ceil(np.sqrt(num_tiles)))
        rows = []
        for number in range(num_tiles - 1):
            ring, place = divmod(number, side)
            # East of the tile, without a gap or an overlap; or far in the south.
            right = (east - west) * (place + 1) if near else 60.0 + 3.0 * place
            down = (north - south) * (ring - side // 2) if near else 50.0 + 1.5 * ring
            row = table.iloc[0].copy()
            a, b, c, d, e, f = row["transform"]
            row["transform"], row["file"] = [a, b, c + right, d, e, f - down], f"absent_{number}.tif"
            row["geometry"] = shapely.affinity.translate(row["geometry"], right, -down)
            rows.append(row)
        out = self._store / f"{num_tiles}_{'near' if near else 'far'}"
        out.mkdir()
        wide = gpd.GeoDataFrame(pd.concat([table, pd.DataFrame(rows)], ignore_index=True), geometry="geometry")
        wide["nodata"] = wide["nodata"].astype("Int64")
        wide.set_crs("EPSG:4326", allow_override=True).to_parquet(out / "tiles.parquet", index=False)
        (out / "products.json").write_bytes((self.index / "products.json").read_bytes())
        return out

    def exactextract_cpu_ms(self, *, squares: bool) -> float | None:
        """CPU milliseconds a scene of exactextract for the chips' polygons; None where it is not installed.

        Args:
            squares: count the squares inside each chip too, as the step does.
        """
        from geokr_core.land_cover.product import open_land_cover
        from geokr_core.proportions.labels import CHIP_COLUMNS, SceneChips
        from geokr_core.rasters.grid import reproject

        try:
            from exactextract import exact_extract
        except ImportError:
            return None
        index, source = open_land_cover(self.index), self._params.land_cover.folder
        outlines = []
        for path in sorted((self._store / "chips").glob("*.parquet")):
            chips = SceneChips.of_table(pq.read_table(path, columns=list(CHIP_COLUMNS)), index, source).windows
            parts = [chips, chips.cells(self._params.proportions.cells_per_side)] if squares else [chips]
            outlines += [reproject(part.outlines(1), chips.crs_wkt, "EPSG:4326") for part in parts]
        features = [
            {"type": "Feature", "id": number, "geometry": shapely.geometry.mapping(shape)}
            for number, shape in enumerate(shapely.polygons(np.concatenate(outlines)))
        ]
        started = time.process_time()
        exact_extract(str(source / "tile.tif"), features, ["unique", "frac"])
        return (time.process_time() - started) / self._num_scenes * 1e3
