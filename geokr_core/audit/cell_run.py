"""The audit of cells: what it finds of planted errors, then all scenes, one after the other: maps, and the worst cells of all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geokr_core.audit.cell_judge import CellJudge, Trial, read_trial, scores_of_cells
from geokr_core.audit.cell_planting import measure_on_ground
from geokr_core.audit.cells import CellInputs, SceneCells, read_scene_cells
from geokr_core.audit.config import CellAuditConfig, MapAuditConfig
from geokr_core.audit.disagreement import largest_move
from geokr_core.audit.kinds import Causes, kinds_of
from geokr_core.audit.maps import bands_of, write_figures
from geokr_core.audit.output import CELL_MAP_ENDING, CELL_TABLE_FILE, MAP_FOLDER
from geokr_core.audit.pairs import Pairs
from geokr_core.audit.planting import KINDS, Found
from geokr_core.embeddings.cell_reading import cell_lines
from geokr_core.step.reporter import Reporter

_FIRST: Final = 100
_FACTS: Final = ("chip_id", "scene_id", "acquired", "gap_days", "cloud_fraction")


@dataclass(frozen=True)
class CellAudit:
    """An audit of cells, ready to judge.

    Attributes:
        config: how much is read and listed.
        pairs: the audited chips.
        folds: int64 (N,), of these.
        inputs: folders.
        trial: chips that stand for all.
    """

    config: CellAuditConfig
    pairs: Pairs
    folds: np.ndarray
    inputs: CellInputs
    trial: Trial

    @classmethod
    def prepared(
        cls, config: MapAuditConfig, pairs: Pairs, folds: np.ndarray, inputs: CellInputs
    ) -> "CellAudit | None":
        """Read what is learned from; None where the configuration asks for no cells.

        Raises:
            MissingInputError: an input has not been made.
            DamagedOutputError: a file is not what was written.
            AuditError: cells were not kept, or too few of them have known land cover.
        """
        if config.cells is None:
            return None
        trial = read_trial(pairs, folds, inputs, config.cells.max_chips, config.cells.max_cells, config.seed)
        return cls(config.cells, pairs, folds, inputs, trial)

    def found(self, config: MapAuditConfig, reporter: Reporter) -> tuple[list[Found], list[Found]]:
        """What is found of planted errors: of chips ranked by their cells, and of cells."""
        of_chips, of_cells = [], []
        with reporter.progress("planted errors", len(KINDS) * config.plantings) as advance:
            for kind in KINDS:
                for draw in range(config.plantings):
                    rng = np.random.default_rng([config.seed, KINDS.index(kind), draw])
                    both = measure_on_ground(self.trial, kind, config.planted_fraction, rng)
                    of_chips += [] if both is None else [both[0]]
                    of_cells += [] if both is None else [both[1]]
                    advance(1)
        return of_chips, of_cells

    def write(self, config: MapAuditConfig, causes: Causes, out: Path, reporter: Reporter) -> "WrittenCells":
        """Judge all scenes; write a map a scene and the worst cells.

        Args:
            config: thresholds of the kinds.
            causes: what may explain a disagreement, by chip.
            out: folder of the audit.
            reporter: hears of progress.

        Raises:
            DamagedOutputError: a file is not what was written.
            AuditError: cells of a scene were not kept.
            OSError: the file system refused.
        """
        (out / MAP_FOLDER).mkdir(exist_ok=True)
        judge, scores = CellJudge.learned(self.trial, self.trial.shares), np.full(len(self.folds), np.nan)
        scene_ids, number = sorted(set(self.pairs.chips["scene_id"])), 0
        worst: list[pd.DataFrame] = []
        with reporter.progress("cells", len(scene_ids)) as advance:
            for scene_id in scene_ids:
                cells = read_scene_cells(str(scene_id), self.pairs, self.inputs)
                judged = _judged(cells, judge, self.folds)
                scores[cells.chips] = [_mean(judged.score[cells.window(k)]) for k in range(len(cells.chips))]
                worst = [_head(pd.concat([*worst, _worst(cells, judged, self.config.listed)]), self.config.listed)]
                number += int(cells.known.sum())
                path = out / MAP_FOLDER / f"{scene_id}{CELL_MAP_ENDING}"
                write_figures(
                    path, _bands(cells, judged), cells.grid.transform, cells.grid.crs, bands_of(self.pairs.classes)
                )
                advance(1)
        table = _table(config, self.pairs, worst[0], causes)
        table.to_parquet(out / CELL_TABLE_FILE, index=False, compression="zstd", write_covering_bbox=True)
        return WrittenCells(scores, number, table)


@dataclass(frozen=True)
class WrittenCells:
    """What was found of cells.

    Attributes:
        scores: float64 (N,), mean score of each chip's cells; NaN where none was judged.
        num_cells: that were judged.
        table: the worst.
    """

    scores: np.ndarray
    num_cells: int
    table: pd.DataFrame

    def as_json(self, planted: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """What `audit.json` says of cells."""
        first = self.table.head(_FIRST)
        named = {
            kind: {{"num_chips": "num_cells"}.get(name, name): value for name, value in row.items()}
            for kind, row in planted.items()
        }
        kinds = {str(kind): int(count) for kind, count in sorted(Counter(first["kind"]).items())}
        return {"num_cells": self.num_cells, "num_listed": len(self.table), "planted": named, "kinds": kinds}


@dataclass(frozen=True)
class _Judged:
    """A scene: score (H, W), residual (H, W), expected (H, W), predicted (H, W, K); NaN where nothing is judged."""

    score: np.ndarray
    residual: np.ndarray
    expected: np.ndarray
    predicted: np.ndarray


def _judged(cells: SceneCells, judge: CellJudge, folds: np.ndarray) -> _Judged:
    shape = cells.known.shape
    residual, expected = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    predicted = np.full(cells.shares.shape, np.nan, dtype=np.float32)
    for top, vectors, there in cell_lines(cells.vectors, cells.grid):
        lines = slice(top, top + len(vectors))
        cells.known[lines] &= there
        known = cells.known[lines]
        found = judge(vectors[known], cells.shares[lines][known], folds[cells.chip_of[lines][known]])
        residual[lines][known], expected[lines][known] = found.residual, found.expected
        predicted[lines][known] = found.predicted
    return _Judged(scores_of_cells(residual, expected, cells.known), residual, expected, predicted)


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean(dtype=np.float64)) if len(known) else np.nan


def _bands(cells: SceneCells, judged: _Judged) -> np.ndarray:
    mapped = np.where(cells.known[..., None], cells.shares, np.nan)
    sides = np.stack([mapped, judged.predicted], axis=-1).reshape(*cells.known.shape, -1)
    figures = np.concatenate([judged.score[..., None], judged.residual[..., None] / 2, sides], axis=-1)
    return np.moveaxis(figures, -1, 0).astype(np.float32)


def _worst(cells: SceneCells, judged: _Judged, most: int) -> pd.DataFrame:
    """The worst cells of a scene, unordered columns of figures, and where they lie."""
    flat = np.where(cells.known, judged.score, -np.inf).ravel()
    order = np.argsort(-flat, kind="stable")[: min(most, int(cells.known.sum()))]
    rows, columns = np.unravel_index(order, cells.known.shape)
    at = (rows, columns)
    file_rows = cells.grid.rows - 1 - rows if cells.grid.flipped else rows
    own = {"chip": cells.chip_of[at], "cell_row": file_rows, "cell_column": columns, "score": judged.score[at]}
    own |= {"residual": judged.residual[at], "expected_residual": judged.expected[at]}
    own |= {f"map_{k}": cells.shares[(*at, k)] for k in range(cells.shares.shape[-1])}
    own |= {f"image_{k}": judged.predicted[(*at, k)] for k in range(cells.shares.shape[-1])}
    return pd.DataFrame({**own, "geometry": _outlines(cells, rows, columns)})


def _outlines(cells: SceneCells, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cells as polygons in longitude and latitude, which run beyond 180 degrees where one crosses the antimeridian."""
    corners_x = columns[:, None] + np.array([0, 1, 1, 0])
    corners_y = rows[:, None] + np.array([0, 0, 1, 1])
    x, y = cells.grid.transform @ (corners_x, corners_y)
    lon, lat = pyproj.Transformer.from_crs(cells.grid.crs, "OGC:CRS84", always_xy=True).transform(x, y)
    crosses = np.ptp(lon, axis=1, keepdims=True) > 180.0
    lon = np.where(crosses & (lon < 0), lon + 360.0, lon)
    found: np.ndarray = shapely.polygons(np.stack([lon, lat], axis=-1))
    return found


