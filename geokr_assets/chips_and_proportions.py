"""Chips and proportions of one scene, of some, or of all: what a run of the two partitioned assets does.

Both are made by one op, scene after scene, so that a run of fifty scenes starts one process and not a hundred. Each
scene is reported to Dagster as soon as it is done, with its own numbers, pictures, data version and checks: a run that is
killed loses at most the scene it was at, and a fault of one scene keeps no other from being made. A partition whose
scene is gone is an outcome and no failure.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from geokr_assets import checks, metadata
from geokr_assets.materialise import event_of, gone, record_if_complete, take_scene, teaching
from geokr_assets.partitions import PARTITIONED
from geokr_assets.reporter import LogReporter
from geokr_assets.resources import ParamsFile
from geokr_core.chain.outdated_inputs import warn_of_outdated_inputs
from geokr_core.chain.params import Params

if TYPE_CHECKING:
    from geokr_core.scenes.scene import Scene

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation

_SHOWN = 5
"""Scenes named in the message of a run that failed; the log names all."""


def chips_and_proportions(context: dg.AssetExecutionContext, params_file: ParamsFile) -> Iterator[Event]:
    """Make and judge what the run asks for, for each of its partitions.

    Yields:
        Materialisations and check evaluations, one a scene and step, as they come; at the end each check over all scenes.

    Raises:
        dg.Failure: some scenes could not be made or failed a blocking check; all others were made.
    """
    with teaching():
        params, usable = params_file.load(), params_file.usable_scenes()
    made = [step for step in PARTITIONED if dg.AssetKey(step) in context.selected_asset_keys]
    warn_of_outdated_inputs(params, made, LogReporter(context.log))
    refusals: dict[str, str] = {}
    judged: dict[dg.AssetCheckKey, list[dg.AssetCheckEvaluation]] = {}
    for scene_id in context.partition_keys:
        try:
            for event in _make(context, params_file, params, scene_id, usable):
                if isinstance(event, dg.AssetCheckEvaluation):
                    judged.setdefault(event.asset_check_key, []).append(event)
                yield event
        except dg.Failure as failure:
            refusals[scene_id] = str(failure.description)
            context.log.error(f"{scene_id}: {failure.description}")  # noqa: TRY400  # the message teaches
    for key, evaluations in judged.items():
        yield _over_scenes(key, evaluations)
    for step in made:
        record_if_complete(context, params_file, step)
    if refusals:
        raise dg.Failure(description=_summary(refusals, len(context.partition_keys)), allow_retries=False)


def _make(
    context: dg.AssetExecutionContext,
    params_file: ParamsFile,
    params: Params,
    scene_id: str,
    usable: "Mapping[str, Scene]",
) -> Iterator[Event]:
    made = [step for step in PARTITIONED if dg.AssetKey(step) in context.selected_asset_keys]
    if scene_id not in usable:
        context.log.warning(f"{scene_id}: no usable scene of the inventory any more; nothing was made.")
        yield from (gone(step, scene_id) for step in made)
        return
    for step in PARTITIONED:
        if step in made:
            yield event_of(take_scene(context, params_file, step, scene_id, usable), scene_id)
        yield from _judge(context, params, step, scene_id)


def _judge(
    context: dg.AssetExecutionContext, params: Params, step: str, scene_id: str
) -> Iterator[dg.AssetCheckEvaluation]:
    chosen = {key.name for key in context.selected_asset_check_keys if key.asset_key.to_user_string() == step}
    with teaching():
        for evaluation in checks.evaluations_of(step, params, scene_id, chosen):
            yield evaluation
            if evaluation.blocking and not evaluation.passed:
                raise dg.Failure(description=f"check {evaluation.check_name} of {step}: {evaluation.description}")


def _over_scenes(key: dg.AssetCheckKey, evaluations: list[dg.AssetCheckEvaluation]) -> dg.AssetCheckEvaluation:
    """A check over all scenes of the run: the answer that the page of checks shows first."""
    from geokr_core.chain.findings import over_scenes

    failed = {str(e.partition): str(e.description) for e in evaluations if not e.passed}
    finding = over_scenes(failed, len(evaluations))
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=finding.passed,
        severity=evaluations[0].severity,
        description=finding.message,
        metadata=metadata.as_dagster(metadata.of_finding(finding)),
        blocking=evaluations[0].blocking,
    )


def _summary(refusals: dict[str, str], num_scenes: int) -> str:
    lines = [f"{scene_id}: {reason}" for scene_id, reason in list(refusals.items())[:_SHOWN]]
    more = f"\n… and {len(refusals) - _SHOWN} more; the log names each." if len(refusals) > _SHOWN else ""
    return f"{len(refusals)} of {num_scenes} scene(s) could not be made; the others were.\n" + "\n".join(lines) + more
