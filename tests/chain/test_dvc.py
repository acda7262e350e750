"""Real DVC: the chain under ``dvc repro``, one data version in all tools, push and pull."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geokr_core.chain import versioning
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run, run_step
from geokr_core.chain.steps import Folders
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("world", "scenes", "land_cover", "chips", "proportions", "levir_kr")


def sh(*command: str, cwd: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as a user has it: git, DVC with a local remote, a small world, run through once by ``dvc repro``."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(empty_database, folder)
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(ROOT / ".gitignore", folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["world"] |= {"scene_size_px": 192, "num_scenes": 3, "task_images_per_class": 4}
    params["chips"] |= {"size_px": 32, "stride_px": 32}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    sh("git", "init", "-q", cwd=folder)
    sh("dvc", "init", "-q", cwd=folder)
    sh("dvc", "remote", "add", "-q", "-d", "local", str(folder / "remote"), cwd=folder)
    sh("dvc", "repro", "-q", "levir_kr", cwd=folder)
    return folder


@pytest.fixture
def params(project: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(project)
    return load_params()


def test_repro_passes_over_what_is_current(project: Path) -> None:
    assert "Data and pipelines are up to date" in sh("dvc", "status", *STEPS, cwd=project)
    printed = sh("dvc", "repro", "levir_kr", cwd=project)
    assert printed.count("didn't change, skipping") == len(STEPS)


def test_our_data_version_is_the_one_in_dvc_lock(project: Path, params: Params) -> None:
    folders = Folders(params)
    recorded = versioning.recorded_versions(project / "dvc.lock")
    assert {name: data_version(folders[name]) for name in STEPS} == {name: recorded[name] for name in STEPS}


def test_the_command_line_takes_what_dvc_made_as_current(params: Params) -> None:
    for name in ("scenes", "land_cover", "chips", "proportions"):
        assert run_step(name, params, RecordingReporter()).was_current


def test_push_and_pull_bring_levir_kr_back(project: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "data" / "store" / "chips").glob("*.npy")}
    sh("dvc", "push", "-q", cwd=project)
    shutil.rmtree(project / "data" / "store" / "chips")
    shutil.rmtree(project / ".dvc" / "cache")
    sh("dvc", "pull", "-q", "levir_kr", "chips", cwd=project)
    assert {path: path.read_bytes() for path in before} == before
    sh("dvc", "pull", "-q", "world", "scenes", "land_cover", "proportions", cwd=project)


def test_a_step_run_by_another_door_leaves_dvc_status_clean(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    text = (project / "params.yaml").read_text()
    try:
        changed = yaml.safe_load(text)
        changed["chips"]["stride_px"] = 48
        (project / "params.yaml").write_text(yaml.safe_dump(changed))
        params = load_params()
        assert "chips" in sh("dvc", "status", "chips", cwd=project)
        reporter = RecordingReporter()
        outcome = run_step("chips", params, reporter)
        assert versioning.commit("chips", params, reporter)
        assert "up to date" in sh("dvc", "status", "chips", cwd=project)
        assert versioning.recorded_versions()["chips"] == outcome.data_version
    finally:
        (project / "params.yaml").write_text(text)


def test_nothing_is_recorded_for_other_parameter_files_or_inside_dvc(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    shutil.copy("params.yaml", "other.yaml")
    before = (project / "dvc.lock").read_bytes()
    assert not versioning.commit("chips", load_params("other.yaml"), RecordingReporter())
    monkeypatch.setenv("DVC_STAGE", "chips")
    assert not versioning.commit("chips", load_params(), RecordingReporter())
    assert (project / "dvc.lock").read_bytes() == before


def test_a_run_over_the_generated_world_leaves_the_checkout_as_it_was(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until someone begins with ``dvc repro``, which writes the lock file."""
    for name in ("dvc.yaml", ".gitignore", "params.yaml"):
        shutil.copy(project / name, tmp_path)
    sh("git", "init", "-q", cwd=tmp_path)
    sh("dvc", "init", "-q", cwd=tmp_path)
    sh("git", "add", "-A", cwd=tmp_path)
    sh("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "begin", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    run(load_params(), RecordingReporter(), steps=["world", "scenes"])
    assert sh("git", "status", "--porcelain", cwd=tmp_path) == ""
    sh("dvc", "repro", "-q", "scenes", cwd=tmp_path)
    assert sh("git", "status", "--porcelain", cwd=tmp_path) == "?? dvc.lock\n"
    assert "up to date" in sh("dvc", "status", "world", "scenes", cwd=tmp_path)


@pytest.mark.slow
def test_a_tagged_version_of_levir_kr_is_fetched_by_its_name(project: Path, tmp_path: Path) -> None:
    sh("dvc", "push", "-q", cwd=project)
    sh("git", "add", "-A", cwd=project)
    sh("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "frozen", cwd=project)
    sh("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "tag", "-a", "levir-kr@v1.0.0", "-m", "first", cwd=project)
    sh("dvc", "artifacts", "get", str(project), "levir-kr", "--rev", "v1.0.0", "-o", "got", cwd=tmp_path)
    assert data_version(tmp_path / "got") == versioning.recorded_versions(project / "dvc.lock")["levir_kr"]


@pytest.mark.parametrize(("name", "step"), [("backbone", "backbone"), ("levir-kr", "levir_kr")])
def test_each_named_artifact_is_the_output_of_its_step(name: str, step: str) -> None:
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert declared["artifacts"][name]["path"] in declared["stages"][step]["outs"]


def test_dagster_and_dvc_parsers_live_together(tmp_path: Path) -> None:
    """Both need an ANTLR runtime of another version; the bounds in pyproject.toml reconcile them."""
    import dagster as dg
    from dvc.utils.hydra import apply_overrides

    dg.AssetSelection.from_string('key:"chips"+')
    target = tmp_path / "params.yaml"
    target.write_text("a: {b: 1}\n")
    apply_overrides(target, ["a.b=2"])
    assert yaml.safe_load(target.read_text()) == {"a": {"b": 2}}
