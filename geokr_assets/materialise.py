"""The bridge from Dagster to the chain: run one step through its one function, record it in DVC, say what came of it.

Assets and the job ``whole_chain`` both stand on this module, so that a step does the same whoever started it. What a
step does is written in ``geokr_core``; what is shown of it, in ``metadata``.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from geokr_assets import metadata
from geokr_assets.partitions import PARTITIONED, SCENES_NAME
from geokr_assets.reporter import LogReporter
from geokr_assets.resources import ParamsFile
from geokr_core.chain import scene_by_scene, versioning
from geokr_core.chain.params import Params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.chain.scene_by_scene import finish_scenes, is_complete, run_scene
from geokr_core.chain.steps import Folders
from geokr_core.errors import GeoKRError, VersioningError

if TYPE_CHECKING:
    from geokr_core.scenes.scene import Scene

    Materialised = dg.MaterializeResult[None]
else:
    Materialised = (
        dg.MaterializeResult
    )  # Dagster looks for this very class in annotations and knows no parameters of it

Context = dg.OpExecutionContext | dg.AssetExecutionContext

DATA_VERSION_TAG = "dagster/data_version"
"""Tag by which Dagster keeps the data version of a materialisation that was not made by an asset's own step."""

POOLS = {"pretraining": "gpu", "evaluation": "gpu", "chips": None, "proportions": None}
"""Pool of each step, one step of a pool at a time: the GPU is not shared, and all that writes to DVC takes turns.

Scenes are in no pool: a thousand of them may be cut at once. Commits to DVC take turns by a lock of their own.
"""


def pool_of(step: str) -> str | None:
    """The pool that ``step`` waits in."""
    return POOLS.get(step, "dvc")


def run_tags(context: Context, step: str) -> dict[str, str]:
    """Tags that lead from an MLflow run back to the Dagster run."""
    return {"dagster/run_id": context.run.run_id, "dagster/asset_key": step}


def take_step(context: Context, params_file: ParamsFile, step: str, *, force: bool = False) -> Outcome:
    """Run a step for the whole archive and record its output in DVC.

    Raises:
        dg.Failure: the step refused; carries the step's own message, without a trace of our insides.
    """
    with teaching():
        params = params_file.load()
        outcome = run_step(step, params, LogReporter(context.log), force=force, tags=run_tags(context, step))
    # A commit takes seconds; a step that had nothing to do and that DVC knows already needs none.
    if not outcome.was_current or versioning.recorded_versions().get(step) != outcome.data_version:
        record_in_dvc(context.log, params_file.file, step)
    return outcome


def take_inventory(context: Context, params_file: ParamsFile, *, force: bool = False) -> Outcome:
    """Run the step ``scenes`` and make a partition of every usable scene, so that a person can go on at once.

    Raises:
        dg.Failure: as for `take_step`.
    """
    outcome = take_step(context, params_file, "scenes", force=force)
    known = set(context.instance.get_dynamic_partitions(SCENES_NAME))
    new = [scene_id for scene_id in scene_by_scene.scene_ids(params_file.load()) if scene_id not in known]
    if new:
        context.instance.add_dynamic_partitions(SCENES_NAME, new)
        context.log.info(f"{len(new)} new scene(s): chips and proportions can be made of them now.")
    # The summary's own table lists the refused scenes too, with reasons cut off.
    outcome = replace(outcome, summary=replace(outcome.summary, table=()))
    return _with_quarantine(outcome, params_file.load())


def _with_quarantine(outcome: Outcome, params: Params, *later: str) -> Outcome:
    """What was set aside and why, looked up anew: the output of a later step does not change with the inventory."""
    from geokr_core.scenes.quarantine import markdown, quarantined

    folders = Folders(params)
    rows = quarantined(folders["scenes"], *(folders[step] for step in later))
    summary = replace(outcome.summary, texts={"quarantine": markdown(rows), **outcome.summary.texts})
    return replace(outcome, summary=summary)


def take_scene(
    context: Context, params_file: ParamsFile, step: str, scene_id: str, usable: "Mapping[str, Scene]"
) -> Outcome:
    """Run a step for one scene; a scene whose shard is up to date costs nothing.

    Raises:
        dg.Failure: as for `take_step`; not for a scene that is set aside, which is an outcome like any other.
    """
    with teaching():
        params = params_file.load()
        outcome = run_scene(step, scene_id, params, LogReporter(context.log), scenes=usable)
        if step != "proportions" or outcome.summary.warnings:
            return outcome
        return _with_picture(outcome, params, usable[scene_id])


def _with_picture(outcome: Outcome, params: Params, scene: "Scene") -> Outcome:
    """The scene with the land cover of its ground beside it: made where it is shown, and not kept."""
    from geokr_core.proportions.quicklook import picture_of

    index = Folders(params)["land_cover"]
    picture = picture_of(params.scenes.folder, scene, params.chips.bands, params.land_cover.folder, index)
    pictures = {"scene and land cover": picture, **outcome.summary.pictures}
    return replace(outcome, summary=replace(outcome.summary, pictures=pictures))


