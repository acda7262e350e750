"""The catalogue of a data set: rows of chips joined with their land cover, filtered, split and written scene by scene.

Memory holds one scene and one row group at a time, however many scenes there are. Which data set the rows belong to,
and the pixels behind them, are the business of ``levir_kr``.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geokr_core.errors import DatasetError, MissingInputError
from geokr_core.levir_kr.audited import WEIGHT_COLUMN, Verdicts
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.scenes.scene_outputs import TABLE, chip_outputs, proportion_outputs, scenes_in
from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_file

ROWS_PER_GROUP = 20_000
"""Rows of a row group: few enough to be held in memory, many enough that the file's footer stays small."""

HEAVY_COLUMNS = ("geometry", "crs_wkt", "transform", "bands", "stretch_low", "stretch_high")
"""What only geometry and provenance need: nine tenths of the bytes, not read by default."""

_REPEATED = ("scene_id", "shard", "acquired", "sensor", "land_cover", "product", "split")


@dataclass(frozen=True)
class Tally:
    """What went into a catalogue.

    Attributes:
        num_candidates: chips that have proportions.
        num_kept: chips that entered.
        best_known_fraction: the largest share of known ground among the candidates.
        most_cells: the most land-cover cells of known class under a candidate.
        num_audited: of those that could enter, chips that the audit knows.
        num_flagged: training chips that the audit left out, or let weigh less.
    """

    num_candidates: int = 0
    num_kept: int = 0
    best_known_fraction: float = 0.0
    most_cells: float = 0.0
    num_audited: int = 0
    num_flagged: int = 0


def write_catalogue(
    config: LevirKRConfig, chips: Path, proportions: Path, path: Path, verdicts: Verdicts | None = None
) -> Tally:
    """Join, filter and split the rows of all scenes, and write them as one GeoParquet file in the order of the scenes.

    Args:
        config: which chips enter and how they are split.
        chips: folder of shards.
        proportions: folder of proportions.
        path: the file; only written if at least one chip enters.
        verdicts: of an earlier audit, by which training chips are left out or get a weight (column ``audit_weight``).

    Returns:
        How many chips entered, and how near the others came.

    Raises:
        MissingInputError: a scene has a shard but no proportions, or no scene has both.
        DamagedOutputError: a table is not what was written.
        DatasetError: the audit knows none of the chips.
    """
    tally = Tally()
    places = Places(config)
    with whole_file(path) as partial:
        writer = _Writer(partial)
        for joined in joined_scenes(chips, proportions):
            known, cells = joined["known_fraction"], joined["num_cells"]
            kept = joined[(1.0 - known <= config.max_unknown_fraction) & (cells >= config.min_voting_cells)]
            kept = kept.assign(split=places.split_of(kept)) if len(kept) else kept
            num_audited = num_flagged = 0
            if verdicts is not None and len(kept):
                kept, num_audited, num_flagged = _after_audit(kept, verdicts)
            if len(kept):
                writer.add(kept)
            tally = Tally(
                tally.num_candidates + len(joined),
                tally.num_kept + len(kept),
                max(tally.best_known_fraction, float(known.max())),
                max(tally.most_cells, float(cells.max())),
                tally.num_audited + num_audited,
                tally.num_flagged + num_flagged,
            )
        writer.close()
    if verdicts is not None and not tally.num_audited:
        raise DatasetError(
            f"{verdicts.config.table.file}: knows none of the {tally.num_kept} chips as they are now: their ids or their land cover are "
            "others. Give an audit of this archive and this map (`levir_kr.audit.table`), or audit it again."
        )
    if not tally.num_kept:
        path.unlink()
    return tally


def _after_audit(rows: pd.DataFrame, verdicts: Verdicts) -> tuple[pd.DataFrame, int, int]:
    """Rows of a scene as an audit leaves them, how many of them it knows, and how many training chips it flags.

    Chips of held-out places stay as they are: what they are judged by must not depend on whether a network agrees with the map.
    """
    found, is_training = verdicts.of(rows), (rows["split"] == "train").to_numpy()
    flagged = found.is_flagged & is_training
    counts = int(found.is_known.sum()), int(flagged.sum())
    if verdicts.config.use == "exclude":
        return rows[~flagged], *counts
    return rows.assign(**{WEIGHT_COLUMN: np.where(flagged, found.weight, np.float32(1.0))}), *counts


