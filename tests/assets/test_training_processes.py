"""A training that a run in Dagster shares among two processes: whichever of them is lost, the end is that of an undisturbed one."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_worlds import tiny_world
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from geokr_assets import step_process
from geokr_assets.executors import training_processes
from geokr_core.chain.params import load_params
from geokr_core.chain.steps import Folders
from geokr_core.errors import ConfigError
from geokr_core.levir_kr.freeze import freeze
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

REPOSITORY = Path(__file__).parents[2]

RUN = """
import sys
import dagster as dg
from geokr_assets.definitions import defs
job = defs.resolve_implicit_global_asset_job_def()
with dg.DagsterInstance.ephemeral() as instance:
    result = job.execute_in_process(asset_selection=[dg.AssetKey("pretraining")], instance=instance, raise_on_error=False)
sys.exit(0 if result.success else 1)
"""


def test_processes_of_a_training_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_processes() == 1
    monkeypatch.setenv("GEOKR_TRAINING_PROCESSES", "two")
    with pytest.raises(ConfigError, match="'two' found, expected a number of processes, at least 1"):
        training_processes()


def test_processes_that_are_started_again_do_not_meet_where_dead_ones_left_their_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ports = []

    def torchrun(_: object) -> None:
        """What torchrun does before it starts its processes, twice."""
        settings = {"endpoint": "localhost:0", "run_id": "tried", "min_nodes": 1, "max_nodes": 1, "is_host": "true"}
        meeting = get_rendezvous_handler(RendezvousParameters(backend="c10d", **settings))
        ports.extend(meeting.next_rendezvous().bootstrap_store_info.master_port for _ in range(2))
        meeting.shutdown()

    monkeypatch.setattr("torch.distributed.run.main", torchrun)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")  # as it was, afterwards
    assert step_process._together(2, []) == 0
    assert ports[0] != ports[1]


def _project(root: Path, cut_world: Path, **pretraining: object) -> Path:
    """A project whose data set is frozen; its parameter file."""
    shutil.copytree(cut_world / "data", root / "data")
    file = tiny_world(root, world=root / "data" / "world", store=root / "data" / "store")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["pretraining"] |= pretraining
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    params = load_params(file)
    folders = Folders(params)
    freeze(params.levir_kr, folders["chips"], folders["proportions"], folders["levir_kr"], RecordingReporter())
    return file


@contextmanager
def _run(params_file: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in Dagster, in a separate process; what is left of it at the end is killed."""
    with _started([sys.executable, "-c", RUN], params_file, **environment) as process:
        yield process


@contextmanager
def _started(command: list[str], params_file: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=params_file.parent,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # no MLflow: this is not about it
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "GEOKR_SPOOL": str(params_file.parent / "spool"),
            **environment,
        },
        stdout=(params_file.parent / "run.log").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for left in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
        process.wait(timeout=60)


def _as_the_guide_types_it() -> str:
    """The command for two processes that docs/pretraining.md gives."""
    section = (REPOSITORY / "docs" / "pretraining.md").read_text(encoding="utf-8").split("## Several processes")[1]
    (command,) = re.findall(r"```sh\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    return str(command)


def _said(params_file: Path) -> str:
    return (params_file.parent / "run.log").read_text(encoding="utf-8", errors="replace")[-4000:]


def _until(what: str, holds: Callable[[], object], params_file: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s. {_said(params_file)}"
        time.sleep(0.05)


def _of_rank(
    run: subprocess.Popen[bytes], rank: str, program: str = "geokr_assets.step_process"
) -> psutil.Process | None:
    """The process of a training that has a number, if it runs."""
    for process in psutil.Process(run.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == rank and program in process.cmdline():
                return process
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("door", ["dagster", "typed"])
def test_no_other_machine_reaches_the_processes_of_a_training(tmp_path: Path, cut_world: Path, door: str) -> None:
    params_file = _project(tmp_path, cut_world, steps=400, checkpoint_every=1, batch_size=4)
    checkpoints = load_params(params_file).store / ".checkpoints"
    if door == "dagster":
        program, started = "geokr_assets.step_process", _run(params_file, GEOKR_TRAINING_PROCESSES="2")
    else:
        program, started = "geokr_core.cli", _started(["bash", "-c", _as_the_guide_types_it()], params_file)
    with started as run:
        _until("a checkpoint", lambda: list(checkpoints.rglob("checkpoint_*")), params_file)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        sockets = [one for process in family for one in process.net_connections("inet")]
        assert _of_rank(run, "1", program) is not None
        listening = {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN}
        assert listening, "the processes of a training listen for each other"
        assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
        talking = {one.raddr.ip for one in sockets if one.status == psutil.CONN_ESTABLISHED}
        assert talking <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, talking


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_whichever_process_of_a_training_is_killed_it_resumes_to_the_same_bytes(
    tmp_path: Path, cut_world: Path, record_property: Callable[[str, object], None]
) -> None:
    settings = {"steps": 80, "checkpoint_every": 1, "batch_size": 4}
    straight, killed = (_project(tmp_path / name, cut_world, **settings) for name in ("straight", "killed"))
    with _run(straight, GEOKR_TRAINING_PROCESSES="2") as run:
        assert run.wait(timeout=900) == 0, _said(straight)
    checkpoints = load_params(killed).store / ".checkpoints"

    def newest() -> float:
        return max((path.stat().st_mtime for path in checkpoints.rglob("checkpoint_*")), default=0.0)

    def trains_on() -> None:
        since = max(newest(), time.time())
        _until("a checkpoint more", lambda: newest() > since, killed)

    with _run(killed, GEOKR_TRAINING_PROCESSES="2") as run:
        for rank in ("1", "0"):
            trains_on()
            victim = _of_rank(run, rank)
            assert victim is not None, _said(killed)
            victim.kill()
        trains_on()  # torchrun has started both again, twice, in the same run
        family = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        _, alive = psutil.wait_procs(family, timeout=100)
        assert not alive, "the training outlived its run"
    assert not Folders(load_params(killed))["pretraining"].exists()
    with _run(killed, GEOKR_TRAINING_PROCESSES="2") as run:
        assert run.wait(timeout=900) == 0, _said(killed)
    told = (killed.parent / "run.log").read_text(encoding="utf-8", errors="replace")
    assert told.count("resuming after step") == 3
    assert "unexpected message" not in told  # Dagster heard a process to its end before it heard the next one
    versions = [data_version(Folders(load_params(file))["pretraining"]) for file in (killed, straight)]
    assert versions[0] == versions[1]
    record_property("fault", "kill -9 of each of two processes of a training, and of its run in Dagster")
    record_property("kills", 3)
