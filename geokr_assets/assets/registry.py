"""Group ``registry``: the hand-over to those who use the backbone."""

import dagster as dg

from geokr_assets.assets.step_asset import step_asset
from geokr_core.chain.params import Params

GROUP = "registry"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        step_asset(
            params,
            "champion",
            group=GROUP,
            kinds={"mlflow"},
            description="The new backbone enters MLflow's model registry as `challenger`. The champion of today is measured "
            "again on the same data, and the alias `champion` moves only if the challenger is better by more than "
            "`champion.min_gain`. The list of materialisations below is the history of promotions.",
        ),
    ]
