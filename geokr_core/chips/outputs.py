"""Where shards lie, and what is recorded of them."""

from functools import lru_cache
from pathlib import Path

from geokr_core.scenes.scene_outputs import PIXELS, TABLE, SceneOutputs

CUT_FILE = "cut.json"
"""How all scenes were cut."""


@lru_cache(maxsize=16)
def chip_outputs(out: Path) -> SceneOutputs:
    """The folder of shards ``out``; one value a process, so that its memory of checksums is read once."""
    return SceneOutputs(out, (PIXELS, TABLE), shared=CUT_FILE, command="geokr chips")
