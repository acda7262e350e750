"""Group ``levir_kr``: from scenes to the frozen data set of chips and land-cover proportions."""

import dagster as dg

from geokr_assets.assets.step_asset import declare, scene_asset
from geokr_assets.materialise import Materialised, result_of, take_levir_kr
from geokr_assets.resources import ParamsFile, StepConfig
from geokr_core.config import Params

GROUP = "levir_kr"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        scene_asset(
            params,
            "chips",
            group=GROUP,
            kinds={"rasterio", "numpy", "parquet"},
            description="A **chip** is a small square of a scene in the scene's own grid; no pixel is resampled. One scene "
            "gives one shard (`<scene>.npy`) and one table with the place, date and quality of each chip.",
        ),
        scene_asset(
            params,
            "proportions",
            group=GROUP,
            kinds={"rasterio", "parquet"},
            description="For each chip the fraction of its ground that is forest, water, cropland, … according to the "
            "land-cover product. These **proportions are the labels** that nobody had to draw.",
        ),
        _levir_kr(params),
    ]


def _levir_kr(params: Params) -> dg.AssetsDefinition:
    @declare(
        params,
        "levir_kr",
        group=GROUP,
        kinds={"parquet", "dvc"},
        description="The data set that training reads: every chip with enough known land cover, split by place so that "
        "no ground is on both sides, sealed by hashes. Its data version follows the backbone to whoever downloads it."
        "\n\nIt needs all scenes: where one is missing, it stops and names it.",
    )
    def levir_kr(context: dg.AssetExecutionContext, config: StepConfig, params_file: ParamsFile) -> Materialised:
        return result_of(take_levir_kr(context, params_file, force=config.force))

    return levir_kr
