"""What the chain does where DVC or git cannot record: the work, and one warning."""

import subprocess
from pathlib import Path

import pytest
import yaml

from geokr_core.chain import versioning
from geokr_core.chain.params import Params, load_params
from geokr_core.errors import VersioningError
from geokr_core.step.reporter import RecordingReporter

OWN_DATA = """
store: data
scenes: {folder: raw/scenes, collections: [{name: mine, files: "*.tif", bands: [red], land_cover: mine}]}
land_cover: {folder: raw/cover, products: [{name: mine, files: "*.tif", legend: globeland30, year: 2020}]}
chips: {bands: [red]}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project out of a ZIP: ``.dvc`` and ``dvc.yaml``, and no ``.git``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(OWN_DATA)
    return tmp_path


def test_without_git_nothing_is_recorded_and_a_warning_says_why(project: Path) -> None:
    reporter = RecordingReporter()
    assert not versioning.commit("scenes", load_params(), reporter)
    assert len(reporter.warnings) == 1
    assert "no git repository" in reporter.warnings[0]
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    assert versioning.why_not_recorded() == ""


def test_what_is_made_from_a_generated_world_is_recorded_once_someone_has_begun_to(project: Path) -> None:
    assert versioning.is_recorded(load_params())
    (project / "params.yaml").write_text(f"{OWN_DATA}world: {{folder: raw}}\n")
    reporter = RecordingReporter()
    assert not versioning.is_recorded(load_params())
    assert not versioning.commit("scenes", load_params(), reporter)
    assert reporter.warnings == []
    for begun in ("dvc.lock", "dvc.lock.damaged"):
        (project / begun).write_text("stages: {}\n")
        assert versioning.is_recorded(load_params())
        (project / begun).unlink()


def test_what_python_made_without_a_file_is_not_taken_for_that_of_the_file(project: Path) -> None:
    made = Params.model_validate(yaml.safe_load(OWN_DATA))
    assert versioning.is_recorded(load_params())
    assert not versioning.is_recorded(made)
    assert not versioning.commit("scenes", made, RecordingReporter())
    assert not (project / "dvc.lock").exists()


def test_what_dvc_says_reaches_the_user(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(
        VersioningError, match="DVC could not record scenes: .*scenes.* The output itself is complete"
    ) as told:
        versioning.commit("scenes", load_params(), RecordingReporter())
    assert len(str(told.value)) > len("DVC could not record scenes: . The output itself is complete") + 60


@pytest.mark.parametrize("text", ["schema: '2.0'\nstages:\n  scenes: {outs", "", "- a\n", "stages: 3\n"])
def test_a_damaged_lock_file_is_put_away_and_said(project: Path, text: str) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    (project / "dvc.lock").write_text(text)
    assert versioning.recorded_versions() == {}
    reporter = RecordingReporter()
    with pytest.raises(VersioningError):
        versioning.commit("scenes", load_params(), reporter)
    assert (project / "dvc.lock.damaged").read_text() == text
    assert "could not be read" in reporter.warnings[0]


def test_a_lock_file_cut_in_half_knows_what_is_left(project: Path) -> None:
    (project / "dvc.lock").write_text("stages:\n  a: {outs: [{path: x, md5: '1.dir'}]}\n  b: {outs: [{path: y}]}\n")
    assert versioning.recorded_versions() == {"a": "1.dir"}
