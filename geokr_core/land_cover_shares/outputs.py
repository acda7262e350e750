"""How the output folder of the step is laid out."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from geokr_core.scenes.scene_outputs import SceneOutputs

SHARES: Final = ".shares.tif"
"""Ending of a scene's map: a band a class."""

CLASSES: Final = ".class.tif"
"""Ending of a scene's map of the largest class."""

INTERVALS: Final = ".interval.tif"
"""Ending of a scene's intervals: two bands a class, lower and upper ends, a pixel a chip-sized square."""

ITEM: Final = ".stac.json"
"""Ending of a scene's STAC item."""

RESULT_FILE: Final = "land_cover_shares.json"
"""What made the maps, and how good it is on held-out places."""

HEAD_FILE: Final = "head.safetensors"
"""The head: weights, classes and intervals; another run may be given it."""

PICTURE_FILE: Final = "held_out.png"
"""Chips of held-out places with the product's shares and the map's."""

COLLECTION_FILE: Final = "collection.json"
"""The STAC collection of all items."""


@lru_cache(maxsize=16)
def share_outputs(folder: Path) -> SceneOutputs:
    """A folder of maps; one value a process, so that its memory of checksums is read once."""
    return SceneOutputs(
        folder,
        (SHARES, CLASSES, INTERVALS, ITEM),
        shared=RESULT_FILE,
        command="geokr predict",
        beside=(HEAD_FILE, PICTURE_FILE, COLLECTION_FILE),
    )
