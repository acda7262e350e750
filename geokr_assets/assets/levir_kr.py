"""Group ``levir_kr``: from scenes to the frozen data set of chips and land-cover proportions."""

import warnings
from collections.abc import Iterator

import dagster as dg

from geokr_assets.assets.step_asset import scene_spec, step_asset
from geokr_assets.checks import specs_of
from geokr_assets.chips_and_proportions import Event, chips_and_proportions
from geokr_assets.executors import scenes_per_run
from geokr_assets.partitions import PARTITIONED, SCENES
from geokr_assets.resources import ParamsFile
from geokr_core.chain.params import Params

GROUP = "levir_kr"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [_chips_and_proportions(params), _levir_kr(params)]


def _chips_and_proportions(params: Params) -> dg.AssetsDefinition:
    """``chips`` and ``proportions``: two assets, made by one op, scene after scene."""
    first = (
        "\n\n**No partitions yet?** Each scene becomes one within a minute of the start, by the sensor `scene_folder`, which must be "
        "running. Then *Materialize all*, *All* makes everything; the job `whole_chain` does so in one run."
    )
    specs = [
        scene_spec(
            params,
            "chips",
            group=GROUP,
            kinds={"rasterio", "numpy", "parquet"},
            description="A **chip** is a small square of a scene in the scene's own grid; no pixel is resampled. One scene "
            "gives one shard (`<scene>.npy`) and one table with the place, date and quality of each chip." + first,
        ),
        scene_spec(
            params,
            "proportions",
            group=GROUP,
            kinds={"rasterio", "parquet"},
            description="For each chip the fraction of its ground that is forest, water, cropland, … according to the "
            "land-cover product. These **proportions are the labels**: no one had to draw them.\n\nDo image and land "
            "cover are aligned? Set `alignment.check: true` in the parameter file, and every scene is asked." + first,
        ),
    ]
    with warnings.catch_warnings():
        # How many scenes a run takes is a beta in Dagster 1.13; without it each scene would be a separate run.
        warnings.simplefilter("ignore", dg.BetaWarning)
        policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=scenes_per_run())

    @dg.multi_asset(
        name="scene_by_scene",
        specs=specs,
        check_specs=[check for step in PARTITIONED for check in specs_of(step, params)],
        partitions_def=SCENES,
        can_subset=True,
        backfill_policy=policy,
        description="Cut scenes into chips and count the land cover under each, scene after scene.",
    )
    def made_together(context: dg.AssetExecutionContext, params_file: ParamsFile) -> Iterator[Event]:
        yield from chips_and_proportions(context, params_file)

    return made_together


def _levir_kr(params: Params) -> dg.AssetsDefinition:
    return step_asset(
        params,
        "levir_kr",
        group=GROUP,
        kinds={"parquet", "dvc"},
        description="The data set that training reads: every chip with enough known land cover, split by place so that "
        "no ground is on both sides, sealed by hashes. Its data version follows the backbone to whoever downloads it."
        "\n\nIt needs all scenes: where one is missing, it stops and names it.",
    )
