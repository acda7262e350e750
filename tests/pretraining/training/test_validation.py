"""Chips are judged as they are, at most a thousand, and the network is left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training import validation
from geokr_core.pretraining.training.loop import judged
from geokr_core.pretraining.training.state import Run, begin
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=96, chip_size_px=32)


def _config(**changes: Any) -> PretrainingConfig:
    small = {"architecture": "squeezenet1_1", "steps": 12, "batch_size": 8, "threads": 1, "log_every": 4}
    return PretrainingConfig(**({**small, "checkpoint_every": 3, "device": "cpu"} | changes))


def test_held_out_chips_are_judged_as_often_as_is_asked(data: LevirKR, tmp_path: Path) -> None:
    measured = {}
    for every in (None, 3):
        reporter, place = RecordingReporter(), tmp_path / str(every)
        config = _config(steps=8, log_every=2, validate_every=every)
        pretrain(config, data.folder, place / "out", place / "ck", reporter)
        measured[every] = [step for step, values in reporter.points if "validation_kl" in values]
        assert all(any(name.startswith("bias/") for name in v) for _, v in reporter.points if "validation_kl" in v)
    assert measured == {None: [2, 4, 6, 8], 3: [4, 6, 8]}


def _run(data: LevirKR, **changes: Any) -> Run:
    (run,) = runs_of(_config(**changes), data, Path("unused"))
    return run


@pytest.mark.parametrize("batchnorm", ["averaged", "own"])
def test_judging_leaves_mode_and_statistics_of_the_network_alone(batchnorm: str, data: LevirKR) -> None:
    run = _run(data, architecture="resnet18", batchnorm=batchnorm)
    state = begin(run)
    network, before = state.teacher.network, {k: v.clone() for k, v in state.teacher.network.state_dict().items()}
    judged(run, network, run.train_rows[:4])
    assert network.training is (batchnorm == "own")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_at_most_a_thousand_chips_are_judged(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    images = LevirKR.images
    monkeypatch.setattr(LevirKR, "images", lambda self, rows: read.extend(rows) or images(self, rows))
    monkeypatch.setattr(validation, "MAX_JUDGED_CHIPS", 10)
    run = _run(data)
    judged(run, Network("squeezenet1_1", 3, len(data.classes)), np.arange(50))
    assert (len(set(read)), min(read), max(read)) == (10, 0, 49)
