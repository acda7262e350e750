"""What the images say of cells, learned from cells of other places, and how far the map is from it.

A cell by itself is noisy. Its score is the residual of it and its eight neighbours together over what is expected of these: an
error of a map is seldom a single cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy import ndimage

from geokr_core.audit.cells import CellInputs, read_scene_cells
from geokr_core.audit.disagreement import LEAST_RESIDUAL, ChipJudge, told_by, without_errors
from geokr_core.audit.pairs import Pairs
from geokr_core.embeddings.cell_reading import cells_of_chips
from geokr_core.embeddings.regression import Linear, Predictor, as_shares
from geokr_core.errors import AuditError
from geokr_core.step.selection import even_selection

_AT_ONCE: Final = 1 << 16
"""Cells whose vectors are looked at together, to bound memory."""

_FEWEST_CELLS: Final = 200


@dataclass(frozen=True)
class Trial:
    """Chips that stand for all of the archive: from their cells is learned, and in them errors are planted.

    Attributes:
        rows: int64 (N,), positions among the audited chips.
        chip_vectors: of each network float32 (N, D), of the whole chips.
        chip_folds: int64 (N,).
        vectors: float16 (N, n, n, D): more than the 8 bits that they were stored with.
        shares: float64 (N, n, n, K), the map's.
        known: bool (N, n, n), cells that are judged.
        folds: int64 (N, n, n).
        fitted: int64 (M,), cells that the regression is fitted on, as positions among all.
    """

    rows: np.ndarray
    chip_vectors: tuple[np.ndarray, ...]
    chip_folds: np.ndarray
    vectors: np.ndarray
    shares: np.ndarray
    known: np.ndarray
    folds: np.ndarray
    fitted: np.ndarray

    @cached_property
    def predictor(self) -> Predictor:
        """Prepared once for any labels of the fitted cells."""
        flat = self.vectors.reshape(-1, self.vectors.shape[-1])
        return Predictor(flat[self.fitted].astype(np.float32), self.folds.ravel()[self.fitted])

    @cached_property
    def chip_judge(self) -> ChipJudge:
        """The same of whole chips."""
        return ChipJudge.of(self.chip_vectors, self.chip_folds)


@dataclass(frozen=True)
class CellResiduals:
    """How far the map is from what the images say, cell by cell.

    Attributes:
        predicted: float32 (M, K), shares that the images say, out of fold.
        residual: float32 (M,), sum of absolute differences to the map's.
        expected: float32 (M,), residual of cells with such a prediction, out of fold.
    """

    predicted: np.ndarray
    residual: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class CellJudge:
    """Linear functions by fold, each learned from cells of all other folds.

    Attributes:
        shares: from vectors to shares.
        expected: from what a prediction tells to the residual that it comes with.
    """

    shares: Mapping[int, Linear]
    expected: Mapping[int, Linear]

    @classmethod
    def learned(cls, trial: Trial, shares: np.ndarray) -> "CellJudge":
        """Learn from the fitted cells of a trial, under a map that may have planted errors.

        Args:
            trial: vectors and folds.
            shares: float64 (N, n, n, K), the map's.
        """
        labels = shares.reshape(-1, shares.shape[-1])[trial.fitted]
        folds = trial.folds.ravel()[trial.fitted]
        linears = trial.predictor.linears(labels)
        vectors = trial.vectors.reshape(-1, trial.vectors.shape[-1])[trial.fitted]
        predicted = as_shares(_applied(linears, vectors, folds))
        residual = without_errors(np.abs(predicted - labels).sum(axis=1))
        return cls(linears, Predictor(told_by(predicted), folds).linears(residual[:, None]))

    def __call__(self, vectors: np.ndarray, shares: np.ndarray, folds: np.ndarray) -> CellResiduals:
        """Judge cells.

        Args:
            vectors: float (M, D).
            shares: float (M, K), the map's.
            folds: int64 (M,).
        """
        predicted = as_shares(_applied(self.shares, vectors, folds)).astype(np.float32)
        expected = np.empty(len(vectors), dtype=np.float32)
        for first in range(0, len(vectors), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            expected[part] = _applied(self.expected, told_by(predicted[part]), folds[part])[:, 0]
        residual = np.abs(predicted - shares).sum(axis=1).astype(np.float32)
        return CellResiduals(predicted, residual, np.maximum(expected, LEAST_RESIDUAL))


def _applied(linears: Mapping[int, Linear], vectors: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """By each row the function of its fold, float32 (M, K).

    A fold of which no cell was fitted is judged by another fold's function, which has not seen it either.
    """
    any_other = next(iter(linears.values()))
    found = np.empty((len(vectors), len(any_other.intercept)), dtype=np.float32)
    for fold in np.unique(folds):
        rows, linear = np.flatnonzero(folds == fold), linears.get(int(fold), any_other)
        for first in range(0, len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            found[part] = linear(vectors[part].astype(np.float32))
    return found


def scores_of_cells(residual: np.ndarray, expected: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Residual over expected residual of each cell with its neighbours, float32 (..., H, W); NaN where nothing is judged.

    Args:
        residual: float32 (..., H, W).
        expected: likewise, above 0.
        known: bool (..., H, W), cells that are judged; others count for no neighbour.
    """
    size = (1,) * (residual.ndim - 2) + (3, 3)
    sums = [ndimage.uniform_filter(np.where(known, one, 0.0), size, mode="constant") for one in (residual, expected)]
    scores: np.ndarray = np.where(known, sums[0] / np.maximum(sums[1], 1e-9), np.nan).astype(np.float32)
    return scores


