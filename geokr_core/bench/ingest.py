"""Cutting chips against a bare loop that reads the same windows and writes as many bytes."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from geokr_core.bench.measure import Measurement, seconds
from geokr_core.config import ChipsConfig, ScenesConfig
from geokr_core.reporter import RecordingReporter
from geokr_core.testing import write_raster


def bench_ingest(folder: Path) -> Measurement:
    """Share of the bare loop's speed that cutting reaches."""
    from geokr_core.chips import cut_scene
    from geokr_core.scenes import take_inventory, usable_scenes

    size, chip = 4096, 64
    rng = np.random.default_rng(0)
    path = write_raster(
        folder / "in" / "s.tif", rng.integers(100, 1000, (4, size, size), dtype=np.uint16), "EPSG:32648",
        Affine(8, 0, 500000, 0, -8, 3300000), tiled=True, blockxsize=512, blockysize=512,
    )  # fmt: skip
    collection = {"name": "c", "files": "*.tif", "bands": ("blue", "green", "red", "nir"), "land_cover": "gl"}
    take_inventory(
        ScenesConfig(folder=folder / "in", collections=(collection,)), folder / "scenes", RecordingReporter()
    )
    (scene,) = usable_scenes(folder / "scenes").values()
    config = ChipsConfig(size_px=chip, stride_px=chip, bands=("blue", "green", "red", "nir"))

    def product() -> None:
        for old in folder.glob("chips/*"):
            old.unlink()
        cut_scene(config, folder / "in", folder / "scenes", scene, folder / "chips")

    def bare() -> None:
        with rasterio.open(path) as source, (folder / "bare.npy").open("wb") as target:
            for row in range(0, size, chip):
                target.write(source.read(window=Window(0, row, size, chip)).astype(np.uint8).tobytes())

    ours, loop = seconds(product), seconds(bare)
    num = (size // chip) ** 2
    return Measurement("ingest", loop / ours, 0.7, num, f"{size} x {size} x 4 uint16", {"chips_per_s": num / ours})
