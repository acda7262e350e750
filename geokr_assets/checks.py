"""Asset checks: the check list as Dagster shows and runs it."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geokr_assets import metadata
from geokr_assets.check_list import CHECKS, IN_OWN_PROCESS, Check, of_step
from geokr_assets.partitions import PARTITIONED, SCENES
from geokr_assets.resources import ParamsFile
from geokr_core.config import Params

if TYPE_CHECKING:
    from geokr_core.checks import Finding


def specs_of(step: str) -> list[dg.AssetCheckSpec]:
    """Declarations for an asset that brings its own check results."""
    return [
        dg.AssetCheckSpec(check.name, asset=step, blocking=check.blocking, description=check.description)
        for check in of_step(step)
        if step in IN_OWN_PROCESS
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


def evaluations_of(step: str, params: Params, scene_id: str = "") -> Iterator[dg.AssetCheckEvaluation]:
    """Judge a step and give events, for a materialisation that no asset's own step made."""
    for check in of_step(step):
        finding = check.judge(params, scene_id)
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(step),
            check_name=check.name,
            passed=finding.passed,
            severity=dg.AssetCheckSeverity(check.severity),
            description=finding.message,
            metadata=metadata.as_dagster(metadata.of_finding(finding)),
            blocking=check.blocking,
            partition=scene_id or None,
        )


def build_checks() -> list[dg.AssetChecksDefinition]:
    """Dagster's asset checks; each can also be run alone, from the asset's page."""
    with warnings.catch_warnings():
        # Checks scene by scene are a preview in Dagster 1.13; there is no other way to tell which scene failed.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [_definition(check) for check in CHECKS if check.step not in IN_OWN_PROCESS]


def _definition(check: Check) -> dg.AssetChecksDefinition:
    partitioned = check.step in PARTITIONED

    @dg.asset_check(
        asset=check.step,
        name=check.name,
        blocking=check.blocking,
        description=check.description,
        partitions_def=SCENES if partitioned else None,
    )
    def _judge(context: dg.AssetCheckExecutionContext, params_file: ParamsFile) -> dg.AssetCheckResult:
        scene_id = context.partition_key if partitioned else ""
        return result_of(check, check.judge(params_file.load(), scene_id))

    return _judge
