"""A finished tiny store, made once a session by the page that shows the chain from Python."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from geokr_core.chain.params import Params

ROOT = Path(__file__).resolve().parents[2]
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
            "embeddings": {"workers": 1},
            "map_audit": {"place_size_deg": 0.003, "plantings": 1, "min_known_fraction": 0.5},
            "evaluation": {
                "folder": world / "tasks",
                "tasks": [{"name": "scene_classification"}],
                "initialisations": ["random", "geokr"],
                "protocols": ["linear_probe"],
                "labels_per_class": [2],
                "seeds": [0],
                "precision": "bf16",  # on every machine what golden_outputs.json was written with
                "threads": 1,
            },
            "champion": {"primary": [{"task": "scene_classification", "labels_per_class": 2}]},
        }
    )


def python_blocks(page: Path) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="session")
def first_steps() -> tuple[str, ...]:
    """Steps without torch."""
    return FIRST_STEPS


@pytest.fixture
def tiny(tmp_path: Path) -> Params:
    """Parameters of a tiny chain that has not run."""
    return tiny_params(tmp_path)


@pytest.fixture(scope="session")
def finished(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``params.yaml``, in which the first example of ``docs/python.md`` has run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(empty_database, folder)
    content = json.loads(tiny_params(Path("data")).model_dump_json(exclude_unset=True))
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    before = Path.cwd(), os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.chdir(folder)
    try:
        exec(compile(python_blocks(ROOT / "docs" / "python.md")[0], "docs/python.md", "exec"), {})  # noqa: S102  (our own page)
        yield folder
    finally:
        os.chdir(before[0])
        if before[1] is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before[1]