def means_of_chips(scores: np.ndarray) -> np.ndarray:
    """Mean score of the judged cells of each chip, float64 (N,); NaN where none is judged.

    Args:
        scores: (N, n, n), NaN where a cell is not judged.
    """
    known = ~np.isnan(scores)
    number = known.sum(axis=(1, 2))
    sums = np.where(known, scores, 0.0).sum(axis=(1, 2), dtype=np.float64)
    means: np.ndarray = np.where(number > 0, sums / np.maximum(number, 1), np.nan)
    return means


def with_cells(of_chips: np.ndarray, of_cells: np.ndarray) -> np.ndarray:
    """Scores of chips that know their cells, float64 (N,).

    A whole chip that is wrong shows in its own score, a part of one in its cells': the geometric mean ranks both.

    Args:
        of_chips: float64 (N,), residual over expected residual of the chips themselves.
        of_cells: float64 (N,), see `means_of_chips`; a chip of which none was judged keeps its own.
    """
    both = np.sqrt(of_chips * np.where(np.isnan(of_cells), of_chips, of_cells))
    return np.asarray(both)


def read_trial(pairs: Pairs, folds: np.ndarray, inputs: CellInputs, max_chips: int, max_cells: int, seed: int) -> Trial:
    """Read the cells of chips that are evenly spread over the archive.

    Args:
        pairs: the audited chips.
        folds: int64 (N,), of these.
        inputs: folders.
        max_chips: that are read.
        max_cells: that the regression is fitted on.
        seed: of which cells these are.

    Raises:
        MissingInputError: an input has not been made.
        DamagedOutputError: a file is not what was written.
        AuditError: cells were not kept, or too few of them have known land cover.
    """
    wanted = even_selection(np.arange(len(pairs.chips)), max_chips)
    scenes = pairs.chips["scene_id"].to_numpy()
    parts = [_trial_of_scene(str(scene_id), wanted, pairs, folds, inputs) for scene_id in _in_order(scenes[wanted])]
    rows, vectors, shares, known, cell_folds = (np.concatenate(each) for each in zip(*parts, strict=True))
    judged = np.flatnonzero(known.ravel())
    if len(judged) < _FEWEST_CELLS:
        raise AuditError(
            f"{len(judged)} cells of {len(rows)} chips have known land cover; an audit of cells needs at least {_FEWEST_CELLS}. Leave "
            "`map_audit.cells` out, or lower `map_audit.min_known_fraction`."
        )
    if len(np.unique(cell_folds.ravel()[judged])) < 2 or len(np.unique(folds[rows])) < 2:
        raise AuditError(
            f"The {len(rows)} chips whose cells are read lie in one part of the places: none can be held out. Lower "
            "`map_audit.place_size_deg`, or raise `map_audit.cells.max_chips`."
        )
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(judged)[:max_cells])
    return Trial(
        rows, tuple(one[rows] for one in pairs.features), folds[rows], vectors, shares, known, cell_folds, chosen
    )


def _in_order(names: np.ndarray) -> Sequence[str]:
    return list(dict.fromkeys(names.tolist()))


def _trial_of_scene(
    scene_id: str, wanted: np.ndarray, pairs: Pairs, folds: np.ndarray, inputs: CellInputs
) -> tuple[np.ndarray, ...]:
    cells = read_scene_cells(scene_id, pairs, inputs)
    chosen = np.flatnonzero(cells.begins_at_cell & np.isin(cells.chips, wanted))
    side = cells.grid.per_chip
    first = cells.places[chosen] // cells.grid.cell_px
    windows = [cells.window(int(k)) for k in chosen]

    def cut(values: np.ndarray) -> np.ndarray:
        shape = (len(windows), side, side, *values.shape[2:])
        return np.stack([values[window] for window in windows]) if windows else np.empty(shape, values.dtype)

    vectors = cells_of_chips(cells.vectors, cells.grid, first)
    with np.errstate(over="raise"):
        small = vectors.astype(np.float16)
    own = folds[np.maximum(cells.chip_of, 0)]
    return cells.chips[chosen], small, cut(cells.shares).astype(np.float64), cut(cells.known), cut(own)
