"""Uses each part that the toy package brings, from scenes to scores; run with the package installed. Prints what came out."""

import json
import sys
from pathlib import Path

import numpy as np
from affine import Affine

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.tile_index import index_products
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes
from geokr_core.step.files import read_json
from geokr_core.step.reporter import LOG
from geokr_core.testing import make_levir_kr, write_raster

UTM = Affine(30, 0, 500000, 0, -30, 3300000)


def main(work: Path) -> None:
    """Run the steps that a part belongs to."""
    pixels = np.stack([np.full((64, 64), value, np.uint16) for value in (100, 200, 300)])
    write_raster(work / "scenes/TOYSAT_20210701_a.tif", pixels, "EPSG:32648", UTM)
    collection = {"name": "toy", "files": "*.tif", "land_cover": "toy_2021"}
    scenes = ScenesConfig.model_validate({"folder": work / "scenes", "collections": [collection]})
    take_inventory(scenes, work / "store/scenes", LOG)
    (scene,) = dict(usable_scenes(work / "store/scenes")).values()

    write_raster(work / "land_cover/toy_2021.tif", np.full((64, 64), 2, np.uint8), "EPSG:32648", UTM)
    product = {"name": "toy_2021", "files": "*.tif", "legend": "toy_cover"}
    land_cover = {"folder": work / "land_cover", "products": [product], "legend": "own"}
    index_products(LandCoverConfig.model_validate(land_cover), work / "store/land_cover", LOG)

    levir_kr = make_levir_kr(work / "store", num_chips=48, chip_size_px=32).folder
    settings = {
        "architecture": "toy_net",
        "variants": ["geokr", "toy_method"],
        "steps": 2,
        "batch_size": 8,
        "threads": 1,
    }
    pretrain(
        PretrainingConfig.model_validate(settings), levir_kr, work / "store/pretraining", work / "checkpoints", LOG
    )
    build_bundle(BackboneConfig(), levir_kr, work / "store/pretraining", work / "store/backbone", LOG)

    tasks = [{"name": "colours", "kind": "toy_task"}]
    (work / "tasks/colours").mkdir(parents=True)
    section = {
        "folder": work / "tasks",
        "tasks": tasks,
        "initialisations": ["random", "geokr", "toy_method"],
        "seeds": [0],
    }
    summary = evaluate(
        EvaluationConfig.model_validate({**section, "label_fractions": [1.0]}),
        work / "store/backbone",
        work / "store/pretraining",
        work / "store/evaluation",
        work / "cells",
        LOG,
    )
    found = {
        "scene": [scene.product, scene.acquired, list(scene.bands)],
        "classes": read_json(work / "store/land_cover/products.json")["legend"]["classes"],
        "runs": [[run["variant"], run["architecture"]] for run in read_json(work / "store/pretraining/runs.json")],
        "scores": sorted({(row["initialisation"], row["metric"]) for row in summary.table}),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
