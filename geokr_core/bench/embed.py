"""Embedding an archive against the bare loop that one would write first: read a batch, normalise it, run the network."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import torch

from geokr_core.bench.measure import Measurement
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.networks.network import build
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.weights import save_weights
from geokr_core.step.files import write_json
from geokr_core.step.reporter import RecordingReporter

LEAST_RATIO = 0.9
_BATCH_SIZE = 64


def bench_embed(
    folder: Path, *, architecture: str = "resnet18", num_chips: int = 2048, num_scenes: int = 16, rounds: int = 3
) -> Measurement:
    """Chips a second of the whole step, files, STAC and all, over those of the bare loop with torch's own threads.

    Args:
        folder: empty, to work in.
        architecture: the network, with random weights.
        num_chips: chips of 64 px over all scenes.
        num_scenes: scenes.
        rounds: each is measured once a round, in turns.
    """
    from geokr_core.embeddings.embed import embed_scenes

    chips, weights = folder / "chips", folder / "weights.safetensors"
    network = build(architecture).eval().to(memory_format=torch.channels_last)
    save_weights(network, weights)
    per_scene = num_chips // num_scenes
    for number in range(num_scenes):
        _write_scene(chips, f"scene{number:03d}", per_scene, number)
    write_json(chips / "cut.json", {"bands": ["red", "green", "blue"], "size_px": 64, "config": {"stride_px": 64}})
    config = EmbeddingsConfig(architecture=architecture, weights=weights, device="cpu")
    normalisation = Normalisation(torch.full((3,), 0.5), torch.full((3,), 0.2))

    def bare() -> None:
        with torch.inference_mode():
            for path in sorted(chips.glob("*.npy")):
                images = np.load(path, mmap_mode="r")
                for first in range(0, len(images), _BATCH_SIZE):
                    network(normalisation(torch.from_numpy(images[first : first + _BATCH_SIZE].copy())))

    ours, theirs = [], []
    for number in range(rounds):
        started = time.perf_counter()
        embed_scenes(config, None, chips, folder / f"embeddings{number}", RecordingReporter())
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        bare()
        theirs.append(time.perf_counter() - started)
    details = {
        "chips_per_s": num_chips / float(np.median(ours)),
        "bare_chips_per_s": num_chips / float(np.median(theirs)),
        "threads": float(torch.get_num_threads()),
    }
    ratio = float(np.median(theirs) / np.median(ours))
    on = f"{architecture}, {num_chips} chips of 64 px in {num_scenes} scenes"
    return Measurement("embed", ratio, LEAST_RATIO, num_chips, on, details)


def _write_scene(chips: Path, scene_id: str, number: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chips.mkdir(parents=True, exist_ok=True)
    np.save(chips / f"{scene_id}.npy", rng.integers(0, 256, (number, 64, 64, 3), dtype=np.uint8))
    lon, lat = rng.uniform(0, 1, number) + seed % 179, rng.uniform(40, 41, number)
    columns: dict[str, Any] = {
        "chip_id": [f"{scene_id}-{k:05d}" for k in range(number)],
        "scene_id": [scene_id] * number,
        "row": np.arange(number),
        "acquired": ["2024-07-01"] * number,
        "sensor": ["bench"] * number,
        "gsd_m": np.full(number, 10.0),
        "lon": lon,
        "lat": lat,
        "footprint": shapely.to_wkb(shapely.box(lon - 0.003, lat - 0.003, lon + 0.003, lat + 0.003)),
    }
    pq.write_table(pa.table(columns), chips / f"{scene_id}.parquet")
