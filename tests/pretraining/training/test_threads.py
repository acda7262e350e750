"""Several threads that are slower than one are named; what is timed leaves the training as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training import threads
from geokr_core.pretraining.training.state import Run, begin
from geokr_core.pretraining.training.threads import warn_of_slow_threads
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 16


def _run(data: LevirKR, **changes: Any) -> Run:
    settings = {"architecture": "squeezenet1_1", "steps": 1, "batch_size": 4, "device": "cpu", "threads": 2}
    (run,) = runs_of(PretrainingConfig(**(settings | changes)), data, Path("unused"))
    return run


@pytest.mark.parametrize(("seconds", "told"), [({1: 1.0, 2: 4.0}, True), ({1: 1.0, 2: 0.7}, False)])
def test_threads_that_wait_for_each_other_are_named(
    seconds: dict[int, float], told: bool, data: LevirKR, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reporter = _run(data), RecordingReporter()
    monkeypatch.setattr(threads, "_seconds", lambda run, state, number: seconds[number])
    earlier = torch.get_num_threads()
    try:
        warn_of_slow_threads(run, begin(run), reporter)
    finally:
        torch.set_num_threads(earlier)
    assert any("2 threads are 4.0 times slower than one" in w and "threads: 1" in w for w in reporter.warnings) == told


def test_what_is_timed_changes_nothing(data: LevirKR) -> None:
    run = _run(data, architecture="resnet18")
    earlier = torch.get_num_threads()
    state = begin(run)
    before = {key: value.clone() for key, value in state.student.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    try:
        torch.set_num_threads(2)
        warn_of_slow_threads(run, state, RecordingReporter())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(earlier)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in state.student.state_dict().items())
    assert all(parameter.grad is None for parameter in state.student.parameters())


def test_one_thread_is_not_timed(data: LevirKR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_seconds", lambda *_: pytest.fail("timed"))
    run = _run(data, threads=1)
    warn_of_slow_threads(run, begin(run), RecordingReporter())
