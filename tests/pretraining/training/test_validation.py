"""Chips are judged as they are, at most a thousand, and the network is left alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import checkpointed_config, checkpointed_run

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.training import validation
from geokr_core.pretraining.training.loop import judged
from geokr_core.pretraining.training.state import begin
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 96


def test_held_out_chips_are_judged_as_often_as_is_asked(data: LevirKR, tmp_path: Path) -> None:
    measured = {}
    for every in (None, 3):
        reporter, place = RecordingReporter(), tmp_path / str(every)
        config = checkpointed_config(steps=8, log_every=2, validate_every=every)
        pretrain(config, data.folder, place / "out", place / "ck", reporter)
        measured[every] = [step for step, values in reporter.points if "validation_kl" in values]
        assert all(any(name.startswith("bias/") for name in v) for _, v in reporter.points if "validation_kl" in v)
    assert measured == {None: [2, 4, 6, 8], 3: [4, 6, 8]}


@pytest.mark.parametrize("batchnorm", ["averaged", "own"])
def test_judging_leaves_mode_and_statistics_of_the_network_alone(batchnorm: str, data: LevirKR) -> None:
    run = checkpointed_run(data, architecture="resnet18", batchnorm=batchnorm)
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
    run = checkpointed_run(data)
    judged(run, Network("squeezenet1_1", 3, len(data.classes)), np.arange(50))
    assert (len(set(read)), min(read), max(read)) == (10, 0, 49)
