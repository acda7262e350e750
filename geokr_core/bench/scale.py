"""The tables of an archive: rows written, read, filtered and joined, at a thousand to a million chips and beyond.

Pixels are not simulated; what they would take is projected from the speed of cutting.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from rasterio.crs import CRS

from geokr_core.bench.measure import Measurement
from geokr_core.land_cover.legend import COMMON_LEGENDS

CHIPS_PER_SCENE = 358
ARCHIVE_CHIPS = 1_431_950
"""Chips of the archive that the method was first trained on."""

SIZES = (1_000, 10_000, 100_000, 1_000_000, ARCHIVE_CHIPS)

# In a separate process, so that its peak memory is that of one size.
_CHILD = """
import sys
from pathlib import Path
from geokr_core.bench.scale import simulate
simulate(Path(sys.argv[1]), int(sys.argv[2]))
"""


def bench_scale(folder: Path) -> Measurement:
    """Cost of a chip's rows at a million chips as a multiple of its cost at ten thousand."""
    found = {}
    for num_chips in SIZES:
        where = folder / str(num_chips)
        subprocess.run([sys.executable, "-c", _CHILD, str(where), str(num_chips)], check=True)
        found[num_chips] = json.loads((where / "found.json").read_text())
    cost = {n: sum(found[n][part] for part in ("write_s", "freeze_s", "read_s")) / n for n in SIZES}
    details = {f"us_per_chip_at_{n}": cost[n] * 1e6 for n in SIZES}
    details |= {f"peak_mb_freeze_at_{n}": found[n]["peak_mb"] for n in SIZES}
    archive = found[ARCHIVE_CHIPS]
    details |= {f"archive_{part}": archive[part] for part in archive if part != "peak_mb"}
    # Cutting and counting were measured where `geokr bench ingest` and `align` say; rows are what is left.
    ratio = cost[1_000_000] / cost[10_000]
    on = f"catalogue and land-cover rows, {CHIPS_PER_SCENE} chips a scene"
    return Measurement("scale", ratio, 1.25, ARCHIVE_CHIPS, on, details)


def simulate(folder: Path, num_chips: int) -> None:
    """Write rows of as many chips as asked, join them into a catalogue, and read it as training does.

    Args:
        folder: gets ``chips``, ``proportions``, ``catalogue.parquet`` and ``found.json`` (seconds, megabytes).
        num_chips: how many.
    """
    import psutil

    from geokr_core.levir_kr.catalogue import read_catalogue, write_catalogue
    from geokr_core.levir_kr.config import LevirKRConfig

    started = time.perf_counter()
    _write_rows(folder, num_chips)
    written = time.perf_counter()
    before = psutil.Process().memory_info().rss
    tally = write_catalogue(LevirKRConfig(), folder / "chips", folder / "proportions", folder / "catalogue.parquet")
    frozen = time.perf_counter()
    # `peak_wset` is what other systems call it; Linux keeps the high-water mark under its own name.
    peak = _peak_bytes() - before
    catalogue = read_catalogue(folder / "catalogue.parquet")
    chosen = catalogue[(catalogue["split"] == "train") & (catalogue["num_cells"] > 100)]
    proportions = chosen.filter(like="fraction_").to_numpy(np.float32)
    found = {
        "write_s": written - started,
        "freeze_s": frozen - written,
        "read_s": time.perf_counter() - frozen,
        "rows_mb": sum(p.stat().st_size for p in folder.rglob("*.parquet")) / 1e6,
        "catalogue_mb": (folder / "catalogue.parquet").stat().st_size / 1e6,
        "in_memory_mb": (catalogue.memory_usage(deep=True).sum() + proportions.nbytes) / 1e6,
        "kept": tally.num_kept,
        "peak_mb": max(peak, 0) / 1e6,
    }
    (folder / "found.json").write_text(json.dumps(found))


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_rows(folder: Path, num_chips: int) -> None:
    for name in ("chips", "proportions"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for scene, first in enumerate(range(0, num_chips, CHIPS_PER_SCENE)):
        number = min(CHIPS_PER_SCENE, num_chips - first)
        rows, labels = _scene_rows(rng, f"GF1_WFV{scene % 4 + 1}_{scene:05d}", number)
        for name, table in (("chips", rows), ("proportions", labels)):
            content = pa.Table.from_pandas(table, preserve_index=False)
            pq.write_table(content, folder / name / f"{rows['scene_id'].iloc[0]}.parquet", compression="zstd")


def _scene_rows(rng: np.random.Generator, scene_id: str, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows as `chips` and `proportions` write them, at a random place."""
    row, col = np.divmod(np.arange(number), 20)
    x, y = 500000.0 + col * 4096.0, 3300000.0 - row * 4096.0
    ids = [f"{scene_id}-r{r * 256:06d}c{c * 256:06d}" for r, c in zip(row, col, strict=True)]
    lon, lat = rng.uniform(-179, 179) + 0.04 * col / 20, rng.uniform(-60, 70) - 0.04 * row / 20
    rows = pd.DataFrame(
        {
            "pixel_row": row * 256,
            "pixel_col": col * 256,
            "valid_fraction": rng.uniform(0.98, 1, number),
            "dark_fraction": rng.uniform(0, 1, number),
            "saturated_fraction": rng.uniform(0, 0.1, number),
            "cloud_fraction": np.nan,
            "contrast": rng.uniform(5, 80, number),
            "chip_id": ids,
            "scene_id": scene_id,
            "shard": f"{scene_id}.npy",
            "size_px": 256,
            "crs_wkt": CRS.from_epsg(32648).to_wkt(),
            "transform": list(
                np.stack([np.full(number, 16.0), np.zeros(number), x, np.zeros(number), np.full(number, -16.0), y], 1)
            ),
            "gsd_m": 16.0,
            "acquired": "2020-07-01",
            "sensor": "GF1_WFV",
            "bands": [["red", "green", "blue"]] * number,
            "stretch_low": [[10.0, 10.0, 10.0]] * number,
            "stretch_high": [[900.0, 900.0, 900.0]] * number,
            "land_cover": "globeland30",
            "lon": lon,
            "lat": lat,
            "footprint": shapely.to_wkb(shapely.box(lon - 0.02, lat - 0.02, lon + 0.02, lat + 0.02)),
            "row": np.arange(number),
        }
    )
    classes = COMMON_LEGENDS["globeland30"].classes
    fractions = rng.dirichlet(np.full(len(classes), 0.3), number)
    labels = pd.DataFrame(
        {
            "chip_id": ids,
            "product": "globeland30",
            "edition_year": 2020,
            "known_fraction": rng.uniform(0.4, 1, number),
            "excluded_fraction": 0.0,
            "sea_fraction": 0.0,
            "unknown_fraction": 0.0,
            "outside_fraction": 0.0,
            "num_cells": rng.uniform(0, 18000, number),
            "gap_days": 0.0,
            **{f"fraction_{name}": fractions[:, k] for k, name in enumerate(classes)},
        }
    )
    return rows, labels
