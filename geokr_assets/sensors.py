"""Sensors: what notices by itself.

Both are running from the start, because neither begins anything that a person has not begun before:

``scene_folder``
    Waits until somebody has materialised ``scenes``. From then on it takes new files into the inventory and has their
    scenes cut and counted. It never trains.
``dvc_lock``
    Starts no run at all. After ``dvc repro``, ``dvc checkout`` or ``geokr run`` it tells Dagster what is there now.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from geokr_assets.jobs import align_scene
from geokr_assets.materialise import DATA_VERSION_TAG, event_of, is_missing, record_in_dvc
from geokr_assets.partitions import PARTITIONED, SCENES, SCENES_NAME
from geokr_assets.reporter import LogReporter
from geokr_assets.resources import ParamsFile
from geokr_core import chain, versioning
from geokr_core.chain import Folders, Outcome
from geokr_core.config import Params
from geokr_core.files import data_version, listing_digest, read_json
from geokr_core.summary import Summary, read_summary

SETTLING_S = 5.0
"""A file written to more recently than this may still be on its way."""

UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dg.sensor(
    name="scene_folder",
    job=align_scene,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="New files in the scene folder are taken into the inventory, and their scenes are cut and counted. Waits "
    "until somebody has materialised `scenes` for the first time. Vanished scenes keep their partition and their history.",
)
def scene_folder(context: dg.SensorEvaluationContext, params_file: ParamsFile) -> dg.SensorResult | dg.SkipReason:
    """Watch the scene folder; the cursor is the digest of its listing."""
    params = params_file.load()
    folder = params.scenes.folder
    if not folder.is_dir():
        return dg.SkipReason(f"{folder} does not exist yet.")
    if not (Folders(params)["scenes"] / "inventory.parquet").exists():
        return dg.SkipReason("Nobody has taken the inventory yet: materialise `scenes`, then new files are noticed.")
    listing = listing_digest(folder)
    if listing == context.cursor:
        return dg.SkipReason(f"No file came, went or changed below {folder}.")
    if _is_settling(folder):
        return dg.SkipReason(f"A file below {folder} was written to within the last {SETTLING_S:.0f} s.")
    if _under_way(context.instance, {"world", "scenes"}):
        return dg.SkipReason("A run that makes the world or the inventory is under way.")
    return _welcome_scenes(context, params, listing, params_file.file)


def _welcome_scenes(context: dg.SensorEvaluationContext, params: Params, listing: str, file: Path) -> dg.SensorResult:
    outcome = chain.run_step("scenes", params, LogReporter(context.log))
    record_in_dvc(context.log, file, "scenes")
    scene_ids = chain.scene_ids(params)
    known = set(context.instance.get_dynamic_partitions(SCENES_NAME))
    new = [scene_id for scene_id in scene_ids if scene_id not in known]
    if vanished := sorted(known - set(scene_ids)):
        context.log.warning(
            f"{len(vanished)} scene(s) are gone or unusable now and will not enter Levir-KR; their partitions stay: "
            + ", ".join(vanished[:10])
        )
    # Scenes that the command line has cut already need a partition, but no run.
    to_do = [scene_id for scene_id in new if any(is_missing(params, step, scene_id) for step in PARTITIONED)]
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"{scene_id}@{listing}", partition_key=scene_id) for scene_id in to_do],
        skip_reason=None if to_do else dg.SkipReason("The inventory was looked at again: no new usable scene to cut."),
        dynamic_partitions_requests=[SCENES.build_add_request(new)] if new else [],
        asset_events=[] if outcome.was_current else [event_of(outcome)],
        cursor=listing,
    )


def _is_settling(folder: Path) -> bool:
    newest = max((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=0.0)
    return time.time() - newest < SETTLING_S


def _under_way(instance: dg.DagsterInstance, steps: set[str]) -> bool:
    """Whether a run that makes one of ``steps`` is under way."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=UNDER_WAY))
    return any(
        run.job_name == "whole_chain"
        or (
            run.asset_selection is not None
            and not steps.isdisjoint(key.to_user_string() for key in run.asset_selection)
        )
        for run in runs
    )


