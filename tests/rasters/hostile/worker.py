"""The real chain over mutated files, as a program: ``python -m tests.rasters.hostile.worker --help``.

A separate process, so that a crash, a hang or a flood of memory inside GDAL shows as the death of the worker and not of
the test run.
"""

import argparse
import faulthandler
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.rasters.hostile.check import check_scene
from tests.rasters.hostile.mutations import mutate
from tests.rasters.hostile.valid_tiffs import BANDS, CHIP_PX, make_seeds, write_good_scene, write_land_cover

KILL_AFTER_SECONDS = 90.0
"""Wall time; what is asserted is processor time, which does not depend on who else runs on the machine."""


class Watch:
    """A reporter that times each unit of progress and kills the process when one takes too long."""

    def __init__(self, log: Path) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._log = log.open("w")

    def info(self, message: str) -> None:
        """Nothing to tell."""

    def warning(self, message: str) -> None:
        """Refusals are read from the files."""

    def metrics(self, values: Any, step: int) -> None:
        """There are none."""

    def arm(self, what: str) -> None:
        """So much longer, then the process ends with a traceback, even inside GDAL."""
        self._log.write(what + "\n")
        self._log.flush()
        faulthandler.dump_traceback_later(KILL_AFTER_SECONDS, exit=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        times = self.seconds[description] = [time.process_time()]
        self.arm(f"{description} 0")

        def advance(units: int) -> None:
            times.append(time.process_time())
            self.arm(f"{description} {len(times) - 1}")

        yield advance
        faulthandler.cancel_dump_traceback_later()


def memory_mib(field: str = "VmHWM") -> float:
    """Peak (or, with VmRSS, present) resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(field)


def run_chain(scenes: Path, tiles: Path, store: Path, watch: Watch) -> None:
    """Inventory, chips, land cover and proportions over one folder of scenes."""
    from geokr_core.chips.config import ChipsConfig
    from geokr_core.chips.cut import cut_chips
    from geokr_core.land_cover.config import LandCoverConfig
    from geokr_core.land_cover.tile_index import index_products
    from geokr_core.proportions.config import ProportionsConfig
    from geokr_core.proportions.count import count_proportions
    from geokr_core.scenes.config import ScenesConfig
    from geokr_core.scenes.inventory import take_inventory

    collection = {"name": "hostile", "files": "*.tif", "bands": BANDS, "land_cover": "cover"}
    take_inventory(ScenesConfig(folder=scenes, collections=(collection,)), store / "scenes", watch)
    config = ChipsConfig(size_px=CHIP_PX, stride_px=CHIP_PX, bands=BANDS, min_valid_fraction=0.5)
    cut_chips(config, scenes, store / "scenes", store / "chips", watch)
    product = {"name": "cover", "files": "*.tif", "legend": "globeland30", "year": 2020}
    index_products(LandCoverConfig(folder=tiles, products=(product,)), store / "cover", watch)
    count_proportions(ProportionsConfig(), tiles, store / "cover", store / "chips", store / "proportions", watch)


def outcome(store: Path, scene_id: str) -> tuple[str, str]:
    """How far a scene came, and the reason written down where it was refused."""
    import pandas as pd

    inventory = pd.read_parquet(store / "scenes" / "inventory.parquet").set_index("scene_id")
    if inventory["status"][scene_id] == "quarantined":
        return "inventory", str(inventory["reason"][scene_id])
    for step in ("chips", "proportions"):
        record = store / step / f"{scene_id}.quarantine.json"
        if record.exists():
            return step, str(json.loads(record.read_text())["reason"])
    return "labelled", ""


def good_digest(store: Path) -> dict[str, str]:
    """What became of the good scene, byte by byte."""
    from geokr_core.step.digests import file_md5

    return {f"{step}.{end}": file_md5(store / step / f"good.{end}") for step, end in _GOOD_FILES}


_GOOD_FILES = (("chips", "npy"), ("chips", "parquet"), ("proportions", "parquet"))


def work(folder: Path, seed: int, first: int, last: int, batch: int) -> dict[str, Any]:
    """Run the chain over mutations ``first`` to ``last`` of ``seed``, ``batch`` at a time beside one good scene."""
    seeds = make_seeds(folder / "seeds")
    watch = Watch(folder / "watch.log")
    tiles, alone = folder / "tiles", folder / "alone"
    for place in (tiles, alone):
        place.mkdir(parents=True)
    write_land_cover(tiles / "tile.tif")
    clean = folder / "clean"
    clean.mkdir()
    write_good_scene(clean / "good.tif")
    run_chain(clean, tiles, folder / "clean_store", watch)
    expected, base = good_digest(folder / "clean_store"), memory_mib()
    cases: list[dict[str, Any]] = []
    for start in range(first, last, batch):
        scenes, store = folder / f"in{start}", folder / f"store{start}"
        scenes.mkdir()
        write_good_scene(scenes / "good.tif")
        made = {}
        for index in range(start, min(start + batch, last)):
            made[f"m{index:05d}"], content = mutate(seeds, seed, index)
            (scenes / f"m{index:05d}.tif").write_bytes(content)
        run_chain(scenes, tiles, store, watch)
        if good_digest(store) != expected:
            raise AssertionError(f"the good scene changed beside mutations {start} to {start + batch}")
        slowest = _slowest(watch, store)
        for scene_id, what in made.items():
            end, reason = outcome(store, scene_id)
            watch.arm(f"check {scene_id}")
            wrong = check_scene(scenes, tiles, store, scene_id, alone) if end in ("labelled", "proportions") else []
            cases.append(
                {
                    "id": scene_id,
                    "what": what,
                    "end": end,
                    "reason": reason,
                    "wrong": wrong,
                    "seconds": slowest[scene_id],
                }
            )
        faulthandler.cancel_dump_traceback_later()
    return {"cases": cases, "base_mib": base, "peak_mib": memory_mib()}


def _slowest(watch: Watch, store: Path) -> dict[str, float]:
    """The longest that any step took over each scene."""
    import pandas as pd

    inventory = pd.read_parquet(store / "scenes" / "inventory.parquet")
    usable = inventory["scene_id"][inventory["status"] == "usable"]
    cut = [s for s in usable if (store / "chips" / f"{s}.parquet").exists()]
    result = dict.fromkeys(inventory["scene_id"], 0.0)
    for step, scene_ids in (("scenes", inventory["scene_id"]), ("chips", usable), ("proportions", sorted(cut))):
        for scene_id, seconds in zip(scene_ids, np.diff(watch.seconds[step]), strict=True):
            result[scene_id] = max(result[scene_id], float(seconds))
    return result


def main() -> None:
    """Parse the worker's arguments and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    options = parser.parse_args()
    faulthandler.enable()
    # A guard of the machine, far above what is asserted: a flood must end this process and no other.
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    options.folder.mkdir(parents=True, exist_ok=True)
    result = work(options.folder, options.seed, options.first, options.last, options.batch)
    (options.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
