"""How the output folder of an audit is laid out."""

from typing import Final

TABLE_FILE: Final = "audit.parquet"
"""One row a chip, the most doubtful first."""

RESULT_FILE: Final = "audit.json"
"""What was found of planted errors, and counts of kinds and confusions."""

GALLERY_FILE: Final = "gallery.png"
"""The first chips."""

MAP_FOLDER: Final = "maps"
"""Folder of the maps of disagreement."""

MAP_ENDING: Final = ".disagreement.tif"
"""Ending of a scene's map."""

CELL_TABLE_FILE: Final = "cells.parquet"
"""The most doubtful cells, only where cells were audited."""

CELL_MAP_ENDING: Final = ".cells.disagreement.tif"
"""Ending of a scene's map with a pixel a cell, likewise."""
