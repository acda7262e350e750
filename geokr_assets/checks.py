"""Asset checks: the check list as Dagster shows and runs it."""

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geokr_assets import metadata
from geokr_assets.materialise import judges_itself
from geokr_assets.resources import ParamsFile
from geokr_core.chain.check_list import CHECKS, Check, of_step
from geokr_core.chain.params import Params

if TYPE_CHECKING:
    from geokr_core.chain.checks import Finding


def specs_of(step: str, params: Params) -> list[dg.AssetCheckSpec]:
    """Declarations for an asset that brings its own check results."""
    # Evaluations name their scene, declarations do not: Dagster 1.13 shows an empty page for checks that are declared so.
    return [
        dg.AssetCheckSpec(check.name, asset=step, blocking=check.blocking, description=check.description)
        for check in of_step(step, params)
        if judges_itself(step)
    ]


def result_of(check: Check, finding: "Finding") -> dg.AssetCheckResult:
    """A finding as Dagster wants it."""
    return dg.AssetCheckResult(
        passed=finding.passed,
        asset_key=check.step,
        check_name=check.name,
        severity=dg.AssetCheckSeverity(check.severity),
        description=finding.message,
        metadata=metadata.as_dagster(metadata.of_finding(finding)),
    )


def evaluations_of(
    step: str, params: Params, scene_id: str = "", chosen: Container[str] | None = None
) -> Iterator[dg.AssetCheckEvaluation]:
    """Judge a step and give events, for a materialisation that Dagster does not judge by itself.

    Args:
        step: the asset.
        params: the parameter file.
        scene_id: which scene, where the step runs scene by scene.
        chosen: names of the checks wanted; None means all.

    Raises:
        MissingInputError: the step has written nothing yet.
    """
    for check in of_step(step, params):
        if chosen is not None and check.name not in chosen:
            continue
        yield evaluation_of(check, check.judge(params, scene_id), scene_id)


def evaluation_of(check: Check, finding: "Finding", scene_id: str = "") -> dg.AssetCheckEvaluation:
    """A finding as an event."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(check.step),
        check_name=check.name,
        passed=finding.passed,
        severity=dg.AssetCheckSeverity(check.severity),
        description=finding.message,
        metadata=metadata.as_dagster(metadata.of_finding(finding)),
        blocking=check.blocking,
        partition=scene_id or None,
    )


def build_checks() -> list[dg.AssetChecksDefinition]:
    """Dagster's asset checks, but those that the assets bring along; each can also be run alone, from the asset's page."""
    return [_definition(check) for check in CHECKS if not judges_itself(check.step)]


def _definition(check: Check) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=check.step, name=check.name, blocking=check.blocking, description=check.description)
    def _judge(params_file: ParamsFile) -> dg.AssetCheckResult:
        return result_of(check, check.judge(params_file.load()))

    return _judge
