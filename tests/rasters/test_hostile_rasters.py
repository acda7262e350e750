"""Bad rasters never hurt: a thousand mutated GeoTIFFs, bombs, side files and addresses, and corrupt land cover."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geokr_core.chips.read import read_rows
from geokr_core.errors import LandCoverError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.tile_index import index_products
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.count import count_proportions
from geokr_core.rasters.grid import Grid, transformer
from geokr_core.rasters.open_raster import open_raster
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster
from tests.rasters.hostile.check import check_labels
from tests.rasters.hostile.mutations import MUTATIONS, VRT, other_format
from tests.rasters.hostile.tiff_fields import GDAL_NODATA, TILE_BYTES, TILE_OFFSETS, WIDTH, Tiff
from tests.rasters.hostile.valid_tiffs import BANDS, write_good_scene, write_land_cover
from tests.rasters.hostile.worker import Watch, good_digest, memory_mib, outcome, run_chain

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_FILE, MEMORY_MIB = 10.0, 1024.0


def _start(folder: Path, seed: int, first: int, last: int) -> subprocess.Popen[str]:
    order = [sys.executable, "-W", "ignore", "-m", "tests.rasters.hostile.worker", str(folder), "--seed", str(seed)]
    order += ["--first", str(first), "--last", str(last)]
    return subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def _run_mutations(folder: Path, seed: int, number: int, processes: int = 2) -> list[dict[str, object]]:
    edges = np.linspace(0, number, processes + 1).astype(int)
    workers = {
        folder / f"w{k}": _start(folder / f"w{k}", seed, int(edges[k]), int(edges[k + 1])) for k in range(processes)
    }
    cases = []
    for place, worker in workers.items():
        said, _ = worker.communicate()
        log = place / "watch.log"
        assert worker.returncode == 0, f"{log.read_text()[-200:] if log.exists() else ''}\n{said[-3000:]}"
        result = json.loads((place / "result.json").read_text())
        assert result["peak_mib"] - result["base_mib"] < MEMORY_MIB, (result["base_mib"], result["peak_mib"])
        cases += result["cases"]
    return cases


def _judge(cases: list[dict[str, object]], number: int) -> None:
    assert len({case["id"] for case in cases}) == number
    assert [(c["what"], c["wrong"]) for c in cases if c["wrong"]] == []
    assert [c["what"] for c in cases if float(str(c["seconds"])) > SECONDS_PER_FILE] == []
    refused = [case for case in cases if case["end"] != "labelled"]
    assert all(len(str(case["reason"])) > 20 for case in refused)
    # A generator whose files are all refused, or all harmless, would test nothing.
    ends = Counter(case["end"] for case in cases)
    assert min(ends["inventory"], ends["chips"], ends["labelled"], ends["proportions"]) >= number // 100, ends


def test_two_hundred_mutated_scenes_end_in_right_labels_or_a_reason(tmp_path: Path) -> None:
    """The good scene beside them stays byte for byte what it is alone; the worker checks that for each batch."""
    _judge(_run_mutations(tmp_path, seed=2, number=200), 200)


@pytest.mark.slow
def test_a_thousand_mutated_scenes_end_in_right_labels_or_a_reason(tmp_path: Path) -> None:
    _judge(_run_mutations(tmp_path, seed=1, number=1000), 1000)


class _Folder:
    """A scene folder with one good scene, and the chain over it."""

    def __init__(self, root: Path) -> None:
        self.scenes, self.tiles, self.store = root / "in", root / "tiles", root / "store"
        for folder in (self.scenes, self.tiles):
            folder.mkdir()
        write_good_scene(self.scenes / "good.tif")
        write_land_cover(self.tiles / "tile.tif")

    def run(self, root: Path) -> None:
        run_chain(self.scenes, self.tiles, self.store, Watch(root / "watch.log"))

    def end(self, scene_id: str) -> tuple[str, str]:
        return outcome(self.store, scene_id)


@pytest.fixture
def folder(tmp_path: Path) -> _Folder:
    return _Folder(tmp_path)


_PAM = (
    "<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>1,10,0,1,0,-10</GeoTransform><Metadata><MDI key='x'>y</MDI></Metadata>"
    "</PAMDataset>"
)


def test_files_beside_a_scene_have_no_say(folder: _Folder, tmp_path: Path) -> None:
    """Only a mask and RPCs have, whose bytes are in the scene's md5: a change in the others would go unseen."""
    folder.run(tmp_path)
    alone = good_digest(folder.store)
    (folder.scenes / "good.tif.aux.xml").write_text(_PAM)
    (folder.scenes / "good.tfw").write_text("10\n0\n0\n-10\n7\n7\n")
    other = np.full((3, 32, 32), 200, np.uint8)
    write_raster(folder.scenes / "tmp" / "x.tif", other, None, Affine.identity()).rename(folder.scenes / "good.tif.ovr")
    for step in folder.store.rglob("good*"):
        step.unlink()
    folder.run(tmp_path)
    assert good_digest(folder.store) == alone


