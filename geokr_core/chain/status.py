"""What the next run of a chain will do and why, and whether the files of a store are what was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import changes, differences, judge, own_changes, require_inputs
from geokr_core.chain.other_stores import missing_stores
from geokr_core.chain.params import Params
from geokr_core.chain.record import STATE_FILE, read_record
from geokr_core.chain.steps import Folders, Step, steps_of, upstream_of
from geokr_core.errors import MissingInputError

State = Literal["up to date", "to do", "follows", "blocked"]


@dataclass(frozen=True)
class StepStatus:
    """Where one step stands.

    Attributes:
        step: its name.
        command: what the command line calls it.
        state: ``up to date``; ``to do``; ``follows``: it runs if a step that it reads comes out otherwise than before;
            ``blocked``: raw data that it needs are missing.
        reasons: why, the most telling first.
        output: where its output lies.
        causes: of a step that follows, those steps to do on whose outputs it depends, itself or through others.
    """

    step: str
    command: str
    state: State
    reasons: tuple[str, ...]
    output: Path
    causes: tuple[str, ...] = ()


def status(params: Params, *, deep: bool = False) -> list[StepStatus]:
    """What the next run will do, step by step. Where nothing has been made yet, nothing is written and no source is read.

    Args:
        params: the parameter file.
        deep: read every byte of sources and outputs, instead of believing files whose size, inode and times have not
            changed since they were read.
    """
    contents, folders = Contents(params.store, deep=deep, only_looks=True), Folders(params)
    found: dict[str, StepStatus] = {}
    for step in steps_of(params):
        state, reasons = _standing(params, step, contents, found)
        causes = _causes(upstream_of(params, step), found) if state == "follows" else ()
        if causes:
            reasons = (f"only if {' or '.join(causes)} comes out otherwise than it was",)
        found[step.name] = StepStatus(step.name, step.command, state, reasons, folders[step.name], causes)
    return list(found.values())


def _causes(before: Sequence[str], found: Mapping[str, StepStatus]) -> tuple[str, ...]:
    """The steps to do that the steps before are, or that these follow from; in the order of the chain."""
    causes = {
        cause for name in before for cause in found[name].causes or ((name,) if found[name].state == "to do" else ())
    }
    return tuple(name for name in found if name in causes)


def _standing(
    params: Params, step: Step, contents: Contents, before: Mapping[str, StepStatus]
) -> tuple[State, tuple[str, ...]]:
    waits = [name for name in upstream_of(params, step) if before[name].state != "up to date"]
    blocked = [name for name in waits if before[name].state == "blocked"]
    if blocked:
        return "blocked", (f"by {', '.join(blocked)}",)
    if missing := missing_stores(params, step):
        return "blocked", missing
    if waits:
        return _standing_behind(params, step, contents, waits)
    try:
        if read_record(Folders(params).state(step.name)) is None:  # whatever its sources hold: they need not be read
            require_inputs(params, step)
            return "to do", tuple(changes(params, step, {}, None, contents))
        reasons = judge(params, step, contents).reasons
    except MissingInputError as error:
        return "blocked", (str(error),)
    return ("to do", reasons) if reasons else ("up to date", ())


def _standing_behind(params: Params, step: Step, contents: Contents, waits: list[str]) -> tuple[State, tuple[str, ...]]:
    """A step below one that will run: what it reads is not known yet, what else it depends on is."""
    folders = Folders(params)
    record = read_record(folders.state(step.name))
    behind = f"after {', '.join(waits)}"
    if record is None or not folders[step.name].is_dir():
        return "to do", (behind,)
    told = [*own_changes(params, step, record, contents)]
    told += [f"{name}: {fault}" for name, fault in differences(params, step, record, contents).damaged.items()]
    return ("to do", (*told, behind)) if told else ("follows", (behind,))


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        step: the step that wrote it.
        path: the file.
        fault: what is wrong with it.
        remedy: what to do about it.
    """

    step: str
    path: Path
    fault: str
    remedy: str


def verify(params: Params, *, deep: bool = False) -> list[Damage]:
    """Compare every file of a store with what was recorded of it; nothing is changed.

    Args:
        params: the parameter file.
        deep: read every byte, instead of believing files whose size, inode and times have not changed since they were
            read.

    Returns:
        Each damaged file, and each that no step wrote; steps that have not run have none.
    """
    contents, folders = Contents(params.store, deep=deep, only_looks=True), Folders(params)
    found = []
    for step in steps_of(params):
        remedy = f"`geokr {step.command}` makes it again"
        state, out = folders.state(step.name), folders[step.name]
        record = read_record(state)
        if record is None and (state / STATE_FILE).exists():
            found.append(Damage(step.name, state / STATE_FILE, "no record that can be read", remedy))
        seen = differences(params, step, record, contents)
        found += [Damage(step.name, out / name, fault, remedy) for name, fault in seen.damaged.items()]
        if step.folder is None:
            elsewhere = f"`geokr {step.command}` moves it out of the way"
            found += [Damage(step.name, out / name, "not written by this step", elsewhere) for name in seen.foreign]
    return found
