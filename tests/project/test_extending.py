"""A package of a user, installed beside the project, brings a part of each kind by an entry point, and each is used."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from geokr_core.step.plugins import GROUPS

PROJECT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy_plugins")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages that holds the toy package, as an installer leaves it: modules, metadata, entry points."""
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site-packages"
    shutil.copytree(TOY / "toy_geokr", folder / "toy_geokr")
    information = folder / f"toy_geokr-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_the_toy_package_brings_a_part_of_each_kind() -> None:
    assert set(tomllib.loads((TOY / "pyproject.toml").read_text())["project"]["entry-points"]) == set(GROUPS)


def test_each_part_of_an_installed_package_is_used_by_its_step(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOY / "use_parts.py"), str(tmp_path / "work")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(site)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["scene"] == ["toysat", "2021-07-01", ["green", "red", "nir"]]
    assert found["classes"] == ["crops", "trees"]
    assert found["runs"] == [["geokr", "toy_net"], ["toy_method", "toy_net"]]
    assert found["scores"] == [["geokr", "spread"], ["random", "spread"], ["toy_method", "spread"]]


def test_the_page_shows_the_toy_package() -> None:
    page = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
    points = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]["entry-points"]
    assert [group for group in GROUPS if f"`{group}`" not in page] == []
    shown = tomllib.loads(page.split("```toml\n")[1].split("```")[0])["project"]["entry-points"]
    assert shown == points
