"""A chain that is run in seconds: two generated scenes, three steps of training, one small labelled set."""

from pathlib import Path

from geokr_core.chain.params import Params

FIRST_STEPS = ("world", "scenes", "land_cover", "chips", "proportions", "levir_kr")
"""Steps without torch."""


def tiny_params(folder: Path) -> Params:
    """Parameters of a whole chain below ``folder``."""
    world = folder / "world"
    return Params.model_validate(
        {
            "store": folder / "store",
            "world": {"folder": world, "scene_size_px": 128, "num_scenes": 2, "task_images_per_class": 6},
            "scenes": {
                "folder": world / "scenes",
                "collections": [
                    {
                        "name": "gaofen",
                        "files": "*.tiff",
                        "bands": ["blue", "green", "red", "nir"],
                        "nodata": 0,
                        "land_cover": "globeland30_2020",
                    }
                ],
            },
            "land_cover": {
                "folder": world / "land_cover",
                "products": [{"name": "globeland30_2020", "files": "**/*.tif", "legend": "globeland30", "year": 2020}],
            },
            "chips": {"size_px": 32, "stride_px": 16, "workers": 1},
            "levir_kr": {"max_unknown_fraction": 0.5, "place_size_deg": 0.05},
            "pretraining": {
                "architecture": "squeezenet1_1",
                "steps": 3,
                "batch_size": 8,
                "variants": ["geokr"],
                "precision": "fp32",
                "log_every": 1,
                "compile": "off",
            },
            "backbone": {"model_name": "tiny"},
            "evaluation": {
                "folder": world / "tasks",
                "tasks": [{"name": "scene_classification"}],
                "initialisations": ["random", "geokr"],
                "protocols": ["linear_probe"],
                "labels_per_class": [2],
                "seeds": [0],
                "threads": 1,
            },
            "champion": {"primary": [{"task": "scene_classification", "labels_per_class": 2}]},
        }
    )
