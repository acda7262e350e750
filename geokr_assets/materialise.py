"""The bridge from Dagster to the chain: run one step through its one function, record it in DVC, say what came of it.

Assets and the job ``whole_chain`` both stand on `take`, so that a step does the same whoever started it. `HANDLING` says of
each step what Dagster does otherwise than for most; no other module of this package asks for a step's name. What a step
does is written in ``geokr_core``; what is shown of it, in ``metadata``.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError  # Dagster exports no name for it

from geokr_assets import metadata
from geokr_assets.executors import training_processes
from geokr_assets.partitions import INVENTORY, PARTITIONED, SCENES_NAME
from geokr_assets.reporter import LogReporter, in_run
from geokr_assets.resources import ParamsFile
from geokr_assets.step_process import REASON
from geokr_core.chain import scene_by_scene, versioning
from geokr_core.chain.params import Params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.chain.scene_by_scene import finish_scenes, is_complete, run_scene
from geokr_core.chain.steps import STEPS, Folders
from geokr_core.errors import GeoKRError, VersioningError
from geokr_core.step.tables import table_of
from geokr_core.step.transient import is_transient

if TYPE_CHECKING:
    from geokr_core.scenes.scene import Scene

    Materialised = dg.MaterializeResult[None]
else:
    Materialised = (
        dg.MaterializeResult
    )  # Dagster looks for this very class in annotations and knows no parameters of it

Context = dg.OpExecutionContext | dg.AssetExecutionContext

MAX_RETRIES = 3
"""Of a step that a network or a server which is away has stopped; one that refused its input is not tried again."""
RETRY_AFTER_S = 60.0

DATA_VERSION_TAG = "dagster/data_version"
"""Tag by which Dagster keeps the data version of a materialisation that was not made by an asset's own step."""


@dataclass(frozen=True)
class Job:
    """What a step is run with.

    Attributes:
        context: of the run.
        params_file: the parameter file.
        pipes: starts a process where the step runs in a separate one.
        step: name of the step.
        force: run even if the output is up to date.
    """

    context: Context
    params_file: ParamsFile
    pipes: dg.PipesSubprocessClient
    step: str
    force: bool = False


def take(
    context: Context, params_file: ParamsFile, pipes: dg.PipesSubprocessClient, step: str, *, force: bool = False
) -> Materialised:
    """Run a step for the whole archive, as its row of `HANDLING` says.

    Args:
        context: of the run.
        params_file: the parameter file.
        pipes: starts a process where the step runs in a separate one.
        step: name of the step.
        force: run even if the output is up to date.

    Raises:
        dg.Failure: the step refused; carries the step's own message, without a trace of our insides.
    """
    return handling_of(step).take(Job(context, params_file, pipes, step, force))


def run_tags(context: Context, step: str) -> dict[str, str]:
    """Tags that lead from an MLflow run back to the Dagster run."""
    return {"dagster/run_id": context.run.run_id, "dagster/asset_key": step}


def _plain(job: Job) -> Materialised:
    return result_of(_outcome(job))


def _outcome(job: Job) -> Outcome:
    """Run a step in this process and record its output in DVC."""
    context, file = job.context, job.params_file
    with teaching(), in_run(context.run.run_id, job.step):
        tags = run_tags(context, job.step)
        outcome = run_step(job.step, file.load(), LogReporter(context.log), force=job.force, tags=tags)
    # A commit takes seconds; a step that had nothing to do and that DVC knows already needs none.
    if not outcome.was_current or versioning.recorded_versions().get(job.step) != outcome.data_version:
        record_in_dvc(context.log, file.load(), job.step)
    return outcome


def _inventory(job: Job) -> Materialised:
    """Take the inventory and make a partition of every usable scene, so that a person can go on at once."""
    outcome, context = _outcome(job), job.context
    known = set(context.instance.get_dynamic_partitions(SCENES_NAME))
    new = [scene_id for scene_id in scene_by_scene.scene_ids(job.params_file.load()) if scene_id not in known]
    if new:
        context.instance.add_dynamic_partitions(SCENES_NAME, new)
        context.log.info(f"{len(new)} new scene(s): chips and proportions can be made of them now.")
    # The summary's own table lists the refused scenes too, with reasons cut off.
    outcome = replace(outcome, summary=replace(outcome.summary, table=()))
    return result_of(_with_quarantine(outcome, job.params_file.load()))


def _when_complete(job: Job) -> Materialised:
    """Run a step that reads all scenes, but not before every scene is there: a data set must not depend on who was faster."""
    with teaching():
        params = job.params_file.load()
        for step in PARTITIONED:
            if not is_complete(step, params):
                raise dg.Failure(description=_missing_scenes(params, step), allow_retries=False)
    return result_of(_with_quarantine(_outcome(job), params, *PARTITIONED))


