"""What `geokr run` says at the end can be typed where it is said."""

from pathlib import Path

import pytest

from geokr_core.chain.params import load_params
from geokr_core.commands.chain import _next_line
from geokr_core.testing import make_small_archive

REPOSITORY = Path(__file__).parents[2]


def test_a_checkout_has_make_and_a_project_of_ones_own_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    of_the_demo = _next_line(load_params("params.yaml"))
    assert "make ui" in of_the_demo
    assert "geokr init" in of_the_demo
    params = load_params(make_small_archive(tmp_path, num_scenes=1))
    monkeypatch.chdir(tmp_path)
    of_an_archive = _next_line(params)
    assert "dagster dev -m geokr_assets.definitions" in of_an_archive
    assert "geokr init" not in of_an_archive
