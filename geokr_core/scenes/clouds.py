"""Cloud masks that products bring, on the scene's grid. Which stored values mean cloud is written with each product."""

from typing import Any

import numpy as np
from rasterio.windows import Window

from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.grid import Grid
from geokr_core.scenes.products.product import SceneProduct

_TOLERANCE_PX = 1e-3


def whole_factor(scene: Grid, mask: Grid) -> int:
    """How many pixels of the scene lie along one pixel of its cloud mask.

    Raises:
        SceneRefusedError: the grids do not share CRS and origin, their pixels no whole factor, or the mask ends before
            the scene does.
    """
    factor = round(mask.transform.a / scene.transform.a) if scene.transform.a else 0
    cells = ~mask.transform @ scene.transform
    fits = factor >= 1 and mask.crs == scene.crs
    fits = (
        fits
        and abs(cells.a * factor - 1) < 1e-6
        and abs(cells.e * factor - 1) < 1e-6
        and abs(cells.b) + abs(cells.d) < 1e-9
    )
    fits = fits and max(abs(cells.c), abs(cells.f)) * factor < _TOLERANCE_PX
    if not fits or mask.height * factor < scene.height or mask.width * factor < scene.width:
        raise SceneRefusedError(
            f"its cloud mask ({mask.height} x {mask.width} pixels of {abs(mask.transform.a):g}) does not lie on its grid "
            f"({scene.height} x {scene.width} of {abs(scene.transform.a):g}) by a whole factor"
        )
    return factor


class CloudMask:
    """A product's classification, read on the scene's grid by the nearest pixel."""

    def __init__(self, dataset: Any, product: SceneProduct, factor: int) -> None:
        """Take the open classification, its product and `whole_factor`."""
        self._dataset, self._product, self._factor = dataset, product, factor

    def read(self, row: int, height: int, width: int) -> np.ndarray:
        """Where the scene's lines are clouded, bool (height, width).

        Raises:
            RasterioError: the file is corrupt or cut off there.
        """
        factor = self._factor
        first, last = row // factor, -(-(row + height) // factor)
        values = self._dataset.read(1, window=Window(0, first, -(-width // factor), last - first))
        cloud = self._product.is_cloud(values).repeat(factor, axis=0).repeat(factor, axis=1)
        top = row - first * factor
        return np.asarray(cloud[top : top + height, :width])
