"""The list of real sets: it fits the parameter files and, where the data are, the data; and it notices what is missing."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from geokr_core.acquisition.real_sets import check_sets, real_sets
from geokr_core.cli import app
from geokr_core.errors import MissingInputError

PROJECT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("GEOKR_REAL_DATA", PROJECT.parent / "shared" / "data"))


def make_whole(folder: Path) -> Path:
    """A folder with as many files as the list asks for, each of one byte."""
    for one in real_sets():
        for pattern, number in one.files.items():
            for count in range(number):
                *above, name = pattern.split("/")
                parts = [re.sub(r"[*?]", str(count % 10), part) for part in above]
                parts.append(re.sub(r"[*?]", str(count), name))
                path = folder.joinpath(one.folder, *parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
    return folder


def test_a_whole_folder_is_whole_and_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = make_whole(tmp_path)
    assert {one.state for one in check_sets(folder)} == {"whole"}

    (folder / "scenes/zion_landsat8_nlcd/nlcd2011.tif").unlink()
    next((folder / "scenes/zion_landsat8_nlcd").glob("landsat8_b*.tif")).write_bytes(b"")  # a download that broke off
    for path in (folder / "weights/imagenet_mobilenet_v2").iterdir():
        path.unlink()
    (folder / "weights/imagenet_mobilenet_v2").rmdir()
    found = {one.folder: one for one in check_sets(folder) if one.state != "whole"}
    assert found["scenes/zion_landsat8_nlcd"].found == (
        "landsat8_b?.tif: 3 file(s), expected 4; nlcd2011.tif: 0 file(s), expected 1"
    )
    assert found["weights/imagenet_mobilenet_v2"].state == "missing"
    assert len(found) == 2

    done = CliRunner().invoke(app, ["check-data", str(folder), "--json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)) == len(real_sets())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no such folder; name the one that holds"):
        check_sets(tmp_path / "nowhere")


def test_every_folder_that_a_parameter_file_reads_is_on_the_list() -> None:
    listed = {one.folder for one in real_sets()}
    for path in (PROJECT / "params").glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, entries in (("scenes", "collections"), ("land_cover", "products")):
            part = content.get(section) or {}
            if "shared/data" in str(part.get("folder", "")):
                base = str(part["folder"]).split("shared/data/")[1]
                named = {"/".join(f"{base}/{entry['files']}".split("/")[:2]) for entry in part[entries]}
                assert named <= listed, path.name


@pytest.mark.real_data
def test_the_real_folder_is_whole() -> None:
    if not REAL_DATA.is_dir():
        pytest.skip(f"{REAL_DATA} is not there")
    assert [one for one in check_sets(REAL_DATA) if one.state != "whole"] == []
