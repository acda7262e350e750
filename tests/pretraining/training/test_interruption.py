"""A training that is asked to stop is saved after its step, says how it is resumed, and ends with the same bytes."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.batches import Batch
from geokr_core.pretraining.training.interruption import stop_requests
from geokr_core.pretraining.training.monitoring import LossGuard
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 32


def _config(**changes: Any) -> PretrainingConfig:
    small = {"architecture": "squeezenet1_1", "steps": 8, "batch_size": 4, "log_every": 1, "checkpoint_every": 1000}
    return PretrainingConfig(**({**small, "device": "cpu", "examples_every": 0} | changes))


class Stopper(RecordingReporter):
    """Sends this process a signal during one step."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__()
        self.number, self.step = number, step

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if step == self.step:
            # Not os.kill: where other threads run, that is heard a moment later, perhaps outside of the block that expects it.
            signal.raise_signal(self.number)


def test_stopped_at_random_steps_it_ends_with_the_same_bytes(data: LevirKR, tmp_path: Path) -> None:
    config = _config(variants=("geokr", "moco"))
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    first = random.randint(1, 4)
    steps = (first, random.randint(first + 2, 7))  # each stop trains one step more
    for variant, step in [("geokr", steps[0]), ("geokr", steps[1]), ("moco", steps[0]), ("moco", 8)]:
        reporter = Stopper(random.choice([signal.SIGINT, signal.SIGTERM]), step)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            pretrain(config, data.folder, tmp_path / "stopped", tmp_path / "ck", reporter)
        last = min(step + 1, 8)  # the signal came at the end of a step: the next one was made whole
        expected = f"{variant}-seed0: stopped by {reporter.number.name} after step {last} of 8, which is kept in "
        assert [w.startswith(expected) and "same command again to resume" in w for w in reporter.warnings] == [True], (
            steps
        )
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "stopped", tmp_path / "ck", reporter)
    assert "moco-seed0: resuming after step 8" in " ".join(reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "stopped"), steps


def test_ctrl_c_raises_and_sigterm_ends_with_its_number(data: LevirKR, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, raised in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with pytest.raises(raised) as stopped:
            pretrain(_config(), data.folder, tmp_path / "out", tmp_path / number.name, Stopper(number, 2))
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        assert raised is KeyboardInterrupt or stopped.value.args == (128 + signal.SIGTERM,)
        assert [p.name for p in (tmp_path / number.name).rglob("check*")] == ["checkpoint_00000003.safetensors"]


def test_who_listened_before_hears_of_it_after_the_checkpoint(data: LevirKR, tmp_path: Path) -> None:
    class Terminated(Exception):
        """As Dagster raises in a run that is terminated."""

    def handler(number: int, frame: object) -> None:
        assert list((tmp_path / "ck").rglob("checkpoint_*")), "nothing was saved before"
        raise Terminated

    earlier = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Terminated):
            pretrain(_config(), data.folder, tmp_path / "out", tmp_path / "ck", Stopper(signal.SIGTERM, 2))
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_a_second_signal_does_not_wait_and_ignored_ones_stay_ignored() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    with stop_requests(once=False) as stop:  # as under torchrun, which sends one beside that of the terminal
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_another_thread_may_train(data: LevirKR, tmp_path: Path) -> None:
    (run,) = runs_of(_config(steps=1), data, tmp_path / "ck")
    trained: list[int] = []
    thread = threading.Thread(target=lambda: trained.append(loop.train(run, RecordingReporter())[0].step))
    thread.start()
    thread.join()
    assert trained == [1]


def test_one_process_of_several_that_is_asked_stops_all_of_them(tmp_path: Path) -> None:
    guard = LossGuard("run", tmp_path, torch.zeros(1, 2))
    batch = Batch(1, np.zeros(1, np.int64), torch.zeros(1), None, 0.0)
    guard.check(batch, torch.tensor(1.0), None, torch.tensor(0.0))
    assert not guard.stop_was_asked
    guard.check(batch, torch.tensor(1.0), None, torch.tensor(0.5))  # mean of two processes' requests
    guard.check(batch, torch.tensor(1.0), None, torch.tensor(0.0))
    assert guard.stop_was_asked


def test_a_slow_run_is_saved_by_the_clock_too(data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(loop, "save", lambda run, state: saved.append(state.step))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    (run,) = runs_of(_config(steps=4), data, tmp_path / "ck")
    loop.train(run, RecordingReporter())
    assert saved == [1, 2, 3]


SCRIPT = """
import sys
from pathlib import Path
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.reporter import ConsoleReporter
config = PretrainingConfig.model_validate_json(sys.argv[1])
pretrain(config, *(Path(p) for p in sys.argv[2:]), ConsoleReporter())
"""


TOGETHER = SCRIPT.replace("ConsoleReporter())", "Stopper())").replace(
    "config =",
    """
import os, signal
class Stopper(ConsoleReporter):
    def metrics(self, values, step):
        if step == 3 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
config =""",
)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_to_the_same_bytes(data: LevirKR, tmp_path: Path) -> None:
    config = _config()
    program = tmp_path / "train.py"

    def torchrun(script: str, out: str, checkpoints: str) -> subprocess.CompletedProcess[str]:
        program.write_text(script)
        arguments = [
            str(program),
            config.model_dump_json(),
            str(data.folder),
            str(tmp_path / out),
            str(tmp_path / checkpoints),
        ]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    stopped = torchrun(TOGETHER, "stopped", "ck")
    assert stopped.returncode != 0
    assert "stopped by a signal to another process after step" in stopped.stderr
    assert torchrun(SCRIPT, "stopped", "ck").returncode == 0
    assert torchrun(SCRIPT, "straight", "straight-ck").returncode == 0
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three trainings that save after each step: slow beside other work, and never stuck
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_at_a_random_moment_resumes_to_the_same_bytes(
    number: signal.Signals, data: LevirKR, tmp_path: Path
) -> None:
    config = _config(architecture="resnet18", steps=60, checkpoint_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "stopped"), str(tmp_path / "ck")]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "ck").rglob("checkpoint_*")):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode != 0, told
    assert f"stopped by {number.name} after step" in told
    pretrain(config, data.folder, tmp_path / "stopped", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "stopped")
