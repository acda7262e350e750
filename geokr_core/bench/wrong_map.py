"""A land-cover map with planted mistakes, for studies: some scenes get the land cover of others.

python -m geokr_core.bench.wrong_map MAP FRACTION OUT SCENE ... writes a copy of MAP. Every step then reads it as it reads any map.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from rasterio.windows import Window, from_bounds

from geokr_core.errors import ConfigError
from geokr_core.step.files import whole_file

_SEED: Final = 0


def exchanged(land_cover: np.ndarray, windows: Sequence[Window], fraction: float) -> np.ndarray:
    """Exchange windows of a map: each of some of them gets what lay in another.

    Args:
        land_cover: uint8 (H, W).
        windows: within it, apart from one another and of one size.
        fraction: of the windows that are exchanged, 0 to 1; always the same ones.

    Returns:
        A changed copy; which windows hold what else is drawn so that none keeps its own.
    """
    order = np.random.default_rng(_SEED).permutation(len(windows))
    chosen = [windows[index].toslices() for index in order[: round(fraction * len(windows))]]
    changed = land_cover.copy()
    for target, source in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        changed[target] = land_cover[source]
    return changed


def write_wrong_map(path: Path, fraction: float, out: Path, scenes: Sequence[Path]) -> None:
    """Write a copy of a map in which some scenes have the land cover of others.

    Args:
        path: a map of one band.
        fraction: of the scenes, 0 to 1.
        out: GeoTIFF to be written, on the grid of the map.
        scenes: images in the CRS of the map, apart from one another and of one size.

    Raises:
        ConfigError: a scene has another CRS, or does not lie within the map.
        rasterio.errors.RasterioIOError: a file cannot be read.
        OSError: the copy cannot be written.
    """
    with rasterio.open(path) as source:
        land_cover, profile = source.read(1), source.profile
    windows = [_window(scene, profile, path) for scene in scenes]
    height, width = (round(min(getattr(window, side) for window in windows)) for side in ("height", "width"))
    alike = [
        Window(
            _within(window.col_off, land_cover.shape[1] - width),
            _within(window.row_off, land_cover.shape[0] - height),
            width,
            height,
        )
        for window in windows
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial, rasterio.open(partial, "w", **profile) as target:
        target.write(exchanged(land_cover, alike, fraction), 1)


def _window(scene: Path, profile: dict[str, Any], path: Path) -> Window:
    with rasterio.open(scene) as image:
        crs, bounds = image.crs, image.bounds
    if crs != profile["crs"]:
        raise ConfigError(
            f"{scene}: its CRS is {crs}, but {path} has {profile['crs']}; expected scenes in the map's own."
        )
    window = from_bounds(*bounds, profile["transform"])
    first, last = (window.col_off, window.row_off), (window.col_off + window.width, window.row_off + window.height)
    # Scenes at the border stick out by a part of a cell where their grid is another one.
    if min(first) <= -1 or last[0] >= profile["width"] + 1 or last[1] >= profile["height"] + 1:
        raise ConfigError(f"{scene}: does not lie within {path}; leave it out.")
    return window


def _within(offset: float, largest: int) -> int:
    return min(max(round(offset), 0), largest)


if __name__ == "__main__":
    write_wrong_map(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
