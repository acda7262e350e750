"""Group ``applications``: what a team does with the backbone on the day it is trained."""

import dagster as dg

from geokr_assets.assets.step_asset import step_asset
from geokr_core.chain.params import Params

GROUP = "applications"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        step_asset(
            params,
            "embeddings",
            group=GROUP,
            kinds={"pytorch", "parquet"},
            description="A **vector** for every chip of the archive: chips that look alike lie close together. "
            "`geokr search --like CHIP` finds them. One GeoParquet file a scene, which QGIS, DuckDB and geopandas open, and "
            "STAC beside it.\n\nOnly scenes that are new, or whose chips or backbone changed, are embedded again.",
        ),
        step_asset(
            params,
            "map_audit",
            group=GROUP,
            kinds={"numpy", "parquet"},
            description="The chips at which **image and map disagree** most, the worst first: what the map says, what the image "
            "says, which class became which, and what kind of disagreement it may be. What an image says is learned from "
            "chips of other places.\n\nEach run plants errors and tells how many of them it found.",
        ),
        step_asset(
            params,
            "land_cover_shares",
            group=GROUP,
            kinds={"pytorch", "geotiff"},
            description="**Maps of land-cover shares** predicted from the images, with intervals that were calibrated on places "
            "which the head has not seen: cloud-optimised GeoTIFFs that QGIS opens, and STAC beside them.\n\nThe figures tell "
            "the error on held-out places beside that of the mean, and how much the intervals really cover.",
        ),
    ]
