"""Two views of a chip differ in colour and agree in orientation."""

from dataclasses import replace

import torch
from short_runs import checkpointed_run

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import reading
from geokr_core.pretraining.training.state import Run

NUM_CHIPS = 96


def _seen(run: Run, step: int = 1) -> Inputs:
    batch = reading(run)(1)
    return inputs_of(run, replace(batch, step=step), slice(0, len(batch.rows)), run.normalisation())


def test_two_views_differ_in_colour_and_agree_in_orientation(data: LevirKR) -> None:
    run = checkpointed_run(data)
    views = _seen(run)
    assert not torch.equal(views.student, views.teacher)
    for one, other in zip(views.student.flatten(1), views.teacher.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.8
    same = _seen(checkpointed_run(data, two_views=False))
    assert same.student is same.teacher
    assert torch.equal(same.student, views.student)
    assert not torch.equal(_seen(run, step=2).student, views.student)
