"""The tool that installs packages, for tests of what is installed. Found through ``pythonpath`` in pyproject.toml."""

import shutil
import site
from pathlib import Path

import pytest


def uv_command() -> str:
    """Path of uv as `make` finds it; the test is skipped where there is none."""
    project = Path(__file__).resolve().parents[2]
    places = (None, str(Path(site.getuserbase()) / "bin"), str(project / ".uv-venv" / "bin"))
    found = next((path for place in places if (path := shutil.which("uv", path=place))), None)
    if found is None:
        pytest.skip("uv is not to be found")
    return found