def test_the_environment_cannot_hide_unreadable_pixels(
    folder: _Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTIFF_IGNORE_READ_ERRORS", "YES")
    content = bytearray((folder.scenes / "good.tif").read_bytes())
    index = Tiff(bytes(content))
    content[index.values(TILE_OFFSETS)[1] + 9] ^= 0xFF
    (folder.scenes / "bad.tif").write_bytes(content)
    folder.run(tmp_path)
    assert folder.end("bad") == ("chips", folder.end("bad")[1])
    assert "corrupt or cut off" in folder.end("bad")[1]


def test_another_width_over_the_same_tiles_is_refused(folder: _Folder, tmp_path: Path) -> None:
    """GDAL only warns, and shows the second row of tiles to the right of the first: pixels on the wrong ground."""
    tiff = Tiff((folder.scenes / "good.tif").read_bytes())
    tiff.set(WIDTH, 128)
    (folder.scenes / "wide.tif").write_bytes(tiff.data)
    folder.run(tmp_path)
    assert "make 8 tiles, but 4 are listed" in folder.end("wide")[1]


def _repeat_one_tile(path: Path, side_px: int) -> None:
    """A bomb: every tile of a huge image is the same few bytes, so the file is small and unpacks without end."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side_px,
        height=side_px,
        count=3,
        dtype="uint8",
        crs=CRS.from_epsg(32632),
        transform=Affine(1, 0, 5e5, 0, -1, 5.5e6),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        sparse_ok=True,
    ) as target:
        pixels = np.arange(512, dtype=np.uint16)[None, None].repeat(3, 0).repeat(512, 1) % 200
        target.write(pixels.astype(np.uint8), window=((0, 512), (0, 512)))
    tiff = Tiff(path.read_bytes())
    for tag in (TILE_OFFSETS, TILE_BYTES):
        tiff.set(tag, *[tiff.values(tag)[0]] * len(tiff.values(tag)))
    path.write_bytes(tiff.data)


def test_a_decompression_bomb_is_refused_before_it_unpacks(folder: _Folder, tmp_path: Path) -> None:
    bomb = folder.scenes / "bomb.tif"
    _repeat_one_tile(bomb, 60_000)
    assert bomb.stat().st_size < 1_000_000
    before = memory_mib()
    folder.run(tmp_path)
    assert "decompression bomb" in folder.end("bomb")[1]
    assert memory_mib() - before < 256


def test_a_legal_sparse_scene_is_not_taken_for_a_bomb(folder: _Folder, tmp_path: Path) -> None:
    with rasterio.open(
        folder.scenes / "sparse.tif",
        "w",
        driver="GTiff",
        width=30_000,
        height=20_000,
        count=3,
        dtype="uint8",
        nodata=0,
        crs=CRS.from_epsg(32632),
        transform=Affine(1, 0, 5e5, 0, -1, 5.5e6),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        sparse_ok=True,
    ) as target:
        pixels = np.random.default_rng(0).integers(1, 250, (3, 64, 64), np.uint8)
        target.write(pixels, window=((0, 64), (0, 64)))
    # Headers alone: reading 600 million pixels is right here, and takes its time.
    config = _scenes_config(folder.scenes)
    assert take_inventory(config, tmp_path / "inventory", RecordingReporter()).numbers["num_quarantined"] == 0


def _scenes_config(folder: Path) -> object:
    from geokr_core.scenes.config import ScenesConfig

    return ScenesConfig(
        folder=folder, collections=({"name": "a", "files": "*.tif", "bands": BANDS, "land_cover": "cover"},)
    )


@pytest.mark.timeout(60)
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would wait forever; a link is the folder owner's word and is followed."""
    os.mkfifo(tmp_path / "pipe.tif")
    with (
        pytest.raises(rasterio.errors.RasterioIOError, match="no such regular file"),
        open_raster(tmp_path / "pipe.tif"),
    ):
        pass
    write_good_scene(tmp_path / "store.tif")
    (tmp_path / "link.tif").symlink_to(tmp_path / "store.tif")
    with open_raster(tmp_path / "link.tif") as source:
        assert source.shape == (64, 64)


def test_an_imagine_file_whose_pixels_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "a.img", "w", driver="HFA", width=64, height=64, count=1, dtype="uint8", USE_SPILL="YES"
    ) as target:
        target.write(np.ones((64, 64), np.uint8), 1)
    assert (tmp_path / "a.ige").exists()
    with pytest.raises(rasterio.errors.RasterioIOError, match=r"refers to a\.ige"), open_raster(tmp_path / "a.img"):
        pass


