"""Group ``evaluation``: what the backbone is worth, measured and written down."""

import dagster as dg

from geokr_assets.assets.step_asset import step_asset
from geokr_core.chain.params import Params

GROUP = "evaluation"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        step_asset(
            params,
            "evaluation",
            group=GROUP,
            kinds={"pytorch", "parquet", "mlflow"},
            description="The same small labelled sets are learned from several starting points (random weights, this "
            "backbone, the control that saw shuffled land cover) with few labels and with all. The table gives means and "
            "95 % intervals over seeds.\n\nA task that cannot be evaluated **fails**; it never becomes a score.",
        ),
        step_asset(
            params,
            "report",
            group=GROUP,
            kinds={"html", "mlflow"},
            description="One page that can be mailed: open `report.html` under the path below.",
        ),
    ]
