"""MLflow runs that are no longer needed: which these are, and their way out, in two stages.

First a run is deleted as MLflow's interface does it: it is hidden and can be restored. Files of runs that this module deleted
go some weeks later. What the database says of them stays; ``mlflow gc`` would remove that, too, but with it everything else that anyone
deleted.
"""

import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Final

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from geokr_core.tracking.runs import KEEP_TAG, PARENT_TAG, RETIRED_TAG, STEP_TAG, TRAINED_IN_TAG
from geokr_core.tracking.server import EXPERIMENT, refusals, tracking_uri

MODEL_TAG: Final = "geokr/retired_model"
"""Of a run: the logged model of a version that was retired, whose files go with those of the run."""

_DAY_S: Final = 86_400.0
_PAGE: Final = 500


@dataclass(frozen=True)
class OldRun:
    """A run that can go.

    Attributes:
        run_id: MLflow's id.
        name: for people.
        age_days: since it began, or since it was deleted.
        reason: why it can go.
        is_deleted: whether it is deleted already, and its files can go.
    """

    run_id: str
    name: str
    age_days: float
    reason: str
    is_deleted: bool


def old_runs(protected: Set[str], days: int, keep: int, restorable_days: int) -> list[OldRun]:
    """Runs that can go.

    Kept are: runs that are going on, runs of the last ``days``, the newest ``keep`` of each step that ended well, those with the tag
    `KEEP_TAG`, those that ``protected`` names, and whatever such a run links to: its parent, the parts below it, the run that trained what it reuses.

    Args:
        protected: ids of runs that must stay.
        days: age from which a run can go.
        keep: of each step.
        restorable_days: since it was deleted, until its files can go.

    Raises:
        RegistryError: MLflow cannot be asked.
    """
    with refusals("Looking for old runs"):
        client = MlflowClient(tracking_uri=tracking_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs = list(_all_runs(client, experiment.experiment_id, ViewType.ACTIVE_ONLY))
        kept = _with_links(runs, _kept(runs, days, keep) | protected)
        gone = list(_all_runs(client, experiment.experiment_id, ViewType.DELETED_ONLY))
    found = [_old(run) for run in runs if run.info.run_id not in kept]
    return found + [old for run in gone if (old := _deleted(run, protected, restorable_days)) is not None]


def retire(run: OldRun) -> None:
    """Delete a run so that it can be restored; of one that was deleted long ago, its files.

    Raises:
        RegistryError: MLflow refuses.
    """
    with refusals(f"Deleting the run {run.run_id}"):
        client = MlflowClient(tracking_uri=tracking_uri())
        if not run.is_deleted:
            client.set_tag(run.run_id, RETIRED_TAG, str(int(time.time())))  # never in the future
            client.delete_run(run.run_id)
            return
        found = client.get_run(run.run_id)
        _delete_files(found.info.artifact_uri, run.run_id)
        if model := found.data.tags.get(MODEL_TAG):
            _delete_model(client, model)


def retire_model(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Note that the files of a logged model go with those of a run; where that run is gone, they go now."""
    try:
        client.set_tag(run_id, MODEL_TAG, model_id)
    except MlflowException:
        _delete_model(client, model_id)


def _delete_model(client: MlflowClient, model_id: str) -> None:
    try:
        model = client.get_logged_model(model_id)
    except MlflowException:  # deleted by someone else
        return
    _delete_files(model.artifact_location, model_id)
    client.delete_logged_model(model_id)


def _delete_files(uri: str | None, owner: str) -> None:
    """Delete what lies at the place of a run or a logged model, and at no other."""
    if uri and owner in uri:
        get_artifact_repository(uri).delete_artifacts()  # type: ignore[no-untyped-call]


def _all_runs(client: MlflowClient, experiment_id: str, view: int) -> Iterator[Run]:
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment_id], "", view, _PAGE, ["start_time DESC"], token or None)
        yield from page
        token = page.token or None


def _kept(runs: list[Run], days: int, keep: int) -> set[str]:
    """Runs that stay for what they are themselves; given newest first."""
    newest: dict[str, int] = {}
    kept = set()
    for run in runs:
        step = run.data.tags.get(STEP_TAG)
        ended_well = run.info.status == "FINISHED"
        if ended_well and step is not None:
            newest[step] = newest.get(step, 0) + 1
        is_ours = step is not None and KEEP_TAG not in run.data.tags
        is_new = _age_days(run) < days or run.info.status in ("RUNNING", "SCHEDULED")
        if not is_ours or is_new or (ended_well and newest[str(step)] <= keep):
            kept.add(run.info.run_id)
    return kept


def _with_links(runs: list[Run], kept: Set[str]) -> set[str]:
    """The same with parents, the parts below them, and trainings that are reused."""
    found = set(kept)
    while True:
        linked = set()
        for run in runs:
            tags = run.data.tags
            if run.info.run_id in found:
                linked |= {tags[tag] for tag in (PARENT_TAG, TRAINED_IN_TAG) if tag in tags}
            elif tags.get(PARENT_TAG) in found:
                linked.add(run.info.run_id)
        if linked <= found:
            return found
        found |= linked


def _age_days(run: Run) -> float:
    return float(time.time() - run.info.start_time / 1000) / _DAY_S


def _old(run: Run) -> OldRun:
    ended = run.info.status.lower()
    return OldRun(
        run.info.run_id, str(run.info.run_name), _age_days(run), f"{ended} and linked to by nothing that is kept", False
    )


def _deleted(run: Run, protected: Set[str], restorable_days: int) -> OldRun | None:
    since = run.data.tags.get(RETIRED_TAG)
    if since is None or run.info.run_id in protected:  # someone else deleted it: not ours to decide
        return None
    age_days = (time.time() - float(since)) / _DAY_S
    if age_days < restorable_days or not _has_files(run):
        return None
    return OldRun(run.info.run_id, str(run.info.run_name), age_days, "deleted; its files go now", True)


def _has_files(run: Run) -> bool:
    uri = run.info.artifact_uri
    return bool(uri) and bool(get_artifact_repository(uri).list_artifacts())
