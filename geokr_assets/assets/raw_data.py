"""Group ``raw_data``: the scenes and the land-cover product as they came, and what is known of them."""

import dagster as dg

from geokr_assets.assets.step_asset import OWNERS, RAW, given_sources, step_asset
from geokr_core.chain.params import Params
from geokr_core.chain.steps import source_folder, steps_of

GROUP = "raw_data"

_GIVEN = {
    "scenes": (
        "The archive of raw satellite scenes.",
        "Files as delivered: any orthorectified raster, one file a scene or one file a band. They have no labels. "
        "Put new files into this folder; the sensor `scene_folder` notices them.",
        {"geotiff"},
    ),
    "land_cover": (
        "The public land-cover product.",
        "Tiles of a global map such as GlobeLand30 or ESA WorldCover. It takes the place of human annotation.",
        {"geotiff"},
    ),
    "evaluation": (
        "Small labelled sets that the backbone is judged on.",
        "They are never seen in pretraining; they show what the backbone is worth to someone with few labels.",
        {"png"},
    ),
}


def build(params: Params) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Assets of the group: ``world`` if the raw data are generated, external assets for those that are given."""
    return [
        *([_world(params)] if params.uses_world else []),
        *_given(params),
        _scenes(params),
        step_asset(
            params,
            "land_cover",
            group=GROUP,
            kinds={"rasterio", "parquet"},
            description="Every tile is opened once: its **real** footprint is noted (file names are not trusted), and the "
            "legend is checked. A code that the legend does not list stops `proportions` later, by file and code.",
        ),
    ]


def _world(params: Params) -> dg.AssetsDefinition:
    return step_asset(
        params,
        "world",
        group=GROUP,
        kinds={"python", "geotiff"},
        description="The default data, so that the whole chain runs offline on a bare machine: scenes in two UTM zones, a "
        "land-cover product that disagrees with them the way real ones do, and labelled sets. The same seed gives the "
        "same bytes.\n\nIt proves nothing about the real world. Point `scenes.folder`, `land_cover.folder` and "
        "`evaluation.folder` at your own data, and this box is replaced by them.",
    )


def _given(params: Params) -> list[dg.AssetSpec]:
    sections = {name for step in steps_of(params) for name in given_sources(params, step.name)}
    return [
        dg.AssetSpec(
            RAW[section],
            description=f"{title}\n\n{text}",
            group_name=GROUP,
            kinds=kinds,
            owners=OWNERS,
            metadata={"folder": dg.MetadataValue.path(str(source_folder(params, section)))},
        )
        for section, (title, text, kinds) in _GIVEN.items()
        if section in sections
    ]


def _scenes(params: Params) -> dg.AssetsDefinition:
    return step_asset(
        params,
        "scenes",
        group=GROUP,
        kinds={"rasterio", "parquet"},
        description="Only headers are read. A scene that could not give correct labels (no map grid, unreadable, wrong "
        "bands) is **quarantined** with its reason, and the run continues with the others.\n\nEvery usable scene becomes "
        "a partition of `chips` and `proportions`.",
    )