def record_if_complete(context: Context, params_file: ParamsFile, step: str) -> None:
    """Record a step that runs scene by scene once its last scene is there: DVC knows only whole folders."""
    with teaching():
        complete = finish_scenes(step, params_file.load(), LogReporter(context.log))
    if complete:
        record_in_dvc(context.log, params_file.file, step)
    else:
        context.log.info(f"Other scenes of {step} are still to do; DVC records the step with the last one.")


def take_levir_kr(context: Context, params_file: ParamsFile, *, force: bool = False) -> Outcome:
    """Run the step ``levir_kr``, but not before every scene is there: a data set must not depend on who was faster.

    Raises:
        dg.Failure: scenes are missing or out of date (the message names them), or as for `take_step`.
    """
    with teaching():
        params = params_file.load()
        for step in PARTITIONED:
            if not is_complete(step, params):
                raise dg.Failure(description=_missing_scenes(params, step), allow_retries=False)
    return _with_quarantine(take_step(context, params_file, "levir_kr", force=force), params, *PARTITIONED)


def is_missing(params: Params, step: str, scene_id: str) -> bool:
    """Whether a scene has neither a table nor a quarantine record of ``chips`` or ``proportions``."""
    folders = Folders(params)
    if step == "proportions" and (folders["chips"] / f"{scene_id}.quarantine.json").exists():
        return False  # nothing to count
    return not any((folders[step] / f"{scene_id}{suffix}").exists() for suffix in (".parquet", ".quarantine.json"))


def _missing_scenes(params: Params, step: str) -> str:
    scene_ids = scene_by_scene.scene_ids(params)
    missing = [scene_id for scene_id in scene_ids if is_missing(params, step, scene_id)]
    found = (
        f"{len(missing)} of {len(scene_ids)} scenes have no {step}: {', '.join(missing[:10])}{' …' if missing[10:] else ''}"
        if missing
        else f"the {step} of some of {len(scene_ids)} scenes are older than the scenes or the parameters"
    )
    return (
        f"Levir-KR needs every scene, but {found}. Open the job `align_scene` and backfill all partitions "
        "(those that are up to date take no time), or launch the job `whole_chain`."
    )


def pretrain_in_own_process(
    context: Context, params_file: ParamsFile, pipes: dg.PipesSubprocessClient, *, force: bool = False
) -> dg.PipesClientCompletedInvocation:
    """Run the step ``pretraining`` in a process of its own and record its output in DVC.

    Its log, its figures and its checks come back through Pipes. Terminating the run interrupts the process.

    Raises:
        dg.Failure: the process ended with an error; its last lines, in the log of the run, say why.
    """
    command = [sys.executable, "-m", "geokr_assets.pretraining_process", "--params", str(params_file.file)]
    try:
        invocation = pipes.run(
            context=context,
            command=[*command, "--force"] if force else command,
            extras={"tags": run_tags(context, "pretraining")},
        )
    except dg.DagsterPipesExecutionError as error:
        raise dg.Failure(
            description=f"Pretraining ended with an error: {error}. Its last lines in the log above say why.",
            allow_retries=False,
        ) from error
    record_in_dvc(context.log, params_file.file, "pretraining")
    return invocation


def record_in_dvc(log: logging.Logger, params_file: Path, step: str) -> None:
    """Commit a step's output to DVC, so that ``dvc status`` finds it clean.

    If DVC refuses (busy, or broken), the output is none the worse: the work goes on, and the log says what to do.
    """
    try:
        versioning.commit(step, params_file, LogReporter(log))
    except VersioningError as error:
        log.warning(str(error))


def result_of(outcome: Outcome) -> Materialised:
    """What an asset returns."""
    return dg.MaterializeResult(
        metadata=metadata.as_dagster(metadata.of_outcome(outcome)),
        data_version=dg.DataVersion(outcome.data_version),
    )


def event_of(outcome: Outcome, scene_id: str | None = None) -> dg.AssetMaterialization:
    """The same as an event, for a materialisation that no asset's own step made (a job of ops, a sensor)."""
    return dg.AssetMaterialization(
        asset_key=outcome.step,
        partition=scene_id,
        metadata=metadata.as_dagster(metadata.of_outcome(outcome)),
        tags={DATA_VERSION_TAG: outcome.data_version},
    )


@contextmanager
def teaching() -> Iterator[None]:
    """Turn a refusal of the core into a `dg.Failure` with its message and without a trace of our insides."""
    try:
        yield
    except GeoKRError as error:
        # Trying again would refuse again: the message says what a person has to do.
        raise dg.Failure(description=str(error), allow_retries=False) from error
