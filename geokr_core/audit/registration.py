"""Where the map is shifted against the image: place by place, by mutual information between brightness and class.

A shift of a few pixels moves little of a chip's ground, so that it hardly shows in a residual; it shows where all borders of a place
are off by the same step. How that is measured is written in ``proportions.alignment``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.errors import SceneRefusedError
from geokr_core.land_cover.product import LandCover, open_land_cover
from geokr_core.proportions.alignment import Alignment, alignment_of, shifts_of
from geokr_core.proportions.quicklook import QuickLook, look
from geokr_core.rasters.grid import Grid
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.scenes.scene import Scene
from geokr_core.scenes.scene_outputs import chip_outputs
from geokr_core.step.reporter import Reporter

MOST_PX: Final = 3
"""Largest shift that is looked for, in image pixels, or in land-cover cells where these are larger."""

_TOLERANCE_PX: Final = 1.0
"""Shifts up to this many image pixels are what products and images commonly have."""

_SIDE_PX: Final = 320
"""Side of the square of a place that is looked at, at most."""

_MOST_BANDS: Final = 3
_PLACED: Final = ("chip_id", "pixel_row", "pixel_col", "size_px")


@dataclass(frozen=True)
class Ground:
    """Where images and land cover lie.

    Attributes:
        scenes_source: folder of raw scenes.
        scenes: folder of the inventory.
        land_cover_source: folder of land-cover tiles.
        land_cover: folder of their index.
        bands: common names of the bands of the chips.
    """

    scenes_source: Path
    scenes: Path
    land_cover_source: Path
    land_cover: Path
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Shifted:
    """A place where the map is shifted.

    Attributes:
        scene_id: the scene.
        chip_ids: chips of the scene in that place.
        alignment: what was measured.
    """

    scene_id: str
    chip_ids: tuple[str, ...]
    alignment: Alignment

    def as_json(self) -> dict[str, object]:
        """One row of a table: by how many image pixels the map must move to lie on the image."""
        right, down = self.alignment.peak_px
        told = {"scene_id": self.scene_id, "first_chip": self.chip_ids[0], "num_chips": len(self.chip_ids)}
        return told | {"right_px": right, "down_px": down, "t": round(self.alignment.t_against_zero, 1)}


def shifted_places(
    chips: pd.DataFrame, shards: Path, ground: Ground, place_size_deg: float, reporter: Reporter
) -> list[Shifted]:
    """Find places whose map lies on the image only after a shift.

    Args:
        chips: ``chip_id``, ``scene_id``, ``lon``, ``lat`` of the chips that are audited.
        shards: folder of shards, for where the chips lie in their scene.
        ground: images and land cover.
        place_size_deg: size of the places.
        reporter: hears of scenes that cannot be read.

    Raises:
        MissingInputError: the inventory or the index is missing.
        LandCoverError: a tile cannot be read.
    """
    index, usable = open_land_cover(ground.land_cover), usable_scenes(ground.scenes)
    found: list[Shifted] = []
    groups = list(chips.groupby("scene_id", sort=True))
    with reporter.progress("registration", len(groups)) as advance:
        for scene_id, rows in groups:
            scene = usable.get(str(scene_id))
            if scene is not None:
                where = chip_outputs(shards).table(str(scene_id), [*_PLACED]).to_pandas()
                try:
                    found += _shifted_in(scene, rows.merge(where, on="chip_id"), ground, index, place_size_deg)
                except SceneRefusedError as error:
                    reporter.warning(f"scene {scene_id}: registration is not judged: {error}")
            advance(1)
    return found


def _shifted_in(
    scene: Scene, rows: pd.DataFrame, ground: Ground, index: LandCover, place_size_deg: float
) -> Iterator[Shifted]:
    product, num_classes = index.products[scene.land_cover], len(index.legend.classes)
    shifts = shifts_of(MOST_PX, product, scene)
    bands = ground.bands[:_MOST_BANDS]
    cells = np.floor(rows[["lon", "lat"]].to_numpy() / place_size_deg).astype(int)
    # Places of one latitude lie in the same lines of most scenes: these are read once.
    for _, line in rows.assign(x=cells[:, 0], y=cells[:, 1]).groupby("y", sort=True):
        size = int(line["size_px"].iloc[0])
        top, height = _middle(line["pixel_row"], size, scene.grid.height)
        strip = look(ground.scenes_source, scene, bands, ground.land_cover_source, product, row=top, height=height)
        for _, place in line.groupby("x", sort=True):
            left, width = _middle(place["pixel_col"], size, scene.grid.width)
            measured = alignment_of(
                scene.scene_id, product.config.name, [_part(strip, left, width)], num_classes, shifts
            )
            if measured.verdict(_TOLERANCE_PX) == "shifted":
                yield Shifted(scene.scene_id, tuple(place["chip_id"]), measured)


def _middle(starts: "pd.Series[int]", size: int, length: int) -> tuple[int, int]:
    """First pixel and number of pixels of the middle of a place along one axis, at most `_SIDE_PX`."""
    first, end = int(starts.min()), int(starts.max()) + size
    number = min(_SIDE_PX, end - first)
    return min((first + end - number) // 2, length - number), number


def _part(strip: QuickLook, left: int, width: int) -> QuickLook:
    columns = slice(left, left + width)
    grid: Grid = strip.grid.window(0, left, strip.grid.height, width)
    return QuickLook(strip.pixels[:, :, columns], strip.valid[:, columns], strip.slots[:, columns], grid)