def _in_own_process(job: Job) -> Materialised:
    """Run a step in a separate process, whose log, figures and checks come back through Pipes.

    Terminating the run interrupts the process, which then saves what it has.
    """
    context, file = job.context, job.params_file.file
    command = [sys.executable, "-m", "geokr_assets.step_process", "--params", str(file), "--step", job.step]
    command += [f"--set={override}" for override in job.params_file.overrides]
    with teaching():
        command += [f"--processes={training_processes() if STEPS[job.step].distributed else 1}"]
    try:
        invocation = job.pipes.run(
            context=context,
            command=[*command, "--force"] if job.force else command,
            extras={"tags": run_tags(context, job.step)},
        )
    except DagsterPipesExecutionError as error:
        # It could not even say why: killed, out of memory, a crash in a library.
        raise dg.Failure(
            description=f"The process of {job.step} ended without a word: {error}. The log above has its last lines; an "
            "exit code of -9 or 137 means that it was killed, mostly for want of memory.",
            allow_retries=False,
        ) from error
    for message in invocation.get_custom_messages():
        raise dg.Failure(description=str(message[REASON]), allow_retries=False)
    record_in_dvc(context.log, job.params_file.load(), job.step)
    return invocation.get_materialize_result()


def _with_quarantine(outcome: Outcome, params: Params, *later: str) -> Outcome:
    """What was quarantined and why, looked up anew: the output of a later step does not change with the inventory."""
    from geokr_core.scenes.quarantine import markdown, quarantined

    folders = Folders(params)
    rows = quarantined(folders[INVENTORY], *(folders[step] for step in later))
    summary = replace(outcome.summary, texts={"quarantine": markdown(rows), **outcome.summary.texts})
    return replace(outcome, summary=summary)


def take_scene(
    context: Context, params_file: ParamsFile, step: str, scene_id: str, usable: "Mapping[str, Scene]"
) -> Outcome:
    """Run a step for one scene; a scene that is up to date costs nothing.

    Raises:
        dg.Failure: as for `take`; not for a scene that is quarantined, which is an outcome like any other.
    """
    with teaching(), in_run(context.run.run_id, step):
        params = params_file.load()
        outcome = run_scene(step, scene_id, params, LogReporter(context.log), scenes=usable)
        show = handling_of(step).show
        if show is None or outcome.summary.warnings:
            return outcome
        pictures = {**show(params, usable[scene_id]), **outcome.summary.pictures}
        return replace(outcome, summary=replace(outcome.summary, pictures=pictures))


def gone(step: str, scene_id: str) -> dg.AssetMaterialization:
    """The outcome of a partition whose scene is gone or unusable now: there is nothing to make, and nothing failed."""
    why = f"Scene {scene_id} is no usable scene of the inventory any more: nothing was made. Its partition is retired soon."
    return dg.AssetMaterialization(step, partition=scene_id, metadata={"gone": why}, tags={DATA_VERSION_TAG: "gone"})


def _land_cover_beside(params: Params, scene: "Scene") -> Mapping[str, bytes]:
    """The scene with the land cover of its ground beside it: made where it is shown, and not kept."""
    from geokr_core.proportions.quicklook import picture_of

    index = Folders(params)["land_cover"]
    picture = picture_of(params.scenes.folder, scene, params.chips.bands, params.land_cover.folder, index)
    return {"scene and land cover": picture}


@dataclass(frozen=True)
class Handling:
    """What Dagster does with a step.

    Attributes:
        take: runs it for the whole archive.
        pool: the pool that it waits in, one step of a pool at a time: the GPU is not shared, and all that writes to DVC takes
            turns.
        show: makes pictures of a scene that are shown and not kept.
        table: the Parquet file of its output whose columns and rows are shown.
        columns_first: whether its columns are shown. Dagster puts them above all else, so they are not where one comes for scores or for
            pictures; ``docs/formats.md`` has them.
        follows: the switch (``automation``) by which it is made when what it reads was.
        fresh_for_days: after as many days it is looked at again, whatever has changed.
    """

    take: Callable[[Job], Materialised] = _plain
    pool: str | None = "dvc"
    show: "Callable[[Params, Scene], Mapping[str, bytes]] | None" = None
    table: str | None = None
    columns_first: bool = True
    follows: Literal["data_set_follows", "training_follows"] | None = None
    fresh_for_days: int | None = None