def _head(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    order = np.argsort(-cells["score"].to_numpy(), kind="stable")[:most]
    return cells.iloc[order].reset_index(drop=True)


def _table(config: MapAuditConfig, pairs: Pairs, rows: pd.DataFrame, causes: Causes) -> gpd.GeoDataFrame:
    names: Sequence[str] = pairs.classes
    mapped, said = (rows[[f"{side}_{k}" for k in range(len(names))]].to_numpy() for side in ("map", "image"))
    surplus, missing = largest_move(mapped, said, names)
    chip = rows["chip"].to_numpy()
    facts = pairs.chips.iloc[chip].reset_index(drop=True)
    own = Causes(causes.in_other_edition[chip], causes.shifted[chip])
    flagged = np.arange(min(_FIRST, len(rows)))
    columns: dict[str, Any] = {"rank": np.arange(1, len(rows) + 1), **{name: facts[name] for name in _FACTS}}
    columns |= {name: rows[name] for name in ("cell_row", "cell_column")}
    columns |= {name: rows[name].astype(float).round(4) for name in ("score", "residual", "expected_residual")}
    columns["moved_fraction"] = (rows["residual"].astype(float) / 2).round(4)
    columns |= {"surplus_class": surplus, "missing_class": missing}
    columns["kind"] = kinds_of(config, facts, (surplus, missing), flagged, own)
    for k, name in enumerate(names):
        columns[f"map_{name}"] = mapped[:, k].astype(float).round(4)
        columns[f"image_{name}"] = said[:, k].astype(float).round(4)
    return gpd.GeoDataFrame(columns, geometry=rows["geometry"].to_numpy(), crs="OGC:CRS84")
