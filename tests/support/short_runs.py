"""Short pretraining runs on a few chips, for the tests of pretraining. Found through ``pythonpath`` in pyproject.toml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import reading
from geokr_core.pretraining.training.state import Run
from geokr_core.step.reporter import RecordingReporter


def short_config(**changes: Any) -> PretrainingConfig:
    """Six steps of eight chips, all of them logged, with a teacher, which has the most to go wrong."""
    small = {
        "preset": "averaged_teacher",
        "architecture": "squeezenet1_1",
        "steps": 6,
        "batch_size": 8,
        "threads": 1,
        "log_every": 1,
    }
    return PretrainingConfig(**({**small, "device": "cpu", "examples_every": 0} | changes))


def short_run(data: LevirKR, method: str = "geokr", **changes: Any) -> Run:
    """The run of a method with `short_config`."""
    variants = ("geokr",) if method == "geokr" else ("geokr", method)
    return list(runs_of(short_config(variants=variants, **changes), data, Path("unused")))[-1]


def inputs_at(run: Run, step: int = 1) -> Inputs:
    """What the networks of a run see at a step."""
    batch = reading(run)(step)
    return inputs_of(run, batch, slice(0, len(batch.rows)), run.normalisation())


def checkpointed_config(**changes: Any) -> PretrainingConfig:
    """Twelve steps of eight chips with a teacher, with a checkpoint every three."""
    small = {
        "preset": "averaged_teacher",
        "architecture": "squeezenet1_1",
        "steps": 12,
        "batch_size": 8,
        "threads": 1,
        "log_every": 4,
    }
    return PretrainingConfig(**({**small, "checkpoint_every": 3, "device": "cpu"} | changes))


def checkpointed_run(data: LevirKR, **changes: Any) -> Run:
    """The one run of `checkpointed_config`."""
    (run,) = runs_of(checkpointed_config(**changes), data, Path("unused"))
    return run


class Killed(Exception):
    """Stands for a process that dies."""


class Killer(RecordingReporter):
    """Dies at one step of a run."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if step >= self.step:
            raise Killed
