"""Cloud-optimised GeoTIFFs: tiles and overviews in the order in which they are fetched. The same pixels give the same bytes.

Not here: what the pixels are.
"""

from pathlib import Path

import rasterio.shutil


def copy_cloud_optimised(source: Path, target: Path, *, block_px: int = 256, resampling: str = "AVERAGE") -> None:
    """Write a raster again as a cloud-optimised GeoTIFF, deflated.

    Args:
        source: a raster that GDAL reads.
        target: the file.
        block_px: side of a tile in pixels.
        resampling: GDAL's name of how overviews are made, e.g. ``NEAREST`` of classes.

    Raises:
        OSError: the file system refused.
    """
    rasterio.shutil.copy(
        source,
        target,
        driver="COG",
        COMPRESS="DEFLATE",
        PREDICTOR="NO",
        BLOCKSIZE=block_px,
        OVERVIEW_RESAMPLING=resampling,
        NUM_THREADS=1,  # more would put tiles in the order in which they end
        BIGTIFF="IF_SAFER",
    )
