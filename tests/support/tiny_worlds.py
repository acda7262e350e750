"""Parameters of the smallest generated world on which every step has something to do. Found through ``pythonpath``."""

from pathlib import Path
from typing import Any

import yaml


def tiny_world(root: Path, *, world: Path | None = None, store: Path | None = None) -> Path:
    """Write the parameter file; all its paths are absolute.

    Args:
        root: gets ``params.yaml``.
        world: the generated world; None: ``world`` in ``root``.
        store: None: ``store`` in ``root``.
    """
    world = world or root / "world"
    content: dict[str, Any] = {
        "store": str(store or root / "store"),
        "world": {"folder": str(world), "seed": 3, "scene_size_px": 128, "num_scenes": 2, "task_images_per_class": 4},
        "scenes": {
            "folder": str(world / "scenes"),
            "collections": [
                {"name": "gaofen", "files": "*.tiff", "bands": ["blue", "green", "red", "nir"], "land_cover": "globe"}
            ],
        },
        "land_cover": {
            "folder": str(world / "land_cover"),
            "products": [{"name": "globe", "files": "**/*.tif", "legend": "globeland30", "year": 2020}],
        },
        "chips": {"size_px": 32, "stride_px": 32},
        "levir_kr": {"max_unknown_fraction": 0.9, "min_voting_cells": 0, "place_size_deg": 0.02},
        "pretraining": {
            "architecture": "squeezenet1_1",
            "steps": 2,
            "batch_size": 4,
            "log_every": 1,
            "precision": "fp32",
        },
        "evaluation": {
            "folder": str(world / "tasks"),
            "tasks": [{"name": "scene_classification"}],
            "protocols": ["linear_probe"],
            "labels_per_class": ["all"],
            "seeds": [0],
        },
        "champion": {"primary": [{"task": "scene_classification"}]},
    }
    path = root / "params.yaml"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
