"""The page to search and label in: one HTML file that a browser opens from the disk, with vectors and pictures inside.

Vectors are turned onto their principal components and kept as 8-bit integers: ranking 30,000 chips after a click takes a
moment. The file with the labels is written by the page itself (``pictures/templates/parquet.js``).
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.embeddings.read import Embeddings
from geokr_core.errors import EmbeddingsError
from geokr_core.pictures.offline_page import COLUMNS, PER_SHEET, sheets, write_offline_page
from geokr_core.scenes.scene_outputs import CUT_FILE
from geokr_core.search.index import Index
from geokr_core.search.output import pictures_of
from geokr_core.step.files import read_json
from geokr_core.step.selection import even_selection

MAX_CHIPS: Final = 30_000
"""Chips of a page: what a browser holds with pictures and ranks within a second."""

NUM_COMPONENTS: Final = 64
_THUMB_PX: Final = 48


@dataclass(frozen=True)
class Opening:
    """What a page shows first.

    Attributes:
        positions: int64 (M,), chips of the archive that are on the page.
        scores: float32 (M,), by which they are ranked before anything is labelled.
        labels: ``(chip id, yes | no | unsure, ISO time)`` of those that are labelled already.
        target: what is looked for, in the labeller's words.
        uncertain_first: whether the least certain chips are shown first, once there are labels.
    """

    positions: np.ndarray
    scores: np.ndarray
    labels: Sequence[tuple[str, str, str]] = ()
    target: str = "target"
    uncertain_first: bool = False


def spread_out(allowed: np.ndarray, most: int = MAX_CHIPS) -> np.ndarray:
    """At most ``most`` positions of the chips that may be shown, evenly over the archive."""
    return even_selection(np.flatnonzero(allowed), most)


def write_page(
    found: Embeddings,
    index: Index,
    chips: Path,
    opening: Opening,
    path: Path,
    land_cover: Sequence[str] | None = None,
    title: str = "GeoKR: find and label chips",
) -> int:
    """Write the page; the same inputs give the same bytes.

    Args:
        found: the archive.
        index: of its vectors.
        chips: folder of shards, for pictures.
        opening: what it shows first.
        path: the file; replaced.
        land_cover: the class to name below each chip of the page, or none.
        title: of the page.

    Returns:
        The number of chips on it.

    Raises:
        EmbeddingsError: no chip is left to show, or more than `MAX_CHIPS`.
        MissingInputError: a shard is missing.
        OSError: the file system refused.
    """
    if not 0 < len(opening.positions) <= MAX_CHIPS:
        raise EmbeddingsError(
            f"{len(opening.positions)} chips to show; expected 1 to {MAX_CHIPS}: give other filters, or fewer chips."
        )
    rows = found.chips.iloc[opening.positions].reset_index(drop=True)
    codes = components(index.directions, opening.positions)
    position_of = {str(chip_id): k for k, chip_id in enumerate(rows["chip_id"])}
    cut = read_json(chips / CUT_FILE)
    thumb_px = min(_THUMB_PX, int(cut["size_px"]))
    content = {
        "ids": rows["chip_id"].tolist(),
        "lon": rows["lon"].round(6).tolist(),
        "lat": rows["lat"].round(6).tolist(),
        "acquired": ["" if pd.isna(day) else str(day)[:10] for day in rows["acquired"]],
        "land_cover": list(land_cover) if land_cover is not None else [""] * len(rows),
        "scores": opening.scores.round(4).tolist(),
        "labels": [[position_of[i], label, when] for i, label, when in opening.labels if i in position_of],
        "target": opening.target,
        "order": "uncertain" if opening.uncertain_first else "best",
        "model": found.network["model"],
        "model_version": found.network["model_version"],
        "dimensions": codes.shape[1],
        "thumb_px": thumb_px,
        "columns": COLUMNS,
        "per_sheet": PER_SHEET,
    }
    write_offline_page(
        path,
        "geokr_core.search",
        "page",
        content,
        title=title,
        model=found.network["model"],
        model_version=found.network["model_version"],
        generated_world=bool(cut.get("generated_world")),
        num_chips=len(rows),
        sheets=list(sheets(_pictures(chips, rows), len(rows), thumb_px)),
        vectors=base64.b64encode(codes.tobytes()).decode(),
    )
    return len(rows)


def components(directions: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Directions on their principal components, as int8.

    Args:
        directions: float32 (N, D), of length 1.
        positions: int64 (M,), chips wanted; the components are those of these chips.

    Returns:
        int8 (M, d), d at most `NUM_COMPONENTS`: one scale for all of them, so that angles are kept.
    """
    chosen = directions[positions].astype(np.float64)
    _, axes = np.linalg.eigh(chosen.T @ chosen)
    axes = axes[:, ::-1][:, : min(NUM_COMPONENTS, directions.shape[1])]
    # An eigenvector may point either way: the largest part of each points up.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    projected = chosen @ axes
    largest = max(float(np.abs(projected).max()), 1e-12)
    codes: np.ndarray = np.rint(projected * (127.0 / largest)).astype(np.int8)
    return codes


def _pictures(chips: Path, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """Pictures of the chips, read by the sheet."""
    for first in range(0, len(rows), PER_SHEET):
        yield from pictures_of(chips, rows.iloc[first : first + PER_SHEET])
