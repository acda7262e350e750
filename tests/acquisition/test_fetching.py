"""Windows of a catalogue's rasters, fetched whole or not at all, and the chain over them."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
import yaml
from rasterio.features import geometry_mask
from rasterio.warp import transform_bounds
from typer.testing import CliRunner

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.cli import app
from geokr_core.errors import AcquisitionError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.tile_index import index_products
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.freeze import freeze
from geokr_core.levir_kr.stac_export import export_stac
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.count import count_proportions
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.reporter import RecordingReporter
from tests.acquisition.served import BLUE, FIRST, NORTH_M, UTM, WEST_M, Loop, contents, run


@pytest.mark.parametrize("root", ["/", "/static/catalog.json"])
def test_windows_hold_the_very_pixels_of_the_source_in_their_place(loop: Loop, tmp_path: Path, root: str) -> None:
    summary = run(loop.config(root), tmp_path)
    assert summary.numbers["num_items"] == 3
    west, south, east, north = loop.middle()
    for name, bands in loop.world["pixels"].items():
        for band, pixels in bands.items():
            with rasterio.open(tmp_path / "scenes" / "s2" / name / f"{name}_{band}.tif") as source:
                col, row = round((source.transform.c - WEST_M) / 10), round((NORTH_M - source.transform.f) / 10)
                assert (source.transform.a, source.transform.e) == (10.0, -10.0)
                np.testing.assert_array_equal(
                    source.read(1), pixels[row : row + source.height, col : col + source.width]
                )
                assert (source.nodata, source.crs.to_epsg()) == (0, 32612)
                bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
                assert source.width < 300
        # The whole box is there, and hardly more.
        assert bounds[0] <= west
        assert bounds[1] <= south
        assert bounds[2] >= east
        assert bounds[3] >= north
        with rasterio.open(tmp_path / "scenes" / "s2" / name / f"{name}_quality.tif") as source:
            assert source.transform.a == 20.0


def test_only_the_window_is_transferred(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(bbox=loop.middle(0.002)), tmp_path)
    assert 0 < loop.server.bytes_sent(BLUE) < len(loop.server.files[BLUE]) / 2


def test_fetched_files_go_through_the_chain_with_the_proportions_of_the_source(loop: Loop, tmp_path: Path) -> None:
    run(loop.config(), tmp_path / "got")
    sections = yaml.safe_load((tmp_path / "got" / "params-snippet.yaml").read_text())
    scenes, cover = (
        ScenesConfig.model_validate(sections["scenes"]),
        LandCoverConfig.model_validate(sections["land_cover"]),
    )
    reporter = RecordingReporter()
    store = tmp_path / "store"
    take_inventory(scenes, store / "scenes", reporter)
    index_products(cover, store / "land_cover", reporter)
    cut_chips(ChipsConfig(size_px=64, stride_px=64), scenes.folder, store / "scenes", store / "chips", reporter)
    count_proportions(
        ProportionsConfig(), cover.folder, store / "land_cover", store / "chips", store / "proportions", reporter
    )
    assert not reporter.warnings
    seen = 0
    for path in sorted((store / "chips").glob("*.parquet")):
        rows = pd.read_parquet(path).merge(pd.read_parquet(store / "proportions" / path.name), on="chip_id")
        assert set(rows["acquired"]) <= {"2021-07-04", "2021-07-19"}
        # No corner of a scene's window is without land cover, though the window is not the box.
        assert rows["unknown_fraction"].max() < 1e-9
        for _, row in rows.iterrows():
            seen += 1
            expected = _shares(loop.world, shapely.from_wkb(row["footprint"]))
            for code, name in COMMON_NAMES.items():
                assert row[f"fraction_{name}"] == pytest.approx(expected.get(code, 0.0), abs=0.01)
    assert seen >= 18
    # And on, with every column that the chain writes, into a STAC collection.
    config = LevirKRConfig(validation_fraction=0.0)
    freeze(config, store / "chips", store / "proportions", store / "levir_kr", reporter)
    assert export_stac(store / "levir_kr", store / "stac", reporter).numbers["num_items"] == 2
    items = [pystac.Item.from_file(str(path)) for path in sorted((store / "stac" / "items").glob("*.json"))]
    assert [item.datetime.date().isoformat() for item in items if item.datetime] == ["2021-07-04", "2021-07-19"]
    assert {item.properties["proj:code"] for item in items} == {UTM}
    bands = items[0].assets["chips"].extra_fields["raster:bands"]
    assert all(band["scale"] > 0 and 300 <= band["offset"] < 4000 for band in bands)


COMMON_NAMES = {10: "forest", 30: "grassland", 40: "cultivated_land", 50: "artificial_surfaces", 80: "water"}


def _shares(world: dict[str, Any], footprint: shapely.Polygon) -> dict[int, float]:
    """Shares of the codes of the source raster's cells whose centres lie in the footprint."""
    cover, transform = world["cover"], world["cover_transform"]
    inside = ~geometry_mask([footprint], cover.shape, transform)
    codes, counts = np.unique(cover[inside], return_counts=True)
    return dict(zip(codes.tolist(), (counts / counts.sum()).tolist(), strict=True))


