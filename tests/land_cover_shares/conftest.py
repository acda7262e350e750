"""A small archive up to its backbone, ready to be mapped."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.chain.params import Params, load_params
from geokr_core.chips.cut import cut_chips
from geokr_core.land_cover.tile_index import index_products
from geokr_core.land_cover_shares.predict import Inputs
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.levir_kr.freeze import freeze
from geokr_core.proportions.count import count_proportions
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_pretraining, make_small_archive


@dataclass(frozen=True)
class Archive:
    """Parameters and folders."""

    params: Params
    store: Path
    inputs: Inputs


@pytest.fixture(scope="session")
def mapped_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Four scenes of 128 x 128 px whose classes have colours, frozen, and a network with random weights."""
    folder = tmp_path_factory.mktemp("shares")
    path = make_small_archive(folder, num_scenes=4, scene_size_px=128, seed=2)
    params = load_params(
        path,
        [
            "chips.stride_px=16",
            "chips.stretch=none",
            "levir_kr.place_size_deg=0.01",
            "levir_kr.validation_fraction=0.4",
        ],
    )
    store, silent = params.store, RecordingReporter()
    source = params.scenes.folder
    take_inventory(params.scenes, store / "scenes", silent)
    index_products(params.land_cover, store / "land_cover", silent)
    cut_chips(params.chips, source, store / "scenes", store / "chips", silent)
    tiles = params.land_cover.folder
    count_proportions(params.proportions, tiles, store / "land_cover", store / "chips", store / "proportions", silent)
    freeze(params.levir_kr, store / "chips", store / "proportions", store / "levir_kr", silent)
    pretraining = make_pretraining(store / "pretraining", open_levir_kr(store / "levir_kr"))
    named = BackboneConfig(model_name="tiny")
    build_bundle(named, store / "levir_kr", pretraining, store / "backbone", silent)
    inputs = Inputs(source, store / "scenes", store / "levir_kr", store / "backbone")
    return Archive(params, store, inputs)
