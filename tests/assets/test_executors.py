"""Where steps are carried out: chosen by configuration, and the same bytes whoever else works on the scene or is killed."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from geokr_assets.executors import NAMES, celery_settings, configured_executor, executor_named, scenes_per_run
from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.scene_by_scene import scene_ids
from geokr_core.chain.steps import Folders
from geokr_core.errors import ConfigError
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive

REPOSITORY = Path(__file__).parents[2]
INSTALLED = {
    name
    for name, module in (
        ("k8s", "dagster_k8s"),
        ("celery", "dagster_celery"),
        ("celery_k8s", "dagster_celery_k8s"),
        ("docker", "dagster_docker"),
    )
    if importlib.util.find_spec(module)
}


def test_the_environment_chooses_the_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_executor() is dg.in_process_executor
    monkeypatch.setenv("GEOKR_EXECUTOR", "multiprocess")
    assert configured_executor().name == "multiprocess"
    monkeypatch.setenv("GEOKR_EXECUTOR", "threads")
    with pytest.raises(ConfigError, match="'threads' found, expected one of in_process, multiprocess, k8s"):
        configured_executor()


@pytest.mark.parametrize("name", NAMES[2:])
def test_an_executor_of_a_package_that_is_not_installed_says_what_to_install(name: str) -> None:
    if name in INSTALLED:
        assert isinstance(executor_named(name), dg.ExecutorDefinition)
        return
    with pytest.raises(
        ConfigError, match=rf"dagster-{name.replace('_', '-')} cannot be imported.*dagster {dg.__version__}"
    ):
        executor_named(name)


def test_scenes_a_run_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scenes_per_run() == 50
    monkeypatch.setenv("GEOKR_SCENES_PER_RUN", "0")
    with pytest.raises(ConfigError, match="'0' found, expected a number of scenes, at least 1"):
        scenes_per_run()


@pytest.mark.parametrize(
    ("broker", "named", "expected"),
    [
        ("redis://:word@127.0.0.1:6379/0", None, "redis://:word@127.0.0.1:6379/0"),
        ("amqp://geokr:word@127.0.0.1:5672//", None, "rpc://"),
        ("amqps://geokr:word@127.0.0.1:5671//", None, "rpc://"),
        ("amqp://geokr:word@127.0.0.1:5672//", "redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/1"),
    ],
)
def test_results_go_where_celery_can_keep_them(
    broker: str, named: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", named or "")
    assert celery_settings()["backend"] == expected
    backends = pytest.importorskip("celery.app.backends", reason="the extra celery is not installed")
    if expected.startswith("redis"):
        pytest.importorskip("redis", reason="the extra celery is not installed")
    backends.by_url(expected)


# --- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    params_file = make_small_archive(tmp_path / "archive", num_scenes=6)
    params = load_params(params_file)
    for step in ("scenes", "land_cover"):
        run_step(step, params, RecordingReporter())
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("scenes", scene_ids(params))
    return params_file


def _start(params_file: Path, first: str, last: str, log: Path) -> subprocess.Popen[bytes]:
    """A run of some scenes in separate processes."""
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    arguments = ["-m", "geokr_assets.definitions", "-j", "chips_and_proportions", "--tags", json.dumps(tags)]
    home = params_file.parents[1] / "dagster_home"
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "dagster", "job", "execute", *arguments],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "DAGSTER_HOME": str(home),
                "GEOKR_PARAMS": str(params_file),
                "GEOKR_EXECUTOR": "multiprocess",
                "PYTHONPATH": str(REPOSITORY),
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a run and all of its processes at once, as a power cut would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def _versions(params_file: Path) -> list[str]:
    folders = Folders(load_params(params_file))
    return [data_version(folders[step]) for step in ("chips", "proportions")]


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    """What one undisturbed process makes of the same scenes."""
    params_file = make_small_archive(tmp_path / "undisturbed", num_scenes=6)
    for step in ("scenes", "land_cover", "chips", "proportions"):
        run_step(step, load_params(params_file), RecordingReporter())
    return _versions(params_file)


@pytest.mark.slow
def test_two_runs_on_the_same_scenes_at_once_leave_one_correct_shard_each(
    archive: Path, expected: list[str], tmp_path: Path
) -> None:
    runs = [_start(archive, "scene_0000", "scene_0005", tmp_path / f"run{k}.log") for k in range(2)]
    try:
        codes = [run.wait(timeout=240) for run in runs]
    finally:
        for run in runs:
            _kill(run)
    logs = [(tmp_path / f"run{k}.log").read_text() for k in range(2)]
    assert codes == [0, 0], logs
    assert "Multiprocess executor" in logs[0] or "multiprocess" in logs[0].lower()
    assert _versions(archive) == expected
    assert not list(archive.parent.rglob("*.partial"))


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_ends_where_an_undisturbed_one_does(
    archive: Path, expected: list[str], tmp_path: Path
) -> None:
    chips = Folders(load_params(archive))["chips"]
    run = _start(archive, "scene_0000", "scene_0005", tmp_path / "killed.log")
    try:
        deadline = time.monotonic() + 180
        while not list(chips.glob("*.parquet")):
            assert run.poll() is None, (tmp_path / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        _kill(run)
    assert len(list(chips.glob("*.parquet"))) < 6  # it was killed under way
    again = _start(archive, "scene_0000", "scene_0005", tmp_path / "again.log")
    try:
        assert again.wait(timeout=240) == 0, (tmp_path / "again.log").read_text()
    finally:
        _kill(again)
    assert _versions(archive) == expected
    with dg.DagsterInstance.from_config(str(archive.parents[1] / "dagster_home")) as instance:
        assert len(instance.get_materialized_partitions(dg.AssetKey("proportions"))) == 6
