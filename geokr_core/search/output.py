"""What was found, for people and programs: GeoJSON, and a contact sheet of the chips."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import shapely

from geokr_core.levir_kr.stac_export import within_half_turn
from geokr_core.pictures.images import as_rgb, below_caption, line_of_text, mosaic
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, chip_outputs
from geokr_core.step.files import read_json, whole_file

SHOWN = ("rank", "similarity", "chip_id", "lon", "lat", "acquired", "sensor", "land_cover")
"""Columns of the table that a person reads."""

_WIDTH_PX: Final = 120
"""Chips of a contact sheet are enlarged to at least this."""

_HEADING: Final = "Rank and similarity of each chip (1.00: alike); examples from the archive are left out."


def as_text(found: pd.DataFrame) -> list[dict[str, str]]:
    """The found chips as rows of text, columns `SHOWN`."""
    rows = found[list(SHOWN)].assign(
        similarity=found["similarity"].map("{:.4f}".format),
        lon=found["lon"].map("{:.5f}".format),
        lat=found["lat"].map("{:.5f}".format),
        acquired=found["acquired"].map(lambda day: "" if pd.isna(day) else str(day)[:10]),
    )
    return [{str(name): str(value) for name, value in row.items()} for row in rows.to_dict("records")]


def write_geojson(found: pd.DataFrame, path: Path) -> None:
    """Write the boxes of chips as GeoJSON; one that crosses the antimeridian is cut there.

    Args:
        found: with the columns of the box; all others become properties.
        path: the file; replaced.

    Raises:
        OSError: the file system refused.
    """
    features = []
    for row in found.to_dict("records"):
        west, south, east, north = (float(row.pop(name)) for name in ("west", "south", "east", "north"))
        geometry, _ = within_half_turn(shapely.box(west, south, east + 360.0 if west > east else east, north))
        features.append({"type": "Feature", "id": row["chip_id"], "geometry": geometry, "properties": _plain(row)})
    content = {"type": "FeatureCollection", "features": features}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in row.items():
        known = None if pd.isna(value) else value
        plain[str(name)] = known.item() if isinstance(known, np.generic) else known if known is None else _of(known)
    return plain


def _of(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)[:10]


def pictures_of(chips: Path, rows: pd.DataFrame) -> np.ndarray:
    """The chips as colour images, uint8 (N, H, W, 3), in the order of the rows.

    Args:
        chips: folder of shards.
        rows: with ``scene_id`` and ``row``.

    Raises:
        MissingInputError: a shard is missing.
        DamagedOutputError: one is cut off.
    """
    cut, outputs = read_json(chips / CUT_FILE), chip_outputs(chips)
    size = int(cut["size_px"])
    pictures = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    for scene_id, places in rows.reset_index(drop=True).groupby("scene_id").groups.items():
        shard = outputs.array(str(scene_id), PIXELS)
        mine = np.asarray(places)
        pictures[mine] = as_rgb(shard[rows["row"].to_numpy()[mine]], tuple(cut["bands"]))
    return pictures


def write_contact_sheet(chips: Path, found: pd.DataFrame, path: Path, columns: int = 10) -> None:
    """Write the found chips side by side as PNG, best first, row by row; above each its rank and similarity.

    Args:
        chips: folder of shards.
        found: rows of a search.
        path: the file; replaced.
        columns: chips in a row.

    Raises:
        MissingInputError: a shard is missing.
        OSError: the file system refused.
    """
    from PIL import Image

    captions = [
        f"{rank}   {similarity:.2f}" for rank, similarity in zip(found["rank"], found["similarity"], strict=True)
    ]
    tiles = [
        below_caption(picture, caption, _WIDTH_PX)
        for picture, caption in zip(pictures_of(chips, found), captions, strict=True)
    ]
    grid = mosaic(np.stack(tiles), min(columns, len(tiles)), gap_px=6)
    sheet = Image.fromarray(np.concatenate([line_of_text(_HEADING, grid.shape[1]), grid]))
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)
