"""What Dagster loads: ``defs``, and `build_defs` for those who want them with other parameters.

If the parameter file is missing or wrong, loading fails with the message that says where; the Dagster UI shows it.
"""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from geokr_assets.alerts import build_alerts
from geokr_assets.assets import build_assets
from geokr_assets.automation import build_automation
from geokr_assets.checks import build_checks
from geokr_assets.executors import configured_executor
from geokr_assets.jobs import (
    approve_pretraining,
    build_whole_chain,
    chips_and_proportions,
    pretrain_again,
    reevaluate,
    take_inventory_again,
)
from geokr_assets.resources import ParamsFile
from geokr_assets.schedules import monthly_pretraining, reevaluation
from geokr_assets.sensors import scene_folder, store
from geokr_assets.step_process import SECONDS_TO_STOP
from geokr_core.chain.params import load_params, params_path
from geokr_core.chain.steps import STEPS


def build_defs(
    *,
    params_file: str = "",
    resources: Mapping[str, object] | None = None,
    executor: dg.ExecutorDefinition | None = None,
) -> dg.Definitions:
    """The code location for one parameter file.

    Args:
        params_file: the parameter file; empty means ``$GEOKR_PARAMS``, and ``params.yaml`` where that is not set. It
            decides whether the graph begins with a generated world or with given data.
        resources: resources to put in place of ours, by key (``params_file``, ``pipes``).
        executor: how the steps of a run are executed; None means what ``$GEOKR_EXECUTOR`` asks for.

    Raises:
        ConfigError: the parameter file is missing or wrong, or the executor is not to be had.
    """
    params = load_params(params_path(Path(params_file) if params_file else None))
    judges = STEPS["champion"].is_wanted(params)
    return dg.Definitions(
        assets=build_assets(params),
        asset_checks=build_checks(),
        jobs=[
            build_whole_chain(params),
            take_inventory_again,
            chips_and_proportions,
            *([reevaluate, pretrain_again] if judges else []),
            *([approve_pretraining] if judges else []),
        ],
        schedules=[reevaluation, monthly_pretraining] if judges else [],
        sensors=[scene_folder, store, *build_automation(params), *build_alerts()],
        resources={
            "params_file": ParamsFile(path=params_file),
            "pipes": dg.PipesSubprocessClient(termination_timeout_seconds=SECONDS_TO_STOP),
            **(resources or {}),
        },
        executor=executor or configured_executor(),
    )


defs = build_defs()
