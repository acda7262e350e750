"""Running a step: skipped when current, tracked where it is worth a run, its outcome recorded beside its output."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from geokr_core.chain import versioning
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import Judgement, judge, require_undamaged_inputs
from geokr_core.chain.outdated_inputs import warn_of_outdated_inputs
from geokr_core.chain.params import Params
from geokr_core.chain.record import Record, write_record
from geokr_core.chain.refusals import refuse_early
from geokr_core.chain.steps import STEPS, Folders, Step, source_folder, steps_of
from geokr_core.chain.turns import is_first, refuse_late, turn
from geokr_core.errors import ConfigError, DamagedOutputError, VersioningError
from geokr_core.rasters.checksums import memory_of
from geokr_core.step.digests import data_version, file_md5, folder_version
from geokr_core.step.extras import lacking, named_extras, require_extra
from geokr_core.step.files import sweep
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary, read_summary, write_summary

FOREIGN: Final = "foreign-files"
"""Folder of the store that gets what somebody put among the outputs, out of the way of the steps."""


@dataclass(frozen=True)
class Outcome:
    """What `run_step` did.

    Attributes:
        step: name of the step.
        folder: where its output lies.
        data_version: of the output; of the scene's part of it where one scene was run.
        summary: numbers, table and picture.
        was_current: whether nothing had to be done.
        mlflow_url: page or URI of its MLflow run, if it opened one.
    """

    step: str
    folder: Path
    data_version: str
    summary: Summary
    was_current: bool
    mlflow_url: str | None = None


def run(
    params: Params,
    reporter: Reporter = LOG,
    *,
    steps: Sequence[str] | None = None,
    until: str | None = None,
    force: bool = False,
) -> list[Outcome]:
    """Run the chain: every step in order, those that are up to date skipped, each recorded in DVC where DVC versions it.

    Args:
        params: the parameter file.
        reporter: who listens.
        steps: run these only, in this order; None: all that the parameter file asks for.
        until: of those, the last one to run, by its name or its command's; None: all.
        force: run steps even if their output is current.

    Returns:
        What was done, step by step.

    Raises:
        ConfigError: there is no step of that name, or ``until`` names one that would not be run.
        MissingInputError: an input or a source folder is missing.
        GeoKRError: whatever a step itself refuses.
    """
    wanted = [step.name for step in steps_of(params)] if steps is None else list(steps)
    if unknown := [name for name in wanted if name not in STEPS]:
        raise ConfigError(f"{unknown[0]!r} is no step of the chain; the steps are {', '.join(STEPS)}.")
    if until is not None:
        until = next((step.name for step in STEPS.values() if step.command == until.replace("_", "-")), until)
        if until not in wanted:
            raise ConfigError(f"until {until!r}: no such step would be run; choose one of {', '.join(wanted)}.")
        wanted = wanted[: wanted.index(until) + 1]
    if steps is None:
        refuse_early(params, wanted)
    in_dvc = _recorded_in_dvc(params, reporter)
    outcomes: list[Outcome] = []
    for number, name in enumerate(wanted, 1):
        with reporter.step(name, number, len(wanted)) as ended, _stop_explained(name, outcomes, reporter):
            outcome = run_step(name, params, reporter, force=force)
            if not outcome.was_current:
                if in_dvc:
                    _record_in_dvc([name], params, reporter)
                _record_findings(outcome, params, reporter)
            outcomes.append(outcome)
            ended("up to date" if outcome.was_current else f"done in {outcome.summary.numbers['seconds']} s")
    if in_dvc:
        known = versioning.recorded_versions()
        unknown = [
            found.step for found in outcomes if found.was_current and known.get(found.step) != found.data_version
        ]
        if unknown:  # the lock file was damaged, or is of another run
            reporter.info(f"dvc.lock does not know the present output of {', '.join(unknown)}; recording it")
            _record_in_dvc(unknown, params, reporter)
    return outcomes


@contextmanager
def _stop_explained(name: str, before: Sequence[Outcome], reporter: Reporter) -> Iterator[None]:
    """Say what is kept when a run is stopped by Ctrl-C or SIGTERM."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        finished = f"the output of {', '.join(outcome.step for outcome in before)}; " if before else ""
        reporter.warning(
            f"Stopped in {name}. Kept: {finished}of {name}: {STEPS[name].resumes}. Run the same command again to resume."
        )
        raise


