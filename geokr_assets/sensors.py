"""Sensors: what notices by itself.

Both are running from the start, because neither begins anything that a person has not begun before:

``scene_folder``
    Before the first inventory it makes a partition of each scene that is to be expected, so that *Materialize all* works on
    a fresh clone, and starts nothing. Once someone has materialised ``scenes``, it takes new files into the inventory, has
    their scenes cut and counted, and retires the partitions of scenes that are gone. It never trains.
``store``
    Starts no run at all. After ``geokr run``, ``dvc repro`` or ``dvc checkout`` it reports to Dagster what is there now, and
    what the checks found of it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import dagster as dg

from geokr_assets.checks import evaluation_of
from geokr_assets.executors import scenes_per_run
from geokr_assets.jobs import chips_and_proportions, take_inventory_again
from geokr_assets.materialise import DATA_VERSION_TAG, event_of
from geokr_assets.partitions import INVENTORY, PARTITIONED, SCENES, SCENES_NAME
from geokr_assets.resources import ParamsFile
from geokr_core.chain import versioning
from geokr_core.chain.contents import Contents
from geokr_core.chain.params import Params
from geokr_core.chain.record import read_record
from geokr_core.chain.run import Outcome
from geokr_core.chain.scene_by_scene import foreseen_scene_ids, is_made, scene_ids, scene_outcome
from geokr_core.chain.steps import STEPS, Folders, steps_of, upstream_of
from geokr_core.errors import GeoKRError
from geokr_core.step.digests import listing_digest
from geokr_core.step.found_files import find_files
from geokr_core.step.summary import Summary, read_summary

SETTLING_S = 5.0
"""A file written to more recently than this may still be on its way."""

RUN_KEY_TAG = "dagster/run_key"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
"""Tags by which Dagster knows which request a run came from, and which partitions it covers."""

UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dg.sensor(
    name="scene_folder",
    jobs=[take_inventory_again, chips_and_proportions],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="New files in the scene folder are taken into the inventory by a run of scenes, and then their scenes are cut "
    "and counted, many a run. Until someone has materialised scenes for the first time it starts nothing, but each scene that "
    "is to be expected has its partition, so that Materialize all works. Partitions of scenes that are gone or unusable are "
    "retired; Dagster keeps their history.",
)
def scene_folder(context: dg.SensorEvaluationContext, params_file: ParamsFile) -> dg.SensorResult | dg.SkipReason:
    """Watch the scene folder. A tick reads no file: it looks at names, sizes and times, and asks for runs."""
    params = params_file.load()
    folder, inventory = params.scenes.folder, Folders(params)[INVENTORY] / "inventory.parquet"
    if not inventory.exists():
        return _foresee(context, params)
    if not folder.is_dir():
        return dg.SkipReason(f"{folder} does not exist any more.")
    seen = _Seen(**json.loads(context.cursor)) if context.cursor else None
    if seen is not None and seen.awaited:
        return _welcome_scenes(context, params, seen)
    listing = listing_digest(folder)
    if seen is not None and listing == seen.listing:
        return dg.SkipReason(f"No file came, went or changed below {folder}.")
    if seen is None and _newest(folder) <= inventory.stat().st_mtime:
        return _adopt(context, params, listing)
    if time.time() - _newest(folder) < SETTLING_S:
        return dg.SkipReason(f"A file below {folder} was written to within the last {SETTLING_S:.0f} s.")
    if _under_way(context.instance, {INVENTORY, *upstream_of(params, STEPS[INVENTORY])}):
        return dg.SkipReason("A run that makes the world or the inventory is under way.")
    request = dg.RunRequest(run_key=f"scenes@{listing}", job_name=take_inventory_again.name)
    known = context.instance.get_dynamic_partitions(SCENES_NAME)
    return dg.SensorResult(run_requests=[request], cursor=_Seen(listing, request.run_key or "", len(known)).cursor)


def _foresee(context: dg.SensorEvaluationContext, params: Params) -> dg.SensorResult | dg.SkipReason:
    """Before the first inventory: a partition for every scene that it will find, as far as names tell."""
    try:
        foreseen = foreseen_scene_ids(params)
    except GeoKRError as error:
        return dg.SkipReason(f"There is no inventory yet, and nothing to take one of: {error}")
    known = set(context.instance.get_dynamic_partitions(SCENES_NAME))
    new = [scene_id for scene_id in foreseen if scene_id not in known]
    return dg.SensorResult(
        skip_reason=dg.SkipReason(
            f"There is no inventory yet; {len(foreseen)} scene(s) are expected. Choose Materialize all in the asset graph, or "
            "materialise scenes; then new files are noticed."
        ),
        dynamic_partitions_requests=[SCENES.build_add_request(new)] if new else [],
    )


@dataclass(frozen=True)
class _Seen:
    """What the sensor remembers.

    Attributes:
        listing: digest of the scene folder's listing.
        awaited: run key of the inventory that was asked for and has not been looked at, or empty.
        num_known: partitions there were when it was asked for; those after them are new.
    """

    listing: str
    awaited: str = ""
    num_known: int = 0

    @property
    def cursor(self) -> str:
        return json.dumps(asdict(self))


def _adopt(context: dg.SensorEvaluationContext, params: Params, listing: str) -> dg.SensorResult:
    """The first tick after someone took the inventory: every scene has its partition, and nothing is started."""
    return dg.SensorResult(
        skip_reason=dg.SkipReason("The inventory is newer than every file; from now on new files are noticed."),
        dynamic_partitions_requests=[*_welcomed(context, params), *_retired(context, params)],
        cursor=_Seen(listing).cursor,
    )


Partitions = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest


def _welcomed(context: dg.SensorEvaluationContext, params: Params) -> list[Partitions]:
    """A partition for every usable scene that has none."""
    known = set(context.instance.get_dynamic_partitions(SCENES_NAME))
    new = [scene_id for scene_id in scene_ids(params) if scene_id not in known]
    return [SCENES.build_add_request(new)] if new else []


def _retired(context: dg.SensorEvaluationContext, params: Params) -> list[Partitions]:
    """No partition for a scene that is gone or unusable: a backfill of all partitions could not make it."""
    usable = set(scene_ids(params))
    vanished = [key for key in context.instance.get_dynamic_partitions(SCENES_NAME) if key not in usable]
    if not vanished:
        return []
    context.log.warning(
        f"{len(vanished)} scene(s) are gone or unusable now and will not enter Levir-KR; their partitions are retired: "
        + ", ".join(vanished[:10])
        + (", …" if vanished[10:] else "")
    )
    return [SCENES.build_delete_request(vanished)]


def _welcome_scenes(
    context: dg.SensorEvaluationContext, params: Params, seen: _Seen
) -> dg.SensorResult | dg.SkipReason:
    """Once the inventory is taken again, have new scenes cut and counted, as many a run as a backfill would take."""
    runs = context.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: seen.awaited}), limit=1)
    if not runs or not runs[0].is_finished:
        return dg.SkipReason("The inventory is being taken again.")
    cursor = _Seen(seen.listing).cursor
    if not runs[0].is_success:
        text = f"Run {runs[0].run_id} of the inventory failed; mend what it says and materialise `scenes`."
        return dg.SensorResult(skip_reason=dg.SkipReason(text), cursor=cursor)
    known = context.instance.get_dynamic_partitions(SCENES_NAME)
    # A range of partitions goes by their order, which is that of their arrival: new ones lie together.
    new, size = list(known[seen.num_known :]), scenes_per_run()
    chunks = [new[k : k + size] for k in range(0, len(new), size)]
    # Scenes that the command line has cut already need no run.
    to_do = [
        chunk for chunk in chunks if not all(is_made(step, scene, params) for scene in chunk for step in PARTITIONED)
    ]
    return dg.SensorResult(
        run_requests=[_request(chunk, seen.listing) for chunk in to_do],
        skip_reason=None if to_do else dg.SkipReason("The inventory was taken again: no new usable scene to cut."),
        dynamic_partitions_requests=_retired(context, params),
        cursor=cursor,
    )


def _request(scenes: list[str], listing: str) -> dg.RunRequest:
    run_key = f"{scenes[0]}…{scenes[-1]}@{listing}"
    if len(scenes) == 1:
        return dg.RunRequest(run_key=run_key, job_name=chips_and_proportions.name, partition_key=scenes[0])
    tags = {RANGE_START_TAG: scenes[0], RANGE_END_TAG: scenes[-1]}
    return dg.RunRequest(run_key=run_key, job_name=chips_and_proportions.name, tags=tags)


def _newest(folder: Path) -> float:
    """When a file below the folder was last written to, in seconds since 1970.

    A copy may bring any modification time along, also one ahead of the clock. What counts then is when the file came, which
    the system notes; a time that lies ahead all the same, by another machine's clock, says nothing.
    """
    now, newest = time.time(), 0.0
    for name in find_files(folder, "**/*").files:
        with suppress(FileNotFoundError):
            stat = (folder / name).stat()
            newest = max([newest, *[t for t in (stat.st_mtime, stat.st_ctime) if t <= now][:1]])
    return newest


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
    name="store",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="After geokr run, dvc repro or dvc checkout outside Dagster, Dagster learns what lies in the store now, "
    "under the same data version. Starts no run.",
)
def store(context: dg.SensorEvaluationContext, params_file: ParamsFile) -> dg.SensorResult | dg.SkipReason:
    """Watch the records of the chain and ``dvc.lock``.

    The cursor holds, of each step, the versions that they name and the listing of its folder.
    """
    from geokr_core.chain.findings import recorded_findings  # loads pandas

    params = params_file.load()
    state = _state(params)
    if not state:
        return dg.SkipReason(f"No step has run yet below {params.store}.")
    seen = json.loads(context.cursor or "{}")
    if state == seen:
        return dg.SkipReason(f"Nothing was made or brought since below {params.store}.")
    if _under_way(context.instance, set(state)):
        return dg.SkipReason("A run is under way; it reports itself what it makes.")
    changed = [step for step, known in state.items() if known != seen.get(step)]
    versions = {step: _version(context, params, step, state[step]) for step in changed}
    events = [event for step, version in versions.items() if version for event in _news(context, params, step, version)]
    found = [
        evaluation_of(judged.check, judged.finding)
        for step in {event.asset_key.to_user_string(): None for event in events}
        for judged in recorded_findings(step, params, versions[step])
        if not judged.scene_id  # outside a run Dagster takes one evaluation a partition, and refuses the second
    ]
    known = context.instance.get_dynamic_partitions(SCENES_NAME)
    new = sorted({event.partition for event in events if event.partition} - set(known))
    return dg.SensorResult(
        asset_events=[*events, *found],
        skip_reason=None if events else dg.SkipReason("Dagster knows already what lies in the store."),
        dynamic_partitions_requests=[SCENES.build_add_request(new)] if new else [],
        cursor=json.dumps(state),
    )


def _state(params: Params) -> dict[str, list[str]]:
    """Steps that have run, in the order of the chain.

    Returns:
        Of each step the version that ``dvc.lock`` names, that of the chain's own record, and the digest of its folder's listing.
    """
    folders = Folders(params)
    locked = versioning.recorded_versions() if versioning.is_versioned(params.path) else {}
    found = {}
    for step in steps_of(params):
        record = read_record(folders.state(step.name))
        known = [locked.get(step.name, ""), "" if record is None else record.data_version]
        if any(known) and folders[step.name].is_dir():
            found[step.name] = [*known, listing_digest(folders[step.name])]
    return found


def _version(context: dg.SensorEvaluationContext, params: Params, step: str, known: list[str]) -> str:
    """The data version that lies in the store, if the chain or DVC has recorded it; else empty."""
    version = Contents(params.store).version(Folders(params)[step])
    if version in known[:2]:
        return version
    context.log.info(
        f"{step}: its folder holds {version}, which neither the chain nor dvc.lock recorded; `geokr status` and `dvc status` say more."
    )
    return ""


def _news(
    context: dg.SensorEvaluationContext, params: Params, step: str, version: str
) -> Iterator[dg.AssetMaterialization]:
    """Materialisations that Dagster has not heard of."""
    if step in PARTITIONED:
        outcomes = [
            (scene_id, scene_outcome(step, scene_id, params))
            for scene_id in scene_ids(params)
            if is_made(step, scene_id, params)
        ]
    else:
        outcomes = [("", _outcome(params, step, version))]
    for scene_id, outcome in outcomes:
        if outcome.data_version != _last_version(context.instance, step, scene_id):
            yield event_of(outcome, scene_id or None)


def _outcome(params: Params, step: str, version: str) -> Outcome:
    """What is known of a step's present output: its summary too, unless that describes another version."""
    folders = Folders(params)
    record = read_record(folders.state(step))
    if record is None or record.data_version != version:
        return Outcome(step, folders[step], version, Summary({}), was_current=False)
    return Outcome(step, folders[step], version, read_summary(folders.state(step)), False, record.mlflow_url)


def _last_version(instance: dg.DagsterInstance, step: str, scene_id: str) -> str | None:
    """Data version of the latest materialisation that Dagster knows."""
    records = dg.AssetRecordsFilter(dg.AssetKey(step), asset_partitions=[scene_id] if scene_id else None)
    found = instance.fetch_materializations(records, limit=1).records
    if not found or found[0].asset_materialization is None:
        return None
    return (found[0].asset_materialization.tags or {}).get(DATA_VERSION_TAG)
