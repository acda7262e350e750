"""An archive whose chips have known looks, embedded: half of each scene is dark stripes, half bright ground."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.networks.network import build
from geokr_core.networks.weights import save_weights
from geokr_core.search.find import Archive
from geokr_core.step.files import write_json
from geokr_core.step.reporter import RecordingReporter

SIZE_PX = 32
NUM = 40


def _write(store: Path, scene_id: str, seed: int, west: float, acquired: str, sensor: str) -> None:
    rng = np.random.default_rng(seed)
    stripes = np.where(np.arange(SIZE_PX) // 4 % 2, 40, 160)[None, :, None]
    images = np.where(
        (np.arange(NUM) % 2 == 0)[:, None, None, None],
        stripes + rng.normal(0, 8, (NUM, SIZE_PX, SIZE_PX, 3)),
        200 + rng.normal(0, 8, (NUM, SIZE_PX, SIZE_PX, 3)),
    )
    (store / "chips").mkdir(parents=True, exist_ok=True)
    np.save(store / "chips" / f"{scene_id}.npy", images.clip(0, 255).astype(np.uint8))
    lon, lat = west + 0.01 * np.arange(NUM), np.full(NUM, 10.0)
    lon = (lon + 180) % 360 - 180
    ids = [f"{scene_id}-{k:03d}" for k in range(NUM)]
    boxes = shapely.box(lon - 0.005, lat - 0.005, lon + 0.005, lat + 0.005)
    pd.DataFrame(
        {
            "chip_id": ids,
            "scene_id": scene_id,
            "row": np.arange(NUM),
            "acquired": acquired,
            "sensor": sensor,
            "gsd_m": 10.0,
            "lon": lon,
            "lat": lat,
            "footprint": shapely.to_wkb(boxes),
        }
    ).to_parquet(store / "chips" / f"{scene_id}.parquet", index=False)
    (store / "proportions").mkdir(exist_ok=True)
    forest = np.where(np.arange(NUM) % 2 == 0, 0.9, 0.1)
    known = np.where(np.arange(NUM) == 0, 0.0, 1.0)
    pd.DataFrame(
        {"chip_id": ids, "known_fraction": known, "fraction_forest": forest, "fraction_bare": 1 - forest}
    ).to_parquet(store / "proportions" / f"{scene_id}.parquet", index=False)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Two scenes of forty chips; chips of even number are striped. The second scene crosses the antimeridian."""
    import torch

    store = tmp_path_factory.mktemp("archive")
    _write(store, "a", 0, 20.0, "2020-07-01", "GF1")
    _write(store, "b", 1, 179.8, "", "S2")
    cut = {"bands": ["red", "green", "blue"], "size_px": SIZE_PX, "config": {"stride_px": SIZE_PX}}
    write_json(store / "chips" / "cut.json", {**cut, "generated_world": True})
    write_json(
        store / "proportions" / "legend.json", {"classes": ["forest", "bare"], "colours": ["#008000", "#c0a080"]}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_weights(build("squeezenet1_1"), store / "weights.safetensors")
    config = EmbeddingsConfig(architecture="squeezenet1_1", weights=store / "weights.safetensors", workers=1)
    embed_scenes(config, None, store / "chips", store / "embeddings", RecordingReporter())
    return Archive(store / "embeddings", store / "chips", store / "proportions", None, config)


LabelWriter = Callable[..., Path]


@pytest.fixture
def write_labels(archive: Archive, tmp_path: Path) -> LabelWriter:
    """Writes a file of labels as the page does: chip id and label, one after the other."""
    import geopandas as gpd

    from geokr_core.embeddings.read import open_embeddings

    network = open_embeddings(archive.embeddings).network

    def write(*labels: tuple[str, str | None], **columns: str) -> Path:
        frame = pd.DataFrame(labels, columns=["chip_id", "label"])
        when = [f"2026-01-01T00:00:{k:02d}Z" for k in range(len(frame))]
        known = {
            "target": "stripes",
            "who": "Ann",
            "model": network["model"],
            "model_version": network["model_version"],
        }
        frame = frame.assign(when=when, **{**known, **columns})
        gpd.GeoDataFrame(frame, geometry=[shapely.Point(0, 0)] * len(frame)).to_parquet(tmp_path / "labels.parquet")
        return tmp_path / "labels.parquet"

    return write