@dg.sensor(
    name="dvc_lock",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="After `dvc repro`, `dvc checkout` or `geokr run` outside Dagster, Dagster learns what lies in the store "
    "now, under the same data version. Starts no run.",
)
def dvc_lock(context: dg.SensorEvaluationContext, params_file: ParamsFile) -> dg.SensorResult | dg.SkipReason:
    """Watch ``dvc.lock``; the cursor holds, of each step, the version recorded and the listing of its folder."""
    if not versioning.is_versioned(params_file.file):
        return dg.SkipReason(
            f"DVC does not version what {params_file.file} makes (it versions what `params.yaml` makes)."
        )
    params = params_file.load()
    state = _state(params)
    seen = json.loads(context.cursor or "{}")
    if state == seen:
        return dg.SkipReason("dvc.lock and the store have not changed.")
    if _under_way(context.instance, set(state)):
        return dg.SkipReason("A run is under way; it reports itself what it makes.")
    changed = [step for step in state if state[step] != seen.get(step)]
    events = [event for step in changed for event in _news(context, params, step, state[step][0])]
    known = context.instance.get_dynamic_partitions(SCENES_NAME)
    new = sorted({event.partition for event in events if event.partition} - set(known))
    return dg.SensorResult(
        asset_events=events,
        skip_reason=None if events else dg.SkipReason("Dagster knows already what lies in the store."),
        dynamic_partitions_requests=[SCENES.build_add_request(new)] if new else [],
        cursor=json.dumps(state),
    )


def _state(params: Params) -> dict[str, list[str]]:
    """Steps that DVC has recorded, in the order of the chain: recorded version, and digest of the folder's listing."""
    recorded, folders = versioning.recorded_versions(), Folders(params)
    return {
        step.name: [recorded[step.name], listing_digest(folders[step.name])]
        for step in chain.steps_of(params)
        if step.name in recorded and folders[step.name].is_dir()
    }


def _news(
    context: dg.SensorEvaluationContext, params: Params, step: str, version: str
) -> Iterator[dg.AssetMaterialization]:
    """Materialisations that Dagster has not heard of, of a step whose output is what DVC recorded."""
    folders = Folders(params)
    if data_version(folders[step]) != version:
        context.log.warning(f"{step}: dvc.lock names {version}, but other data lie there; `dvc status` says more.")
        return
    if step in PARTITIONED:
        outcomes = [
            (scene_id, chain.scene_outcome(step, scene_id, params))
            for scene_id in chain.scene_ids(params)
            if not is_missing(params, step, scene_id)
        ]
    else:
        outcomes = [("", _outcome(params, step, version))]
    for scene_id, outcome in outcomes:
        if outcome.data_version != _last_version(context.instance, step, scene_id):
            yield event_of(outcome, scene_id or None)


def _outcome(params: Params, step: str, version: str) -> Outcome:
    """What is known of a step's present output: its summary too, unless that describes another version."""
    folders = Folders(params)
    record = folders.state(step) / "state.json"
    state = read_json(record) if record.exists() else {}
    if state.get("data_version") != version:
        return Outcome(step, folders[step], version, Summary({}), was_current=False)
    return Outcome(step, folders[step], version, read_summary(folders.state(step)), False, state.get("mlflow_url"))


def _last_version(instance: dg.DagsterInstance, step: str, scene_id: str) -> str | None:
    """Data version of the latest materialisation that Dagster knows."""
    records = dg.AssetRecordsFilter(dg.AssetKey(step), asset_partitions=[scene_id] if scene_id else None)
    found = instance.fetch_materializations(records, limit=1).records
    if not found or found[0].asset_materialization is None:
        return None
    return (found[0].asset_materialization.tags or {}).get(DATA_VERSION_TAG)