HANDLING: Mapping[str, Handling] = {
    INVENTORY: Handling(take=_inventory, table="inventory.parquet", fresh_for_days=90),
    "land_cover": Handling(table="tiles.parquet"),
    # Scenes are in no pool: a thousand of them may be cut at once. Commits to DVC take turns by a lock of the chain.
    **{step: Handling(pool=None) for step in PARTITIONED},
    "proportions": Handling(pool=None, show=_land_cover_beside),
    "levir_kr": Handling(take=_when_complete, table="catalogue.parquet", follows="data_set_follows"),
    "pretraining": Handling(take=_in_own_process, pool="gpu", follows="training_follows"),
    "backbone": Handling(follows="training_follows"),
    "embeddings": Handling(pool="gpu", follows="data_set_follows"),
    "map_audit": Handling(table="audit.parquet", columns_first=False, follows="data_set_follows"),
    "land_cover_shares": Handling(pool="gpu", follows="training_follows"),
    "evaluation": Handling(
        pool="gpu", table="results.parquet", columns_first=False, follows="training_follows", fresh_for_days=90
    ),
    "report": Handling(follows="training_follows"),
    "champion": Handling(follows="training_follows", fresh_for_days=180),
}
"""Steps that are handled otherwise than most."""


def handling_of(step: str) -> Handling:
    """What Dagster does with ``step``."""
    return HANDLING.get(step, Handling())


def judges_itself(step: str) -> bool:
    """Whether what runs the step also judges it: Dagster sees neither another process nor the scenes within a run."""
    return step in PARTITIONED or handling_of(step).take is _in_own_process


def record_if_complete(context: Context, params_file: ParamsFile, step: str) -> None:
    """Record a step that runs scene by scene once its last scene is there: DVC knows only whole folders."""
    with teaching():
        params = params_file.load()
        complete = finish_scenes(step, params, LogReporter(context.log))
    if complete:
        record_in_dvc(context.log, params, step)
    else:
        context.log.info(f"Other scenes of {step} are still to do; DVC records the step with the last one.")


def _missing_scenes(params: Params, step: str) -> str:
    scene_ids = scene_by_scene.scene_ids(params)
    missing = [scene_id for scene_id in scene_ids if not scene_by_scene.is_made(step, scene_id, params)]
    found = (
        f"{len(missing)} of {len(scene_ids)} scenes have no {step}: {', '.join(missing[:10])}{' …' if missing[10:] else ''}"
        if missing
        else f"the {step} of some of {len(scene_ids)} scenes are older than the scenes or the parameters"
    )
    return (
        f"This step needs every scene, but {found}. Open the job `{'_and_'.join(PARTITIONED)}` and backfill all partitions "
        "(those that are up to date take no time), or launch the job `whole_chain`."
    )


def record_in_dvc(log: logging.Logger, params: Params, step: str) -> None:
    """Commit a step's output to DVC, so that ``dvc status`` finds it clean.

    If DVC refuses (busy, or broken), the output is none the worse: the work continues, and the log says what to do.
    """
    try:
        versioning.commit(step, params, LogReporter(log))
    except VersioningError as error:
        log.warning(str(error))


def result_of(outcome: Outcome) -> Materialised:
    """What an asset returns."""
    return dg.MaterializeResult(
        metadata=_metadata_of(outcome),
        data_version=dg.DataVersion(outcome.data_version),
    )


def _metadata_of(outcome: Outcome) -> "Mapping[str, dg.MetadataValue[Any]]":
    """What is shown of an outcome; of the whole archive's also columns and rows of its main table."""
    handling = handling_of(outcome.step)
    table = handling.table
    columns = metadata.columns_of(outcome.folder / table, table_of(outcome.step, table)) if table else {}
    if not handling.columns_first:
        columns.pop("dagster/column_schema", None)
    return {**metadata.as_dagster(metadata.of_outcome(outcome)), **columns}


def reported(step: str, result: Materialised) -> dg.AssetMaterialization:
    """What an asset returns as an event, for a materialisation that no asset's own step made (a job of ops)."""
    tags = {} if result.data_version is None else {DATA_VERSION_TAG: result.data_version.value}
    return dg.AssetMaterialization(dg.AssetKey(step), metadata=result.metadata, tags=tags)


def event_of(outcome: Outcome, scene_id: str | None = None) -> dg.AssetMaterialization:
    """An outcome as an event, for a scene, and for what a sensor found."""
    return dg.AssetMaterialization(
        asset_key=outcome.step,
        partition=scene_id,
        metadata=_metadata_of(outcome),
        tags={DATA_VERSION_TAG: outcome.data_version},
    )


@contextmanager
def teaching() -> Iterator[None]:
    """Turn a refusal of the core into a `dg.Failure` with its message and without a trace of our insides.

    Raises:
        dg.RetryRequested: a network or a server is away; the step is tried again in a minute, `MAX_RETRIES` times.
        dg.Failure: the core refuses something, and would refuse it again.
    """
    try:
        yield
    except (GeoKRError, OSError) as error:
        if is_transient(error):
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=RETRY_AFTER_S) from error
        if isinstance(error, GeoKRError):
            # Trying again would refuse again: the message says what a person has to do.
            raise dg.Failure(description=str(error), allow_retries=False) from error
        raise