def _recorded_in_dvc(params: Params, reporter: Reporter) -> bool:
    """Whether outputs are to be recorded in ``dvc.lock``; says once why not, where a user would expect it."""
    if "DVC_STAGE" in os.environ or not versioning.is_recorded(params):
        return False
    if lack := versioning.why_not_recorded():
        reporter.warning(f"Outputs are not recorded in dvc.lock: {lack}. The outputs themselves are complete.")
    return not lack


def _record_in_dvc(steps: Sequence[str], params: Params, reporter: Reporter) -> None:
    """Record outputs in ``dvc.lock``. Where DVC refuses they are none the worse: a warning says why."""
    try:
        versioning.commit(steps, params, reporter)
    except VersioningError as error:
        reporter.warning(str(error))


def _record_findings(outcome: Outcome, params: Params, reporter: Reporter) -> None:
    from geokr_core.chain.findings import record_findings

    if is_first():
        record_findings(outcome.step, params, outcome.data_version, reporter)


def run_step(
    name: str, params: Params, reporter: Reporter = LOG, *, force: bool = False, tags: Mapping[str, str] | None = None
) -> Outcome:
    """Run one step unless its output is current.

    Args:
        name: a key of `STEPS`.
        params: the parameter file.
        reporter: who listens.
        force: run even if the output is current.
        tags: more tags for the MLflow run, e.g. the Dagster run.

    Returns:
        What was done; the summary is also kept under ``<store>/.state/<name>``.

    Raises:
        MissingInputError: an input or a source folder is missing.
        BusyError: another process makes it, and this one is of several of ``torchrun``; one alone waits and looks again.
        GeoKRError: whatever the step itself refuses.
    """
    step, folders = STEPS[name], Folders(params)
    for extra in step.extras:
        require_extra(extra, f"`{name}`")
    with turn(params.store, name, reporter) as waited:
        for folder in (folders[name].parent, folders.state(name), memory_of(params.store, params.store).parent):
            sweep(folder)
        contents = Contents(params.store)
        warn_of_outdated_inputs(params, [name], reporter, contents)
        found = _judged(step, params, contents, reporter)
        if found.record is not None and found.is_current and not force:
            if waited:
                refuse_late(name)
            reporter.info(f"{name}: up to date ({folders[name]})")
            known = found.record
            return Outcome(
                name, folders[name], known.data_version, read_summary(folders.state(name)), True, known.mlflow_url
            )
        require_undamaged_inputs(params, step, contents)
        if not is_first():  # of torchrun's processes: the first one alone records what was done
            return _assist(step, params, folders, folders[name])
        _forget(step, params, found, reporter, force=force)
        return _make(step, params, found, contents, reporter, tags or {})


def _judged(step: Step, params: Params, contents: Contents, reporter: Reporter) -> Judgement:
    """What there is of a step, once files that it did not write are out of its way."""
    found = judge(params, step, contents)
    if not found.foreign or step.folder is not None:
        return found
    _move_away(params, step, found.foreign, reporter)
    contents.forget(Folders(params)[step.name])
    return judge(params, step, contents)


def _forget(step: Step, params: Params, found: Judgement, reporter: Reporter, *, force: bool) -> None:
    """Say which files are made again because they are damaged; forget what is known of earlier runs where all is made anew."""
    folders = Folders(params)
    by_scene = step.outputs(folders)
    if by_scene is None:  # the others say it scene by scene
        for file, fault in found.damaged.items():
            reporter.warning(f"{folders[step.name] / file}: {fault}; it is made again.")
    if force and by_scene is not None:
        by_scene.forget_all()
    if force and step.forget is not None:
        step.forget(params, folders)


