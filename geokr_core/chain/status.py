"""What the next run of a chain will do."""

from dataclasses import dataclass
from pathlib import Path

from geokr_core.chain.freshness import is_current
from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.errors import MissingInputError


@dataclass(frozen=True)
class StepStatus:
    """Where one step stands.

    Attributes:
        step: its name.
        state: ``up to date``, ``to do`` or ``waits: …``.
        output: where its output lies.
    """

    step: str
    state: str
    output: Path


def status(params: Params) -> list[StepStatus]:
    """Where every step of a parameter file stands, in order."""
    folders = Folders(params)
    found = []
    for step in steps_of(params):
        try:
            state = "up to date" if is_current(params, step) else "to do"
        except MissingInputError as error:
            state = f"waits: {error}"
        found.append(StepStatus(step.name, state, folders[step.name]))
    return found
