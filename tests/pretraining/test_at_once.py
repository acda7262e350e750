"""Trainings side by side end with the bytes of trainings one after the other, also when they are stopped, refused or killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from short_runs import checkpointed_config, checkpointed_run

from geokr_core.errors import ConfigError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.distributed import ProcessGroup
from geokr_core.pretraining.at_once import require_possible
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import Advance, RecordingReporter

NUM_CHIPS = 96

STEPS = 30

VARIANTS = ("geokr", "moco")


def _config(runs_at_once: int = 2, **changes: object) -> PretrainingConfig:
    few = {"steps": STEPS, "log_every": 1, "variants": VARIANTS, "runs_at_once": runs_at_once, "checkpoint_every": 1000}
    return checkpointed_config(**few | changes)


class Counting(RecordingReporter):
    """Keeps how many steps it heard of."""

    steps = 0

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Count, if it is the bar over all trainings."""
        assert total == STEPS * len(VARIANTS)

        def advance(units: int) -> None:
            self.steps += units

        yield advance


class Acting(RecordingReporter):
    """Does something to this process or those below it, once a training has made some steps."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = act

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if self.act and step > 2:
            act, self.act = self.act, ""
            if act == "kill":
                for training in psutil.Process().children():
                    training.kill()
            else:
                signal.raise_signal(signal.Signals[act])


def _trained_one_by_one(data: LevirKR, folder: Path) -> str:
    pretrain(_config(1), data.folder, folder / "alone", folder / "alone-ck", RecordingReporter())
    return data_version(folder / "alone")


def test_they_end_with_the_bytes_of_trainings_one_by_one(data: LevirKR, tmp_path: Path) -> None:
    alone = _trained_one_by_one(data, tmp_path)
    reporter = Counting()
    summary = pretrain(_config(), data.folder, tmp_path / "beside", tmp_path / "ck", reporter)
    assert data_version(tmp_path / "beside") == alone
    assert reporter.steps == STEPS * len(VARIANTS)
    assert len(reporter.points) == len(VARIANTS) * STEPS  # each point once
    assert summary.numbers["mean_images_per_s"] > 0
    again = RecordingReporter()
    pretrain(_config(), data.folder, tmp_path / "again", tmp_path / "ck", again)
    assert again.points == []  # all were kept


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_stopped_they_are_saved_and_resumed(how: str, data: LevirKR, tmp_path: Path) -> None:
    alone = _trained_one_by_one(data, tmp_path)
    config, reporter = _config(), Acting(how)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(config, data.folder, tmp_path / "beside", tmp_path / "ck", reporter)
    assert not psutil.Process().children()
    assert any(
        f"stopped by SIGTERM after step {step} of {STEPS}" in line
        for line in reporter.warnings
        for step in range(3, STEPS)
    )
    again = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "beside", tmp_path / "ck", again)
    assert any("resuming after step" in line for line in again.infos)
    assert data_version(tmp_path / "beside") == alone


@pytest.mark.slow
def test_one_that_is_killed_is_named(data: LevirKR, tmp_path: Path) -> None:
    alone = _trained_one_by_one(data, tmp_path)
    with pytest.raises(TrainingError, match=r"-seed0: the process of this training was ended by SIGKILL.*runs_at_once"):
        pretrain(_config(), data.folder, tmp_path / "beside", tmp_path / "ck", Acting("kill"))
    pretrain(_config(), data.folder, tmp_path / "beside", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "beside") == alone


@pytest.mark.slow
def test_a_refusal_of_one_is_that_of_the_step(data: LevirKR, tmp_path: Path) -> None:
    diverging = {"name": "diverging", "method": "moco", "settings": {"learning_rate": 1e30, "warmup_steps": 0}}
    config = checkpointed_config(runs_at_once=2, steps=400, variants=("geokr", diverging))
    reporter = RecordingReporter()
    with pytest.raises(TrainingError, match="diverging-seed0: the (loss|norm of the gradients) is"):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("geokr-seed0: stopped by SIGTERM" in warning for warning in reporter.warnings)


SCRIPT = """
import sys
from pathlib import Path
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain

pretrain(PretrainingConfig.model_validate_json(sys.argv[1]), *(Path(p) for p in sys.argv[2:]))
"""


@pytest.mark.slow
def test_they_end_with_a_process_that_is_killed(data: LevirKR, tmp_path: Path) -> None:
    words = [str(data.folder), str(tmp_path / "beside"), str(tmp_path / "ck")]
    long = _config(steps=100_000, checkpoint_every=1).model_dump_json()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, long, *words])
    while len(list((tmp_path / "ck").glob("*/checkpoint_*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == len(VARIANTS)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_they_are_for_the_cores_of_a_cpu(data: LevirKR) -> None:
    run = checkpointed_run(data, runs_at_once=2)
    require_possible(run.config, run)
    with pytest.raises(ConfigError, match=r"runs_at_once: 2 trainings of 2 processes of torchrun each"):
        require_possible(run.config, replace(run, processes=ProcessGroup(size=2)))
