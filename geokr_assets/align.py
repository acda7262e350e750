"""Chips and proportions of one scene, of some, or of all: what a run of the two partitioned assets does.

Both are made by one op, scene after scene, so that a run of fifty scenes starts one process and not a hundred. Each
scene is told to Dagster as soon as it is done, with its own numbers, pictures, data version and checks: a run that is
killed loses at most the scene it was at, and what is wrong with one scene keeps no other from being made.
"""

from collections.abc import Iterator

import dagster as dg

from geokr_assets import checks, metadata
from geokr_assets.materialise import event_of, record_if_complete, take_scene, teaching
from geokr_assets.partitions import PARTITIONED
from geokr_assets.resources import ParamsFile
from geokr_core.chain.params import Params

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation

_LISTED = 50
"""Scenes listed in the summary of a check."""

_SHOWN = 5
"""Scenes named in the message of a run that failed; the log names all."""


def align_scenes(context: dg.AssetExecutionContext, params_file: ParamsFile) -> Iterator[Event]:
    """Make and judge what the run asks for, for each of its partitions.

    Yields:
        Materialisations and check evaluations, one a scene and step, as they come; at the end each check over all scenes.

    Raises:
        dg.Failure: some scenes could not be made or failed a blocking check; all others were made.
    """
    with teaching():
        params, usable = params_file.load(), params_file.usable_scenes()
    made = {key.to_user_string() for key in context.selected_asset_keys}
    refusals: dict[str, str] = {}
    judged: dict[dg.AssetCheckKey, list[dg.AssetCheckEvaluation]] = {}
    for scene_id in context.partition_keys:
        try:
            for step in PARTITIONED:
                if step in made:
                    yield event_of(take_scene(context, params_file, step, scene_id, usable), scene_id)
                for evaluation in _judge(context, params, step, scene_id):
                    judged.setdefault(evaluation.asset_check_key, []).append(evaluation)
                    yield evaluation
        except dg.Failure as failure:
            refusals[scene_id] = str(failure.description)
            context.log.error(f"{scene_id}: {failure.description}")  # noqa: TRY400  # the message teaches
    for key, evaluations in judged.items():
        yield _summed_up(key, evaluations)
    for step in PARTITIONED:
        if step in made:
            record_if_complete(context, params_file, step)
    if refusals:
        raise dg.Failure(description=_said(refusals, len(context.partition_keys)), allow_retries=False)


def _judge(
    context: dg.AssetExecutionContext, params: Params, step: str, scene_id: str
) -> Iterator[dg.AssetCheckEvaluation]:
    chosen = {key.name for key in context.selected_asset_check_keys if key.asset_key.to_user_string() == step}
    with teaching():
        for evaluation in checks.evaluations_of(step, params, scene_id, chosen):
            yield evaluation
            if evaluation.blocking and not evaluation.passed:
                raise dg.Failure(description=f"check {evaluation.check_name} of {step}: {evaluation.description}")


def _summed_up(key: dg.AssetCheckKey, evaluations: list[dg.AssetCheckEvaluation]) -> dg.AssetCheckEvaluation:
    """A check over all scenes of the run: the answer that the page of checks shows first."""
    failed = [evaluation for evaluation in evaluations if not evaluation.passed]
    rows = [{"scene": str(e.partition), "finding": str(e.description)} for e in failed[:_LISTED]]
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=not failed,
        severity=evaluations[0].severity,
        description=f"{len(evaluations) - len(failed)} of {len(evaluations)} scene(s) of the run pass.",
        metadata=metadata.as_dagster({"failed": metadata.table(rows)}) if rows else {},
        blocking=evaluations[0].blocking,
    )


def _said(refusals: dict[str, str], num_scenes: int) -> str:
    lines = [f"{scene_id}: {reason}" for scene_id, reason in list(refusals.items())[:_SHOWN]]
    more = f"\n… and {len(refusals) - _SHOWN} more; the log names each." if len(refusals) > _SHOWN else ""
    return f"{len(refusals)} of {num_scenes} scene(s) could not be made; the others were.\n" + "\n".join(lines) + more