def joined_scenes(chips: Path, proportions: Path) -> Iterator[pd.DataFrame]:
    """Rows of each scene that has both chips and proportions, in order of scene id.

    Raises:
        MissingInputError: a scene has a shard but no proportions, or no scene has both.
        DamagedOutputError: a table is not what was written.
    """
    found = False
    shards, labels = chip_outputs(chips), proportion_outputs(proportions)
    for scene_id in scenes_in(chips):
        if labels.reason(scene_id) is not None:
            continue
        if not labels.whole(scene_id):
            raise MissingInputError(
                f"{labels.path(scene_id, TABLE)}: scene {scene_id} has chips but no proportions; run `geokr proportions`."
            )
        found = True
        rows, shares = shards.table(scene_id).to_pandas(), labels.table(scene_id).to_pandas()
        yield rows.merge(shares, on="chip_id", validate="one_to_one")
    if not found:
        raise MissingInputError(
            f"{chips}: no scene has both chips and proportions; look at the quarantine of `geokr scenes`."
        )


class Places:
    """Holding out whole places, whatever scene shows them: overlapping scenes must not leak between the splits."""

    def __init__(self, config: LevirKRConfig) -> None:
        """Take size, share and seed from the section."""
        self._config = config
        self._held_out: dict[str, bool] = {}

    def split_of(self, rows: pd.DataFrame) -> np.ndarray:
        """``train`` or ``validation`` for each row (N,), by its ``lon`` and ``lat`` in degrees."""
        size = self._config.place_size_deg
        cells = (rows[["lon", "lat"]].to_numpy() // size).astype(int)
        unique, inverse = np.unique(cells, axis=0, return_inverse=True)
        held_out = np.array([self._is_held_out(f"{lon},{lat}") for lon, lat in unique])
        return np.where(held_out[inverse], "validation", "train")

    def _is_held_out(self, place: str) -> bool:
        if place not in self._held_out:
            # A hash and not a draw: adding scenes elsewhere moves no chip from one split to the other.
            share = int(text_digest([self._config.seed, place])[:8], 16) / 0xFFFFFFFF
            self._held_out[place] = share < self._config.validation_fraction
        return self._held_out[place]


class _Writer:
    """GeoParquet written row group by row group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: list[pd.DataFrame] = []
        self._rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pd.DataFrame) -> None:
        self._parts.append(rows)
        self._rows += len(rows)
        if self._rows >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is None:
            self._path.touch()
        else:
            self._writer.close()

    def _flush(self) -> None:
        if not self._parts:
            return
        rows = pd.concat(self._parts, ignore_index=True).rename(columns={"footprint": "geometry"})
        self._parts, self._rows = [], 0
        table = pa.Table.from_pandas(rows, preserve_index=False)
        if self._writer is None:
            schema = table.schema.with_metadata({**(table.schema.metadata or {}), b"geo": _geo_metadata(rows)})
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        self._writer.write_table(table.cast(self._writer.schema))


def _geo_metadata(rows: pd.DataFrame) -> bytes:
    """GeoParquet's own description of the geometry column, as the library writes it, without a bounding box."""
    import geopandas as gpd

    one = gpd.GeoDataFrame({"geometry": shapely.from_wkb(rows["geometry"].iloc[:1].to_numpy())}, crs="EPSG:4326")
    buffer = io.BytesIO()
    one.to_parquet(buffer)
    buffer.seek(0)
    content = json.loads((pq.read_schema(buffer).metadata or {})[b"geo"])
    # The file is not known to its end yet; a bounding box of its first row would be wrong, and none is allowed.
    content["columns"]["geometry"].pop("bbox", None)
    return json.dumps(content).encode()


def read_catalogue(path: Path) -> pd.DataFrame:
    """A catalogue without its heavy columns (`HEAVY_COLUMNS`); repeated texts as categories.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    names = pq.read_schema(path).names
    columns = [name for name in names if name not in HEAVY_COLUMNS]
    repeated = [name for name in _REPEATED if name in names]
    table: pd.DataFrame = pq.read_table(path, columns=columns, read_dictionary=repeated).to_pandas()
    return table


def scenes_of(path: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Scene after scene of a catalogue with all columns, geometry as WKB; one row group in memory.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    rest = pd.DataFrame()
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = pd.concat([rest, file.read_row_group(group).to_pandas()], ignore_index=True)
            # The last scene may go on in the next group.
            is_last = rows["scene_id"] == rows["scene_id"].iloc[-1]
            rest = rows[is_last]
            for scene_id, of_scene in rows[~is_last].groupby("scene_id", sort=False):
                yield str(scene_id), of_scene
    if len(rest):
        yield str(rest["scene_id"].iloc[0]), rest
