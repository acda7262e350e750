"""What a release promises of its dependencies."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from installing import uv_command

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_all_floors_can_be_installed_together(python: str, tmp_path: Path) -> None:
    """Resolved only: nothing is downloaded but metadata."""
    resolved = tmp_path / "floors.txt"
    command = [uv_command(), "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--extra", "all"]
    done = subprocess.run(
        [*command, "--python-version", python, "-o", str(resolved), "pyproject.toml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    floors = dict(line.split("==") for line in resolved.read_text().splitlines() if "==" in line and line[0].isalpha())
    assert floors["pydantic"] == "2.11.0"
    assert floors["safetensors"].startswith("0.6")


def test_one_version_everywhere() -> None:
    import geokr_core

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert geokr_core.__version__ == project
    assert f"version: {project}" in (PROJECT / "CITATION.cff").read_text(encoding="utf-8").replace('"', "")
