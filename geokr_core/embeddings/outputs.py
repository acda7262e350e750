"""Which files a folder of embeddings holds: those of each scene, and what all scenes share."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from geokr_core.scenes.scene_outputs import TABLE, SceneOutputs

ITEM: Final = ".stac.json"
"""Ending of a scene's STAC item."""

CELL_MAP: Final = ".cells.tif"
"""Ending of a scene's map of cells; only where it was asked for."""

NETWORK_FILE: Final = "embeddings.json"
"""The network that embedded all scenes, and the chips that it saw."""

COLLECTION_FILE: Final = "collection.json"
"""The STAC collection of all items."""

CARD_FILE: Final = "DATA_CARD.md"
"""What the vectors are, for people."""


@lru_cache(maxsize=16)
def embedding_outputs(folder: Path) -> SceneOutputs:
    """A folder of embeddings; one value a process, so that its memory of checksums is read once."""
    return SceneOutputs(
        folder, (TABLE, ITEM, CELL_MAP), shared=NETWORK_FILE, command="geokr embed", beside=(COLLECTION_FILE, CARD_FILE)
    )
