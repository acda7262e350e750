"""Cutting chips against a bare loop that reads the same windows and writes as many bytes.

The bare loop reads window by window, in one thread, drops the upper byte of each value, and writes; it measures no
stretch, no quality and no place on Earth, and it does not wait for the disk. Beside it stands a stricter loop that reads
full lines of windows at once, which is about as fast as this file can be copied.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from geokr_core.bench.measure import Measurement
from geokr_core.chips.config import ChipsConfig
from geokr_core.scenes.config import ScenesConfig
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

_SIZE_PX, _CHIP_PX, _REPEATS = 8192, 64, 4
_BANDS = ("blue", "green", "red", "nir")
_FILES: Mapping[str, Mapping[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "striped": {},
    "deflate": {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"},
}

_PEAK = """
import json, sys
from pathlib import Path
from geokr_core.chips.cut import cut_scene
from geokr_core.chips.config import ChipsConfig
from geokr_core.scenes.inventory import usable_scenes
import geopandas
folder, scene_id, config = Path(sys.argv[1]), sys.argv[2], ChipsConfig.model_validate_json(sys.argv[3])
cut = cut_scene(config, folder / "in", folder / "scenes", usable_scenes(folder / "scenes")[scene_id], folder / "peak")
# Not ru_maxrss: in a new process it still holds the size of the process that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"num_chips": cut.num_chips, "peak_mb": int(status["VmHWM"].split()[0]) * 1024 / 1e6}))
"""


def bench_ingest(folder: Path) -> Measurement:
    """Share of the bare loop's speed that cutting reaches."""
    from geokr_core.chips.cut import cut_scene
    from geokr_core.scenes.inventory import usable_scenes

    _make_scenes(folder)
    scenes = usable_scenes(folder / "scenes")
    config = ChipsConfig(size_px=_CHIP_PX, stride_px=_CHIP_PX, bands=_BANDS)
    one_core = config.model_copy(update={"workers": 1})

    def cut(name: str, config: ChipsConfig) -> Callable[[], object]:
        return lambda: cut_scene(config, folder / "in", folder / "scenes", scenes[name], folder / "chips", force=True)

    details: dict[str, float] = {}
    for name in _FILES:
        rivals: dict[str, Callable[[], object]] = {
            "all": cut(name, config),
            "one": cut(name, one_core),
            "bare": partial(_bare, folder, name),
        }
        rivals["lines"] = partial(_bare, folder, name, width=_SIZE_PX)
        best = _interleaved(rivals)
        prefix = "" if name == "tiled" else f"{name}_"
        details[f"{prefix}ratio"] = best["bare"] / best["all"]
        details[f"{prefix}ratio_one_core"] = best["bare"] / best["one"]
        details[f"{prefix}ratio_to_full_lines"] = best["lines"] / best["all"]
        if name == "tiled":
            num = (_SIZE_PX // _CHIP_PX) ** 2
            details["chips_per_s"] = num / best["all"]
            details["megabytes_per_s"] = num * _CHIP_PX**2 * len(_BANDS) / 1e6 / best["all"]
    details["peak_memory_mb"] = peak_memory_mb(folder, "tiled", config)
    return Measurement("ingest", details.pop("ratio"), 0.7, num, f"{_SIZE_PX} x {_SIZE_PX} x 4 uint16, tiled", details)


def peak_memory_mb(folder: Path, scene_id: str, config: ChipsConfig) -> float:
    """Peak memory of a separate process that cuts one scene, all its imports counted.

    Args:
        folder: holds ``in`` (raw scenes) and ``scenes`` (their inventory); gets ``peak`` with the shard.
        scene_id: which scene.
        config: how to cut.

    Returns:
        Largest resident set in MB (Linux only).

    Raises:
        subprocess.CalledProcessError: cutting failed.
    """
    command = [sys.executable, "-c", _PEAK, str(folder), scene_id, config.model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def _make_scenes(folder: Path) -> None:
    from geokr_core.scenes.inventory import take_inventory

    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 1000, (len(_BANDS), _SIZE_PX, _SIZE_PX), dtype=np.uint16)
    for name, profile in _FILES.items():
        grid = Affine(8, 0, 500000, 0, -8, 3300000)
        write_raster(folder / "in" / f"{name}.tif", pixels, "EPSG:32648", grid, **profile)
    collection = {"name": "c", "files": "*.tif", "bands": _BANDS, "land_cover": "gl"}
    config = ScenesConfig.model_validate({"folder": folder / "in", "collections": [collection]})
    take_inventory(config, folder / "scenes", RecordingReporter())


def _bare(folder: Path, name: str, width: int = _CHIP_PX) -> None:
    with rasterio.open(folder / "in" / f"{name}.tif") as source, (folder / "bare.npy").open("wb") as target:
        for row in range(0, _SIZE_PX, _CHIP_PX):
            for col in range(0, _SIZE_PX, width):
                pixels = source.read(window=Window(col, row, width, _CHIP_PX))
                target.write(pixels.astype(np.uint8).tobytes())


def _interleaved(rivals: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Best seconds of each, run in turns: what else the machine does then troubles all of them alike."""
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(_REPEATS):
        for name, work in rivals.items():
            started = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - started)
    return best
