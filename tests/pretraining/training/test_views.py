"""Two views of a chip differ in colour and agree in orientation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import reading
from geokr_core.pretraining.training.state import Run
from geokr_core.testing import make_levir_kr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=96, chip_size_px=32)


def _config(**changes: Any) -> PretrainingConfig:
    small = {"architecture": "squeezenet1_1", "steps": 12, "batch_size": 8, "threads": 1, "log_every": 4}
    return PretrainingConfig(**({**small, "checkpoint_every": 3, "device": "cpu"} | changes))


def _run(data: LevirKR, **changes: Any) -> Run:
    (run,) = runs_of(_config(**changes), data, Path("unused"))
    return run


def _seen(run: Run, step: int = 1) -> Inputs:
    batch = reading(run)(1)
    return inputs_of(run, replace(batch, step=step), slice(0, len(batch.rows)), run.normalisation())


def test_two_views_differ_in_colour_and_agree_in_orientation(data: LevirKR) -> None:
    run = _run(data)
    views = _seen(run)
    assert not torch.equal(views.student, views.teacher)
    for one, other in zip(views.student.flatten(1), views.teacher.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.8
    same = _seen(_run(data, two_views=False))
    assert same.student is same.teacher
    assert torch.equal(same.student, views.student)
    assert not torch.equal(_seen(run, step=2).student, views.student)
