"""Shards: one correct one, whoever else cuts and whatever was killed, in memory that does not grow with the scene."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from geokr_core.bench.ingest import peak_memory_mb
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_scene, is_scene_current
from geokr_core.chips.read import read_rows
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes
from geokr_core.scenes.reader import SceneReader
from geokr_core.scenes.scene import Scene
from geokr_core.scenes.scene_outputs import chip_outputs
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

GRID = Affine(8, 0, 500000, 0, -8, 3300000)
BANDS = ("blue", "green", "red", "nir")
CONFIG = ChipsConfig(size_px=16, stride_px=16, bands=BANDS, workers=2)

CUT = """
import sys
from pathlib import Path
from geokr_core.chips.cut import cut_scene
from geokr_core.chips.config import ChipsConfig
from geokr_core.scenes.inventory import usable_scenes
folder, config = Path(sys.argv[1]), ChipsConfig.model_validate_json(sys.argv[2])
(scene,) = usable_scenes(folder / "scenes").values()
print("ready", flush=True)
sys.stdin.readline()
cut_scene(config, folder / "in", folder / "scenes", scene, folder / "chips", force=len(sys.argv) > 3)
"""


def inventory(folder: Path) -> Scene:
    collection = {"name": "c", "files": "*.tif", "bands": BANDS, "land_cover": "gl"}
    config = ScenesConfig.model_validate({"folder": folder / "in", "collections": [collection]})
    take_inventory(config, folder / "scenes", RecordingReporter())
    (scene,) = usable_scenes(folder / "scenes").values()
    return scene


def prepare(folder: Path, size: int = 512) -> Scene:
    pixels = np.random.default_rng(0).integers(100, 3000, (4, size, size)).astype(np.uint16)
    write_raster(folder / "in" / "s.tif", pixels, "EPSG:32648", GRID, tiled=True, compress="deflate")
    return inventory(folder)


def cut(folder: Path, scene: Scene, config: ChipsConfig = CONFIG, **options: bool) -> str:
    cut_scene(config, folder / "in", folder / "scenes", scene, folder / "chips", **options)
    return data_version(folder / "chips")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CUT, str(folder), CONFIG.model_dump_json(), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.close()


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "chips").iterdir())


def test_a_streamed_shard_is_byte_for_byte_what_numpy_saves(tmp_path: Path) -> None:
    cut(tmp_path, prepare(tmp_path))
    shard = tmp_path / "chips" / "s.npy"
    images = np.load(shard, mmap_mode="r")
    assert images.shape == (1024, 16, 16, 4)
    np.save(tmp_path / "plain.npy", np.array(images))
    assert (tmp_path / "plain.npy").read_bytes() == shard.read_bytes()
    rows = read_rows(tmp_path / "chips", "s")
    assert rows["row"].tolist() == list(range(1024)), "as many rows as a batch holds, and none left over"


def test_threads_and_pieces_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = prepare(tmp_path)
    version = cut(tmp_path, scene)
    other_threads = CONFIG.model_copy(update={"workers": 1})
    assert is_scene_current(other_threads, scene, tmp_path / "chips")
    monkeypatch.setattr("geokr_core.chips.windows._PIECE_VALUES", 10_000)
    assert cut(tmp_path, scene, other_threads, force=True) == version


def test_two_processes_that_cut_one_scene_at_once_leave_one_correct_shard(tmp_path: Path) -> None:
    scene = prepare(tmp_path, 1024)
    version = cut(tmp_path, scene)
    for path in (tmp_path / "chips").iterdir():
        path.unlink()
    # Forced, so that the second one cuts too instead of finding the first one's work.
    processes = [start(tmp_path, "force") for _ in range(2)]
    for process in processes:
        go(process)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert data_version(tmp_path / "chips") == version
    assert files_of(tmp_path) == ["cut.json", "s.npy", "s.parquet", "s.record.json"]


def test_threads_of_one_process_take_turns_too(tmp_path: Path) -> None:
    scene = prepare(tmp_path)
    version = cut(tmp_path, scene)
    threads = [threading.Thread(target=cut, args=(tmp_path, scene), kwargs={"force": True}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert data_version(tmp_path / "chips") == version


def test_a_cut_killed_in_mid_write_leaves_nothing_and_the_next_one_gives_the_same_bytes(tmp_path: Path) -> None:
    scene = prepare(tmp_path, 2048)
    version = cut(tmp_path, scene)
    for path in (tmp_path / "chips").iterdir():
        path.unlink()
    process = start(tmp_path)
    go(process)
    partial = chip_outputs(tmp_path / "chips").staging / "s.npy"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 1_000_000):
        assert process.poll() is None, "the cut ended before it could be killed"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.exists()
    assert files_of(tmp_path) == ["cut.json"], "nothing unfinished lies where data are versioned"
    assert cut(tmp_path, scene) == version
    assert not partial.exists()


def test_a_failing_cut_leaves_the_earlier_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = prepare(tmp_path)
    version = cut(tmp_path, scene)
    original = SceneReader.read

    def full_disk(self: SceneReader, row: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        if row > 200:
            raise OSError(28, "No space left on device")
        return original(self, row, height)

    monkeypatch.setattr("geokr_core.chips.windows._PIECE_VALUES", 100_000)
    monkeypatch.setattr(SceneReader, "read", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cut(tmp_path, scene, force=True)
    assert data_version(tmp_path / "chips") == version


@pytest.mark.parametrize("stride", [12, 16])
def test_a_window_moved_inside_carries_the_transform_of_its_pixels(tmp_path: Path, stride: int) -> None:
    rows, cols = np.mgrid[:70, :90].astype(np.uint8)
    write_raster(
        tmp_path / "in" / "s.tif", np.stack([rows, cols, rows, cols]), "EPSG:32648", GRID, photometric="minisblack"
    )
    scene = inventory(tmp_path)
    config = ChipsConfig(size_px=16, stride_px=stride, edge="shift", bands=BANDS, stretch="none")
    cut(tmp_path, scene, config)
    table, images = read_rows(tmp_path / "chips", "s"), np.load(tmp_path / "chips" / "s.npy")
    assert table["pixel_row"].max() == 70 - 16
    assert table["pixel_col"].max() == 90 - 16
    assert table["chip_id"].is_unique
    covered = np.zeros((70, 90), dtype=bool)
    for row, image in zip(table.to_dict("records"), images, strict=True):
        line, col = (int(value) for value in image[0, 0, :2])
        assert ~GRID @ (row["transform"][2], row["transform"][5]) == pytest.approx((col, line))
        assert row["chip_id"] == f"s-r{line:06d}c{col:06d}"
        covered[line : line + 16, col : col + 16] = True
    assert covered.all()


def large_scene(folder: Path, height: int, width: int = 30_000) -> Scene:
    """A tiled scene as wide as they come, written tile by tile: every fourth line of tiles holds data."""
    path = folder / "in" / "s.tif"
    path.parent.mkdir(parents=True)
    tile = np.random.default_rng(0).integers(100, 1000, (4, 512, 512)).astype(np.uint16)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=4,
        height=height,
        width=width,
        dtype="uint16",
        crs="EPSG:32648",
        transform=GRID,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        SPARSE_OK=True,
        BIGTIFF="YES",
    ) as target:
        for row in range(0, height, 2048):
            for col in range(0, width, 512):
                part = tile[:, : min(512, height - row), : min(512, width - col)]
                target.write(part, window=Window(col, row, part.shape[2], part.shape[1]))
    return inventory(folder)


@pytest.mark.parametrize("size", [64, 256])
def test_memory_does_not_grow_with_the_scene(tmp_path: Path, size: int) -> None:
    large_scene(tmp_path, 1100)
    config = ChipsConfig(size_px=size, stride_px=size, bands=BANDS)
    assert peak_memory_mb(tmp_path, "s", config) <= 600


@pytest.mark.slow
def test_a_scene_of_30000_by_30000_pixels_is_cut_within_600_mb(tmp_path: Path) -> None:
    large_scene(tmp_path, 30_000)
    started = time.monotonic()
    peak = peak_memory_mb(tmp_path, "s", ChipsConfig(size_px=256, stride_px=256, bands=BANDS))
    print(f"{peak:.0f} MB, {time.monotonic() - started:.1f} s")  # noqa: T201
    assert peak <= 600
    assert len(pd.read_parquet(tmp_path / "peak" / "s.parquet")) == (30_000 // 256) ** 2
