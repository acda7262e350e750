"""Group ``levir_kr``: from scenes to the frozen data set of chips and land-cover proportions."""

import warnings
from collections.abc import Iterator

import dagster as dg

from geokr_assets.align import Event, align_scenes
from geokr_assets.assets.step_asset import declare, scene_spec
from geokr_assets.checks import specs_of
from geokr_assets.executors import scenes_per_run
from geokr_assets.materialise import Materialised, result_of, take_levir_kr
from geokr_assets.partitions import PARTITIONED, SCENES
from geokr_assets.resources import ParamsFile, StepConfig
from geokr_core.chain.params import Params

GROUP = "levir_kr"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [_align(params), _levir_kr(params)]


def _align(params: Params) -> dg.AssetsDefinition:
    """``chips`` and ``proportions``: two assets, made by one op, scene after scene."""
    specs = [
        scene_spec(
            params,
            "chips",
            group=GROUP,
            kinds={"rasterio", "numpy", "parquet"},
            description="A **chip** is a small square of a scene in the scene's own grid; no pixel is resampled. One scene "
            "gives one shard (`<scene>.npy`) and one table with the place, date and quality of each chip.",
        ),
        scene_spec(
            params,
            "proportions",
            group=GROUP,
            kinds={"rasterio", "parquet"},
            description="For each chip the fraction of its ground that is forest, water, cropland, … according to the "
            "land-cover product. These **proportions are the labels** that nobody had to draw.\n\nDo image and land "
            "cover lie on each other? Set `alignment.check: true` in the parameter file, and every scene is asked.",
        ),
    ]
    with warnings.catch_warnings():
        # How many scenes a run takes is a beta in Dagster 1.13; without it each scene would be a run of its own.
        warnings.simplefilter("ignore", dg.BetaWarning)
        policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=scenes_per_run())

    @dg.multi_asset(
        name="align_scenes",
        specs=specs,
        check_specs=[check for step in PARTITIONED for check in specs_of(step, params)],
        partitions_def=SCENES,
        can_subset=True,
        backfill_policy=policy,
        description="Cut scenes into chips and count the land cover under each, scene after scene.",
    )
    def align(context: dg.AssetExecutionContext, params_file: ParamsFile) -> Iterator[Event]:
        yield from align_scenes(context, params_file)

    return align


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
