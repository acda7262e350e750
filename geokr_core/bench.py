"""Speed, measured as ratios within one run so that the figures hold on any machine; see ``docs/benchmarks.md``.

Each benchmark makes its own data in a temporary folder and measures the product against a plain baseline that does the
same work the obvious way. Baselines live here and nowhere else.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling
from rasterio.warp import reproject as warp
from rasterio.windows import Window
from rich.console import Console

from geokr_core.config import ChipsConfig, LandCoverConfig, ProportionsConfig, ScenesConfig
from geokr_core.errors import ConfigError
from geokr_core.reporter import RecordingReporter
from geokr_core.testing import write_raster


@dataclass(frozen=True)
class Measurement:
    """One benchmark's figure.

    Attributes:
        name: of the benchmark.
        ratio: the figure that the budget speaks of.
        budget: what it should reach: at least this, or at most this for ``startup``.
        n: how many chips or calls were measured.
        on: what it was measured on.
        details: the other figures, by name with unit.
    """

    name: str
    ratio: float
    budget: float
    n: int
    on: str
    details: dict[str, float]


def run_bench(name: str, *, as_json: bool) -> None:
    """Run one benchmark or all.

    Args:
        name: key of the table of benchmarks, or ``all``.
        as_json: write one JSON object as the last line for each.

    Raises:
        ConfigError: no such benchmark.
    """
    if name not in (*BENCHMARKS, "all"):
        raise ConfigError(f"bench {name}: no such benchmark; known: {', '.join(BENCHMARKS)}, all.")
    console = Console()
    for key in BENCHMARKS if name == "all" else (name,):
        with tempfile.TemporaryDirectory() as folder:
            result = BENCHMARKS[key](Path(folder))
        details = ", ".join(f"{k} {v:.4g}" for k, v in result.details.items())
        console.print(
            f"{key}: {result.ratio:.3g} (budget {result.budget:g}; n = {result.n}; {result.on}); {details}",
            highlight=False,
        )
        if as_json:
            console.print_json(json.dumps(asdict(result)), indent=None)


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Best of several runs: the machine's other work only ever adds time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _bench_ingest(folder: Path) -> Measurement:
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

    ours, loop = _seconds(product), _seconds(bare)
    num = (size // chip) ** 2
    return Measurement("ingest", loop / ours, 0.7, num, f"{size} x {size} x 4 uint16", {"chips_per_s": num / ours})


def _bench_align(folder: Path) -> Measurement:
    same, chips = _align(folder / "same", "EPSG:32648", Affine(30, 0, 500000, 0, -30, 3300000))
    across, _ = _align(folder / "across", "EPSG:4326", Affine(1 / 3600, 0, 105.0, 0, -1 / 3600, 29.83))
    on = "8 m chips of 64 px on 30 m land cover of the same zone"
    return Measurement("align", same, 100.0, chips, on, {"ratio_across_crs": across, "budget_across_crs": 10.0})


def _align(folder: Path, lc_crs: str, lc_transform: Affine) -> tuple[float, int]:
    from geokr_core.landcover import index_products, open_land_cover
    from geokr_core.proportions import count_rows

    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([10, 20, 30, 60, 80], np.uint8), (1200, 1200))
    tile = write_raster(folder / "lc" / "t.tif", codes, lc_crs, lc_transform, tiled=True)
    product = {"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020}
    index_products(LandCoverConfig(folder=folder / "lc", products=(product,)), folder / "index", RecordingReporter())
    rows = _chip_rows(num_side=60, size_px=64, gsd_m=8.0)
    index = open_land_cover(folder / "index")
    ours = _seconds(lambda: count_rows(ProportionsConfig(), folder / "lc", index, rows))
    sample = rows.iloc[:: max(1, len(rows) // 200)]
    naive = _seconds(lambda: [_open_warp_count(tile, row) for _, row in sample.iterrows()]) * len(rows) / len(sample)
    return naive / ours, len(rows)


def _chip_rows(num_side: int, size_px: int, gsd_m: float) -> pd.DataFrame:
    crs = CRS.from_epsg(32648)
    rows = []
    for top in range(num_side):
        for left in range(num_side):
            x, y = 500303.0 + left * size_px * gsd_m, 3299701.0 - top * size_px * gsd_m
            rows.append(
                {"chip_id": f"{top}-{left}", "transform": [gsd_m, 0.0, x, 0.0, -gsd_m, y], "lon": 105.1, "lat": 29.7}
            )
    return pd.DataFrame(rows).assign(crs_wkt=crs.to_wkt(), size_px=size_px, acquired="", land_cover="gl")


def _open_warp_count(tile: Path, row: pd.Series) -> np.ndarray:
    """The obvious way: open the product, warp it onto the chip's pixels, count them."""
    size = int(row["size_px"])
    target = np.zeros((size, size), np.uint8)
    with rasterio.open(tile) as source:
        warp(
            rasterio.band(source, 1), target, dst_crs=row["crs_wkt"], dst_transform=Affine(*row["transform"]),
            resampling=Resampling.nearest, dst_nodata=0,
        )  # fmt: skip
    return np.bincount(target.ravel(), minlength=256)


def _bench_startup(folder: Path) -> Measurement:
    def help_text() -> None:
        subprocess.run([sys.executable, "-m", "geokr_core.cli", "--help"], check=True, capture_output=True, cwd=folder)

    def bare() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True, cwd=folder)

    seconds = _seconds(help_text, repeats=5)
    return Measurement(
        "startup", seconds, 0.7, 5, "geokr --help, seconds", {"bare_python_s": _seconds(bare, repeats=5)}
    )


BENCHMARKS: dict[str, Callable[[Path], Measurement]] = {
    "ingest": _bench_ingest,
    "align": _bench_align,
    "startup": _bench_startup,
}
