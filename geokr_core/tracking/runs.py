"""MLflow runs: begun, or resumed where a step that was killed or failed had begun one. What is recorded in them is elsewhere."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil
from mlflow.entities import Param, Run, RunTag
from mlflow.tracking import MlflowClient

from geokr_core.tracking.server import Connection

STEP_TAG: Final = "geokr/step"
FINGERPRINT_TAG: Final = "geokr/fingerprint"
"""Digest of everything that a step depends on: by it a step that is resumed finds the run it began."""
PARENT_KEY_TAG: Final = "geokr/parent_key"
"""Key of the opening of the run that this one is a part of."""
TRAINED_TAG: Final = "geokr/trained_fingerprint"
"""Fingerprint of the training whose result a run reuses."""
TRAINED_IN_TAG: Final = "geokr/trained_in"
"""The run of that training."""
NOTE_TAG: Final = "mlflow.note.content"
"""What MLflow shows as the description of a run or an experiment."""
KEEP_TAG: Final = "geokr/keep"
"""Set by people: the run stays, however old it is."""
RESUMED_WITH_TAG: Final = "geokr/resumed_with"
"""Parameters, as JSON, that whoever resumed a run gave otherwise than whoever began it: MLflow changes none. They decide no result, else the
fingerprint were another."""
RETIRED_TAG: Final = "geokr/retired"
"""When retention deleted the run, in seconds since 1970."""
MAX_PARAM_CHARS: Final = 500
PAGE_MODE: Final = "?workflowType=machine_learning"
"""Ends the address of a page: without it MLflow 3 opens in its mode for language models, where runs are hidden."""

PARENT_TAG: Final = "mlflow.parentRunId"

_PROCESS_TAG: Final = "geokr/process"
"""Host, process id and its start: whether the process of a run that says it is running is alive."""
_OPENINGS_TAG: Final = "geokr/openings"
"""Keys of all openings of a run, the newest last, with a blank between them: a run that was resumed has several."""
_ERROR_TAG: Final = "geokr/error"
_SIGN_OF_LIFE: Final = "system/cpu_utilization_percentage"
_SILENCE_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Opening:
    """What is wanted of a run when it is opened; everything JSON can hold.

    Attributes:
        key: unique: who opens twice by the same key gets the same run.
        step: the step.
        tags: of the run. With `PARENT_KEY_TAG` among them, the run lies below the run that was opened by that key; with
            `TRAINED_TAG`, it is linked to the run that trained what it reuses.
        parameters: scalars become parameters, the whole becomes ``params.json``.
        start_ms: when the step began, Unix time.
        name: of the run; empty: the step's.
    """

    key: str
    step: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]
    start_ms: int
    name: str = ""


@dataclass(frozen=True)
class Opened:
    """A run that is open.

    Attributes:
        run_id: MLflow's id.
        attempt: how many times it was opened.
    """

    run_id: str
    attempt: int


def process_tags() -> Mapping[str, str]:
    """The tag by which others see whether the process that runs a step is alive."""
    return {_PROCESS_TAG: _process_mark(os.getpid())}


def run_of_key(connection: Connection, key: str) -> Run | None:
    """The run that was opened by a key, if there is one."""
    found = connection.client.search_runs([connection.experiment_id], f"tags.`{_OPENINGS_TAG}` LIKE '%{key}%'")
    return found[0] if found else None


def _openings(run: Run) -> list[str]:
    return run.data.tags.get(_OPENINGS_TAG, "").split()


def open_run(connection: Connection, opening: Opening, known: Run | None = None) -> Opened:
    """Begin a run, or resume the newest of the same step and fingerprint that did not end well and that no process runs.

    Args:
        connection: to the server.
        opening: what is wanted.
        known: the run of the opening's key, where the server was lost before it had heard all of this.
    """
    client = connection.client
    keys = [opening.key]
    unfinished = None if known else _unfinished(connection, opening.tags)
    if known is not None:
        run = known
        keys = _openings(run)
        _delete_tag(client, run, _ERROR_TAG)
    elif unfinished is not None:
        run = unfinished
        keys = [*_openings(run), opening.key]
        _reopen(client, run, {**opening.tags, _OPENINGS_TAG: " ".join(keys)})
    else:
        tags = {**opening.tags, _OPENINGS_TAG: opening.key}
        run = client.create_run(connection.experiment_id, opening.start_ms, tags, opening.name or opening.step)
        _drop_twins(client, run, opening.key)
    _relate(connection, run.info.run_id, opening)
    _log_parameters(client, run, opening.parameters)
    return Opened(run.info.run_id, len(keys))


def _relate(connection: Connection, run_id: str, opening: Opening) -> None:
    """Put a run below its parent, its children below it, and a link to the run that trained what it reuses.

    Parent and child may be delivered in any order when the server was away: whichever comes second finds the other.
    """
    client, tags = connection.client, opening.tags
    above = tags.get(PARENT_KEY_TAG)
    parent = run_of_key(connection, above) if above else None
    if parent is not None:
        _put_below(client, run_id, parent.info.run_id)
    for child in client.search_runs([connection.experiment_id], f"tags.`{PARENT_KEY_TAG}` = '{opening.key}'"):
        _put_below(client, child.info.run_id, run_id)
    if TRAINED_TAG not in tags:
        return
    same = f"tags.`{FINGERPRINT_TAG}` = '{tags[TRAINED_TAG]}' AND attributes.status = 'FINISHED'"
    found = client.search_runs([connection.experiment_id], same, max_results=1, order_by=["start_time DESC"])
    for run in found:
        link = f"#/experiments/{connection.experiment_id}/runs/{run.info.run_id}{PAGE_MODE}"
        client.set_tag(run_id, TRAINED_IN_TAG, run.info.run_id)
        note = f"Finished before and kept: the curves are in [the run that trained it]({link})."
        client.set_tag(run_id, NOTE_TAG, "\n\n".join(filter(None, [note, tags.get(NOTE_TAG)])))


def _put_below(client: MlflowClient, run_id: str, parent_id: str) -> None:
    client.set_tag(run_id, PARENT_TAG, parent_id)
    _delete_tag(client, client.get_run(run_id), PARENT_KEY_TAG)  # only needed until the parent is found


def end_run(client: MlflowClient, run_id: str, key: str, status: str, end_ms: int, error: str | None) -> None:
    """Record how a run ended, unless it was opened anew since.

    Args:
        client: of the server.
        run_id: MLflow's id.
        key: of the opening that ends.
        status: MLflow's word.
        end_ms: when it ended, Unix time.
        error: what it ended in, if it did not end well.
    """
    run = client.get_run(run_id)
    if _openings(run)[-1:] not in ([], [key]):
        return
    _drop_twins(client, run, key)
    if error is not None:
        client.set_tag(run_id, _ERROR_TAG, error)
    client.set_terminated(run_id, status, end_time=end_ms)
    _delete_tag(client, run, _PROCESS_TAG)  # only asked of runs that say they are running


def _drop_twins(client: MlflowClient, run: Run, key: str) -> None:
    """Delete what else the opening of a run began.

    MLflow's client repeats a request whose answer is late or lost, also where the server had begun a run by then, or does so after it.
    """
    for twin in client.search_runs([run.info.experiment_id], f"tags.`{_OPENINGS_TAG}` = '{key}'"):
        if twin.info.run_id != run.info.run_id and not twin.data.metrics and not twin.data.params:
            client.delete_run(twin.info.run_id)


def _unfinished(connection: Connection, tags: Mapping[str, str]) -> Run | None:
    """The newest run of the same step and fingerprint that did not end well and that no process runs any more."""
    mark = tags.get(FINGERPRINT_TAG)
    if mark is None:
        return None
    same = f"tags.`{FINGERPRINT_TAG}` = '{mark}' AND tags.`geokr/step` = '{tags['geokr/step']}'"
    found = connection.client.search_runs(
        [connection.experiment_id], f"{same} AND attributes.status != 'FINISHED'", order_by=["start_time DESC"]
    )
    return next((run for run in found if run.info.status != "RUNNING" or _is_left(connection.client, run)), None)


def left_open(client: MlflowClient, experiment_id: str) -> list[str]:
    """Names of runs that say they are running, of which no process is alive any more."""
    running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    return [f"{run.info.run_name} ({run.info.run_id})" for run in running if _is_left(client, run)]


def _process_mark(pid: int) -> str:
    return f"{platform.node()}/{pid}/{psutil.Process(pid).create_time():.2f}"


def _is_left(client: MlflowClient, run: Run) -> bool:
    """Whether the process of a run that says it is running is gone.

    On this machine one can look; one of another machine is taken for gone when its system metrics have long stopped.
    """
    mark = run.data.tags.get(_PROCESS_TAG, "")
    host, _, process = mark.partition("/")
    if host != platform.node():
        signs = client.get_metric_history(run.info.run_id, _SIGN_OF_LIFE)
        last_ms = max([run.info.start_time, *(sign.timestamp for sign in signs)])
        return bool(time.time() - last_ms / 1000 > _SILENCE_SECONDS)
    try:
        return _process_mark(int(process.partition("/")[0])) != mark
    except psutil.NoSuchProcess:
        return True


def _reopen(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    run_id = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    _delete_tag(client, run, _ERROR_TAG)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _delete_tag(client: MlflowClient, run: Run, tag: str) -> None:
    if tag in run.data.tags:
        client.delete_tag(run.info.run_id, tag)


def _log_parameters(client: MlflowClient, run: Run, parameters: Mapping[str, Any]) -> None:
    """Record the parameters of an opening; those that the run has with another value are kept, and told in a tag."""
    run_id, told = run.info.run_id, run.data.params
    flat = {key[:250]: value for key, value in _flattened(parameters)}
    new = [Param(key, value) for key, value in flat.items() if key not in told]
    for start in range(0, len(new), 100):  # MLflow's limit a request
        client.log_batch(run_id, params=new[start : start + 100])
    changed = {key: value for key, value in flat.items() if told.get(key, value) != value}
    if changed:
        client.set_tag(run_id, RESUMED_WITH_TAG, json.dumps(changed))
    client.log_dict(run_id, dict(parameters), "params.json")


def _flattened(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", text[:MAX_PARAM_CHARS]
