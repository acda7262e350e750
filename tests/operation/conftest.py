"""A project that has not run, in the working directory, with an empty MLflow database."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from geokr_core.testing import make_small_archive

CONTENT = {
    "store": "data/store",
    "world": {"folder": "data/world", "scene_size_px": 128, "num_scenes": 2, "task_images_per_class": 6},
    "scenes": {
        "folder": "data/world/scenes",
        "collections": [
            {"name": "gaofen", "files": "*.tiff", "bands": ["blue", "green", "red", "nir"], "land_cover": "globe"}
        ],
    },
    "land_cover": {
        "folder": "data/world/land_cover",
        "products": [{"name": "globe", "files": "**/*.tif", "legend": "globeland30", "year": 2020}],
    },
    "evaluation": {
        "folder": "data/world/tasks",
        "tasks": [{"name": "scene_classification"}],
        "protocols": ["linear_probe"],
    },
    "champion": {"primary": [{"task": "scene_classification"}]},
}


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(CONTENT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("GEOKR_SPOOL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def archive(project: Path) -> Path:
    """The same project with two small scenes and land cover, of which nothing has to be generated."""
    content = yaml.safe_load(make_small_archive(project, num_scenes=2).read_text())
    content |= {"store": "data/store", **{name: CONTENT[name] for name in ("evaluation", "champion")}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    return project


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not allow to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)
