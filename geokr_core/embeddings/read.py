"""The vectors of an archive read back: one value over the files of all scenes, refused where two networks are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from geokr_core.embeddings.outputs import NETWORK_FILE, embedding_outputs
from geokr_core.embeddings.table import footer_of
from geokr_core.errors import DamagedOutputError, EmbeddingsError, MissingInputError
from geokr_core.scenes.scene_outputs import scenes_in
from geokr_core.step.files import read_json


@dataclass(frozen=True)
class Embeddings:
    """Chips with their vectors.

    Attributes:
        chips: a row a chip: ``chip_id``, ``scene_id``, ``row`` in the shard, ``acquired`` (date or missing), ``sensor``,
            ``gsd_m``, ``lon``, ``lat`` (degrees), ``west``, ``south``, ``east``, ``north`` of its box.
        vectors: float32 (N, D), in the order of the rows.
        network: what made them, as ``embeddings.json`` says.
    """

    chips: pd.DataFrame
    vectors: np.ndarray
    network: dict[str, Any]

    def __len__(self) -> int:
        """The number of chips."""
        return len(self.chips)

    def position_of(self, chip_id: str) -> int:
        """The row of a chip.

        Raises:
            EmbeddingsError: there is no such chip.
        """
        found = np.flatnonzero((self.chips["chip_id"] == chip_id).to_numpy())
        if not len(found):
            raise EmbeddingsError(
                f"No chip {chip_id!r} among {len(self)}; ids look like {self.chips['chip_id'].iloc[0]!r}."
            )
        return int(found[0])


def open_embeddings(folder: Path, scene_ids: Sequence[str] | None = None) -> Embeddings:
    """Read the vectors of an archive.

    Args:
        folder: what `geokr_core.embeddings.embed.embed_scenes` wrote.
        scene_ids: scenes wanted; None: all.

    Raises:
        MissingInputError: there are none.
        DamagedOutputError: a file is not what was written.
        EmbeddingsError: the files hold vectors of several networks.
    """
    network, wanted = _network(folder), scenes_in(folder) if scene_ids is None else list(scene_ids)
    if not wanted:
        raise MissingInputError(f"{folder}: no embeddings of any scene; run `geokr embed` first.")
    outputs, frames, vectors = embedding_outputs(folder), [], []
    for scene_id in wanted:
        table = outputs.table(scene_id)
        frame, part = _of_file(table, network, f"{folder / scene_id}.parquet")
        frames.append(frame)
        vectors.append(part)
    chips = pd.concat(frames, ignore_index=True)
    return Embeddings(chips, np.concatenate(vectors), network)


def _network(folder: Path) -> dict[str, Any]:
    path = folder / NETWORK_FILE
    try:
        return dict(read_json(path))
    except FileNotFoundError as error:
        raise MissingInputError(f"{folder}: no embeddings there ({NETWORK_FILE}); run `geokr embed` first.") from error
    except ValueError as error:
        raise DamagedOutputError(f"{path}: not JSON; run `geokr embed`, which writes it again.") from error


def _of_file(table: pa.Table, network: dict[str, Any], name: str) -> tuple[pd.DataFrame, np.ndarray]:
    footer = footer_of(table.schema)
    for key in ("model", "model_version", "features"):
        if footer.get(key) != network[key]:
            raise EmbeddingsError(
                f"{name}: vectors of {key} {footer.get(key)!r}, but the folder's {NETWORK_FILE} says {network[key]!r}: "
                "vectors of two networks cannot be compared. Run `geokr embed`, which embeds such scenes again."
            )
    codes = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    vectors = codes.astype(np.float32) * np.float32(footer["scale"]) + np.float32(footer["offset"])
    frame = table.select(["chip_id", "scene_id", "row", "acquired", "sensor", "gsd_m"]).to_pandas()
    points = shapely.from_wkb(table["geometry"].to_numpy())
    box = table["bbox"].combine_chunks()
    edges = {
        name: box.field(key).to_numpy()
        for name, key in (("west", "xmin"), ("south", "ymin"), ("east", "xmax"), ("north", "ymax"))
    }
    return frame.assign(lon=shapely.get_x(points), lat=shapely.get_y(points), **edges), vectors
