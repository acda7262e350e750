"""Archives cut into chips, and a network to embed them with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.networks.network import build
from geokr_core.networks.weights import save_weights
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

SIZE_PX = 32


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the smallest architecture."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_weights(build("squeezenet1_1"), path)
    return path


Place = tuple[str, Affine]
PLACES: dict[str, Place] = {
    "north": ("EPSG:32652", Affine(30, 0, 500_000, 0, -30, 4_150_000)),
    "south": ("EPSG:32755", Affine(10, 0, 320_000, 0, -10, 5_812_000)),
    "south_up": ("EPSG:32755", Affine(10, 0, 330_000, 0, 10, 5_800_000)),
    "antimeridian": ("EPSG:32601", Affine(30, 0, 166_021 - 50 * 30, 0, -30, 60_000)),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 77.1, 0, -1e-4, 28.7)),
}


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Cuts scenes at some places, 112 x 96 px of noise whose brightness rises to the south-east, into ``store/chips``."""

    def make(*names: str) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / "scenes" / f"{name}.tif"
            if not path.exists():
                crs, transform = PLACES[name.split("-")[0]]
                rng = np.random.default_rng(number)
                ramp = np.add.outer(np.arange(96), np.arange(112)) / 2
                pixels = (ramp + rng.normal(60, 25, (3, 96, 112))).clip(1, 255).astype(np.uint8)
                write_raster(path, pixels, crs, transform)
        for path in (tmp_path / "scenes").glob("*.tif"):
            if path.stem not in names:
                path.unlink()
        collection = {"name": "any", "files": "*.tif", "bands": ["red", "green", "blue"], "land_cover": "none"}
        scenes = ScenesConfig.model_validate({"folder": tmp_path / "scenes", "collections": [collection]})
        store, silent = tmp_path / "store", RecordingReporter()
        take_inventory(scenes, store / "scenes", silent)
        config = ChipsConfig(size_px=SIZE_PX, stride_px=16, stretch="none", workers=1)
        cut_chips(config, scenes.folder, store / "scenes", store / "chips", silent)
        return store

    return make


@pytest.fixture(scope="session")
def finished_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights."""
    from geokr_core.backbone.build import build_bundle
    from geokr_core.backbone.config import BackboneConfig
    from geokr_core.testing import make_levir_kr, make_pretraining

    folder = tmp_path_factory.mktemp("bundle")
    dataset = make_levir_kr(folder / "store")
    pretraining = make_pretraining(folder / "pretraining", dataset)
    build_bundle(BackboneConfig(model_name="tiny"), dataset.folder, pretraining, folder / "bundle", RecordingReporter())
    return folder / "bundle"