def test_a_second_run_reads_nothing_and_changes_nothing(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(), tmp_path)
    before = contents(tmp_path)
    loop.server.log.clear()
    summary = run(loop.one_scene(), tmp_path)
    assert summary.numbers["num_files_finished_before"] == 6
    assert not [path for _, path, _, _ in loop.server.log if path.startswith("/data")]
    assert contents(tmp_path) == before


def test_a_file_that_was_changed_is_read_again(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(), tmp_path)
    before = contents(tmp_path)
    victim = tmp_path / "scenes" / "s2" / FIRST / f"{FIRST}_red.tif"
    victim.write_bytes(victim.read_bytes()[:-100])
    assert run(loop.one_scene(), tmp_path).numbers["num_files_finished_before"] == 5
    assert contents(tmp_path) == before


def fetch_arguments(loop: Loop, folder: Path, out: str) -> list[str]:
    """Of `geokr fetch`: one month of the middle of the loop's collection, into a folder below ``folder``."""
    catalogues = folder / "catalogues.yaml"
    catalogues.write_text(yaml.safe_dump({"catalogues": [loop.catalogue()]}, sort_keys=False))
    box = ",".join(map(str, loop.middle()))
    chosen = ["--collection", "s2", f"--bbox={box}", "--dates", "2021-07-01/2021-07-31"]
    return ["fetch", "-c", str(catalogues), *chosen, "--out", str(folder / out)]


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(loop: Loop, tmp_path: Path) -> None:
    arguments = [*fetch_arguments(loop, tmp_path, "killed"), "--yes", "--connections", "1"]
    command = [sys.executable, "-m", "geokr_core.cli", *arguments]
    slow = f"/data/{FIRST}/B08.tif"
    loop.server.hold[slow] = threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Headers are read at once; the transfer of the last band of the first scene hangs, the bands before it are done.
    done = tmp_path / "killed" / "scenes" / "s2" / FIRST / f"{FIRST}_red.tif.record.json"
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert done.exists()
    process.kill()
    process.wait()
    loop.server.hold.pop(slow).set()
    assert not (tmp_path / "killed" / "fetch.json").exists()
    loop.server.log.clear()
    run(loop.config(), tmp_path / "killed")
    assert not loop.server.requests_for(BLUE)
    run(loop.config(), tmp_path / "whole")
    names = set(contents(tmp_path / "killed")) - {"params-snippet.yaml"}
    assert names == set(contents(tmp_path / "whole")) - {"params-snippet.yaml"}
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_local_catalogue_is_read_without_any_request(loop: Loop, tmp_path: Path) -> None:
    for path, data in loop.server.files.items():
        if path.startswith(("/static", "/data")):
            (tmp_path / "local" / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "local" / path[1:]).write_bytes(data)
    catalogue = {**loop.catalogue(), "url": str(tmp_path / "local" / "static" / "catalog.json")}
    run(loop.config(catalogue=catalogue), tmp_path / "local_got")
    assert not loop.server.log
    run(loop.config(), tmp_path / "remote_got")
    name = f"scenes/s2/{FIRST}/{FIRST}_nir.tif"
    assert (tmp_path / "local_got" / name).read_bytes() == (tmp_path / "remote_got" / name).read_bytes()


def test_the_plan_is_shown_and_a_dry_run_writes_nothing(loop: Loop, tmp_path: Path) -> None:
    arguments = fetch_arguments(loop, tmp_path, "got")
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert "MB to transfer for 11 files" in dry.stdout
    asked = CliRunner().invoke(app, arguments)
    assert isinstance(asked.exception, AcquisitionError)
    assert "pass --yes" in str(asked.exception)
    assert not (tmp_path / "got").exists()
    done = CliRunner().invoke(app, [*arguments, "--yes"])
    assert done.exit_code == 0
    assert len(list((tmp_path / "got").rglob("*.tif"))) == 11
