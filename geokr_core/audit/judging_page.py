"""The page to judge a sample on: one HTML file that a browser opens from the disk, without a server and without the network.

It shows each chip and asks which class covers most of it. What the map says is not on it. The judgements are saved by the page
itself, as GeoParquet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.audit.sample import Sample
from geokr_core.pictures.images import as_rgb
from geokr_core.pictures.offline_page import COLUMNS, PER_SHEET, sheets, write_offline_page
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, chip_outputs
from geokr_core.step.files import read_json

_THUMB_PX: Final = 128


def write_judging_page(sample: Sample, chips: Path, colours: tuple[str, ...], path: Path) -> None:
    """Write the page; the same inputs give the same bytes.

    Args:
        sample: the chips.
        chips: folder of shards, for pictures.
        colours: ``#RRGGBB`` of each class.
        path: the file; replaced.

    Raises:
        MissingInputError: a shard is missing.
        DamagedOutputError: one is cut off.
        OSError: the file system refused.
    """
    cut, rows = read_json(chips / CUT_FILE), sample.chips
    thumb_px = min(_THUMB_PX, int(cut["size_px"]))
    centres = rows.geometry.centroid if rows.crs is None else rows.set_crs(None, allow_override=True).geometry.centroid
    content = {
        "ids": rows["chip_id"].tolist(),
        "lon": centres.x.round(6).tolist(),
        "lat": centres.y.round(6).tolist(),
        "classes": list(sample.classes),
        "colours": list(colours),
        "sample_id": sample.sample_id,
        "thumb_px": thumb_px,
        "columns": COLUMNS,
        "per_sheet": PER_SHEET,
    }
    write_offline_page(
        path,
        "geokr_core.audit",
        "judging",
        content,
        sample_id=sample.sample_id,
        num_chips=len(rows),
        generated_world=bool(cut.get("generated_world")),
        sheets=list(sheets(_pictures(sample, chips, tuple(cut["bands"])), len(rows), thumb_px)),
    )


def _pictures(sample: Sample, chips: Path, bands: tuple[str, ...]) -> Iterator[np.ndarray]:
    outputs = chip_outputs(chips)
    for scene_id, row in zip(sample.chips["scene_id"], sample.chips["row"], strict=True):
        yield as_rgb(np.asarray(outputs.array(str(scene_id), PIXELS)[int(row)]), bands)