def _make(
    step: Step, params: Params, found: Judgement, contents: Contents, reporter: Reporter, tags: Mapping[str, str]
) -> Outcome:
    """Make the output of a step and record it."""
    name, folders = step.name, Folders(params)
    out, state = folders[name], folders.state(name)
    started = time.monotonic()
    with _tracked(step, params, reporter, found.fingerprint, tags) as run:
        with named_extras():
            summary = step.run(params, folders, out, run.reporter)
        seconds = round(time.monotonic() - started, 1)
        summary = replace(summary, numbers={**summary.numbers, "seconds": seconds})
        contents.forget(out)
        record = _record(params, step, found, contents)
        run.finish(summary, record.data_version)
    shutil.rmtree(state, ignore_errors=True)
    write_summary(state, summary)
    kept = {path.name: file_md5(path) for path in sorted(state.iterdir())}
    sources = {source: contents.of_source(source_folder(params, source)) for source in step.sources}
    write_record(state, replace(record, summary=kept, mlflow_url=run.url), sources)
    reporter.info(f"{name}: done in {seconds} s → {out}")
    return Outcome(name, out, record.data_version, summary, False, run.url)


def _move_away(params: Params, step: Step, names: Sequence[str], reporter: Reporter) -> None:
    """Move what a step did not write out of its way: nothing of it is deleted."""
    out = Folders(params)[step.name]
    for name in names:
        place = params.store / FOREIGN / step.name / name
        while place.exists():
            place = place.with_name(f"{place.name}~")
        place.parent.mkdir(parents=True, exist_ok=True)
        (out / name).rename(place)
        reporter.warning(f"{out / name}: not written by `geokr {step.command}`; moved to {place}.")


def _record(params: Params, step: Step, found: Judgement, contents: Contents) -> Record:
    """What there is to record of the output just made.

    Raises:
        DamagedOutputError: a damaged file is there as it was; it is not recorded as if it were right.
    """
    out = Folders(params)[step.name]
    files = contents.of_output(out)
    if found.record is not None and found.record.fingerprint == found.fingerprint:
        for name in found.damaged:
            before = found.damaged_md5s.get(name)
            if before is not None and files.get(name) == before and before != found.record.files.get(name):
                raise DamagedOutputError(
                    f"{out / name}: not the bytes that were written, and the step did not make it again. "
                    f"Run `geokr {step.command} --force`, which makes all of it anew."
                )
    if step.folder is not None:
        files = {name: md5 for name, md5 in files.items() if name not in found.foreign}
    return Record(found.inputs, found.fingerprint, folder_version(contents.of_output(out)), files)


def _assist(step: Step, params: Params, folders: Folders, out: Path) -> Outcome:
    if not step.distributed:
        able = ", ".join(f"`geokr {other.command}`" for other in STEPS.values() if other.distributed)
        raise ConfigError(f"torchrun: `geokr {step.command}` runs in one process; only {able} can use several.")
    summary = step.run(params, folders, out, Reporter())
    return Outcome(step.name, out, data_version(out), summary, False)


@dataclass(frozen=True)
class _Untracked:
    """A step that opens no MLflow run."""

    reporter: Reporter
    url: str | None = None

    def finish(self, summary: Summary, data_version: str) -> None:
        """Nothing to log to."""


@contextmanager
def _tracked(step: Step, params: Params, reporter: Reporter, mark: str, tags: Mapping[str, str]) -> Iterator[Any]:
    lack = lacking("mlflow") if step.tracked else ""
    if lack:
        reporter.info(f"{step.name}: not recorded in MLflow, {lack}")
    if lack or not step.tracked:
        yield _Untracked(reporter)
        return
    from geokr_core.tracking.runs import FINGERPRINT_TAG, NOTE_TAG
    from geokr_core.tracking.tracked_run import track_step

    parameters = {name: as_plain(getattr(params, name)) for name in step.sections}
    name = step.name if step.subject is None else f"{step.name} · {step.subject(params)}"
    about = f"{step.purpose}\n\nIt writes {step.writes}. Command: `geokr {step.command}`."
    with track_step(step.name, parameters, {FINGERPRINT_TAG: mark, NOTE_TAG: about, **tags}, reporter, name) as run:
        yield run