@pytest.fixture
def visited() -> Iterator[tuple[str, list[str]]]:
    """A server that notes who asks for what."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_no_crs_and_no_file_makes_the_process_call_an_address(
    visited: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = visited
    monkeypatch.setenv("PROJ_NETWORK", "ON")
    monkeypatch.setenv("PROJ_NETWORK_ENDPOINT", address)
    import pyproj.network

    pyproj.network.set_network_enabled(active=True)
    transformer.cache_clear()
    remote = f"+proj=longlat +ellps=bessel +nadgrids={address}/grid.gsb +no_defs"
    for crs in (remote, "EPSG:4267", "EPSG:31467"):
        grid = Grid(CRS.from_user_input(crs), Affine(0.001, 0, 9.0, 0, -0.001, 49.0), 64, 64)
        grid.fault()
    for name, content in (("a.tif", VRT.replace("good.tif", f"/vsicurl/{address}/x.tif")), ("b.tif", address)):
        (tmp_path / name).write_text(content)
        with pytest.raises(rasterio.errors.RasterioIOError), open_raster(tmp_path / name):
            pass
    assert asked == []


# --- Land cover -----------------------------------------------------------------------------------------------------


def _count(tiles: Path, chips: Path, store: Path) -> pd.DataFrame:
    product = {"name": "cover", "files": "*.tif", "legend": "globeland30", "year": 2020}
    reporter = RecordingReporter()
    index_products(LandCoverConfig(folder=tiles, products=(product,)), store / "cover", reporter)
    count_proportions(ProportionsConfig(), tiles, store / "cover", chips, store / "proportions", reporter)
    return pd.read_parquet(store / "proportions" / "good.parquet")


def test_a_mutated_land_cover_tile_is_named_or_counted_right(folder: _Folder, tmp_path: Path) -> None:
    folder.run(tmp_path)
    chips, seed = folder.store / "chips", (folder.tiles / "tile.tif").read_bytes()
    rows = read_rows(chips, "good")
    crs = CRS.from_wkt(rows["crs_wkt"].iloc[0])
    kinds = [m for m in MUTATIONS if m is not other_format]
    ends: Counter[str] = Counter()
    for index in range(150):
        tiff, tiles = Tiff(seed), tmp_path / f"t{index}"
        what = kinds[index % len(kinds)](tiff, np.random.default_rng([3, index]))
        tiles.mkdir()
        (tiles / "tile.tif").write_bytes(tiff.data)
        try:
            labels = _count(tiles, chips, tmp_path / f"s{index}")
        except LandCoverError as error:
            ends["named" if "tile.tif" in str(error) or str(tiles) in str(error) else str(error)] += 1
            continue
        assert check_labels(labels, rows, crs, tiles) == [], what
        ends["counted"] += 1
    assert set(ends) == {"named", "counted"}
    assert min(ends.values()) >= 10, ends


@pytest.mark.parametrize("text", [b"nan", b"1e999", b"-1e999", b"300", b"-5", b"20.5"])
def test_an_odd_nodata_value_of_a_tile_masks_no_class(folder: _Folder, tmp_path: Path, text: bytes) -> None:
    folder.run(tmp_path)
    path = folder.tiles / "tile.tif"
    with rasterio.open(path) as source:
        codes, profile = source.read(1), source.profile
    with rasterio.open(path, "w", **{**profile, "nodata": 123.0}) as target:
        target.write(codes, 1)
    content = path.read_bytes()
    assert content.count(b"123\0") == 1
    tiff = Tiff(content.replace(b"123\0", b"000\0"))
    at = len(tiff.data)
    tiff.data += text + b"\0"
    entry = tiff.entries[GDAL_NODATA]
    tiff.put("I", entry + 4, len(text) + 1)
    if len(text) < 4:
        tiff.data[entry + 8 : entry + 12] = (text + b"\0").ljust(4, b"\0")
    else:
        tiff.put("I", entry + 8, at)
    path.write_bytes(tiff.data)
    labels = _count(folder.tiles, folder.store / "chips", tmp_path / "again")
    pd.testing.assert_frame_equal(labels, pd.read_parquet(folder.store / "proportions" / "good.parquet"))
