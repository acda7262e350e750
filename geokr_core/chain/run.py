"""Running a step: skipped when current, tracked where it is worth a run, its outcome recorded beside its output."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geokr_core.chain import versioning
from geokr_core.chain.freshness import fingerprint, recorded
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS, Folders, Step, steps_of
from geokr_core.errors import ConfigError
from geokr_core.step.digests import data_version
from geokr_core.step.files import write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.section import as_plain
from geokr_core.step.summary import Summary, read_summary, write_summary


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
    params: Params, reporter: Reporter = LOG, *, steps: Sequence[str] | None = None, force: bool = False
) -> list[Outcome]:
    """Run the chain: every step in order, those that are up to date passed over, each recorded in DVC where DVC versions it.

    Args:
        params: the parameter file.
        reporter: who listens.
        steps: run these only, in this order; None: all that the parameter file asks for.
        force: run steps even if their output is current.

    Returns:
        What was done, step by step.

    Raises:
        ConfigError: there is no step of that name.
        MissingInputError: an input or a source folder is missing.
        GeoKRError: whatever a step itself refuses.
    """
    wanted = [step.name for step in steps_of(params)] if steps is None else list(steps)
    if unknown := [name for name in wanted if name not in STEPS]:
        raise ConfigError(f"{unknown[0]!r} is no step of the chain; the steps are {', '.join(STEPS)}.")
    outcomes = []
    for name in wanted:
        outcomes.append(run_step(name, params, reporter, force=force))
        # A value that differs from the file's makes an output that DVC must not take for the file's.
        if not outcomes[-1].was_current and not params.is_overridden:
            versioning.commit(name, params.path, reporter)
    return outcomes


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
        GeoKRError: whatever the step itself refuses.
    """
    step = STEPS[name]
    folders = Folders(params)
    out, state = folders[name], folders.state(name)
    mark = fingerprint(params, step)
    if not force and (current := recorded(folders, name, mark)) is not None:
        reporter.info(f"{name}: up to date ({out})")
        return Outcome(name, out, current["data_version"], read_summary(state), True, current["mlflow_url"])
    if int(os.environ.get("RANK", "0")) > 0:  # started by torchrun: the first process alone records what was done
        return _assist(step, params, folders, out)
    if force and step.scenes is not None:
        step.scenes.outputs(folders).forget_all()
    if force and step.forget is not None:
        step.forget(params, folders)
    started = time.monotonic()
    with _tracked(step, params, reporter, mark, tags or {}) as run:
        summary = step.run(params, folders, out, run.reporter)
        seconds = round(time.monotonic() - started, 1)
        summary = replace(summary, numbers={**summary.numbers, "seconds": seconds})
        version = data_version(out)
        run.finish(summary, version)
    write_summary(state, summary)
    write_json(state / "state.json", {"fingerprint": mark, "data_version": version, "mlflow_url": run.url})
    reporter.info(f"{name}: done in {seconds} s → {out}")
    return Outcome(name, out, version, summary, False, run.url)


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
    if not step.tracked:
        yield _Untracked(reporter)
        return
    from geokr_core.tracking.runs import FINGERPRINT_TAG
    from geokr_core.tracking.tracked_run import track_step

    parameters = {name: as_plain(getattr(params, name)) for name in step.sections}
    with track_step(step.name, parameters, {FINGERPRINT_TAG: mark, **tags}, reporter) as run:
        yield run
