"""Environments with packages from the index and nothing of this project, for tests of what others see. Found through ``pythonpath`` in pyproject.toml."""

import os
import shutil
import site
import subprocess
import sys
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


def made(folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment with some packages; skips where the package index cannot be reached."""
    uv, python = uv_command(), folder / "env" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder / "env")],
        [uv, "pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
        if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
            pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return python


def output_of(python: Path, script: str, *arguments: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-I", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines()
