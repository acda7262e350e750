"""The cells of a scene as an audit sees them: which chip and fold each is in, and the shares that the map gives it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from geokr_core.audit.pairs import Pairs
from geokr_core.embeddings.cells import CHIP_PLACES, CellGrid
from geokr_core.embeddings.outputs import CELL_MAP, embedding_outputs
from geokr_core.errors import AuditError
from geokr_core.scenes.scene_outputs import CELLS, chip_outputs, proportion_outputs

_WHOLE: Final = 255.0
"""What the stored shares of a cell sum to where all of its ground is known."""


@dataclass(frozen=True)
class CellInputs:
    """What an audit of cells reads.

    Attributes:
        embeddings: folder of vectors, with maps of cells.
        chips: folder of shards.
        proportions: folder of land cover, with that of cells.
        min_known_fraction: cells with less known ground are not judged.
    """

    embeddings: Path
    chips: Path
    proportions: Path
    min_known_fraction: float


@dataclass(frozen=True)
class SceneCells:
    """The cells of one scene, in the order of the scene's rows.

    Attributes:
        vectors: the map of their vectors.
        grid: where they lie.
        chips: int64 (M,), audited chips of the scene, as positions among all that are audited.
        places: int64 (M, 2), row and column of the upper left pixel of each.
        chip_of: int64 (H, W), the audited chip that a cell lies in wholly, likewise; -1 where none is.
        shares: float32 (H, W, K), the map's, sum to 1 wherever anything is known.
        known: bool (H, W), whether enough of the ground is known and an audited chip is there.
    """

    vectors: Path
    grid: CellGrid
    chips: np.ndarray
    places: np.ndarray
    chip_of: np.ndarray
    shares: np.ndarray
    known: np.ndarray

    def window(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of the cells that lie wholly in one of ``chips``."""
        cell_px, length = self.grid.cell_px, self.grid.cell_px * self.grid.per_chip
        first = -(-self.places[number] // cell_px)
        end = (self.places[number] + length) // cell_px
        return slice(int(first[0]), int(end[0])), slice(int(first[1]), int(end[1]))

    @property
    def begins_at_cell(self) -> np.ndarray:
        """Whether each of ``chips`` begins at a cell, bool (M,): those that were moved to the edge of the scene may not."""
        begins: np.ndarray = (self.places % self.grid.cell_px == 0).all(axis=1)
        return begins


def read_scene_cells(scene_id: str, pairs: Pairs, inputs: CellInputs) -> SceneCells:
    """Read the cells of a scene.

    Raises:
        MissingInputError: an input has not been made.
        DamagedOutputError: a table is not what was written.
        AuditError: vectors or land cover of cells were not kept, or are of other cells than each other.
    """
    vectors = embedding_outputs(inputs.embeddings).path(scene_id, CELL_MAP)
    if not vectors.is_file():
        raise AuditError(
            f"{vectors}: no vectors of cells. An audit of cells reads them: set `embeddings.cells: true` and run `geokr embed`, or leave "
            "`map_audit.cells` out."
        )
    where = chip_outputs(inputs.chips).table(scene_id, ["chip_id", *CHIP_PLACES]).to_pandas()
    grid = CellGrid.of_chips(where)
    squares = _squares(scene_id, where["chip_id"].tolist(), inputs.proportions, grid.per_chip)
    sums, number = (
        np.zeros((grid.rows, grid.columns, len(pairs.classes)), np.float32),
        np.zeros((grid.rows, grid.columns)),
    )
    for (row, column), own in zip(grid.places.tolist(), squares, strict=True):
        if row % grid.cell_px == column % grid.cell_px == 0:
            part = _part(row // grid.cell_px, column // grid.cell_px, grid.per_chip)
            sums[part] += own
            number[part] += 1
    total = sums.sum(axis=-1)
    known = total >= inputs.min_known_fraction * _WHOLE * np.maximum(number, 1)
    mine = np.flatnonzero((pairs.chips["scene_id"] == scene_id).to_numpy())
    order = where.reset_index().set_index("chip_id")["index"].reindex(pairs.chips["chip_id"].iloc[mine]).to_numpy()
    places = grid.places[order]
    cells = SceneCells(
        vectors, grid, mine, places, np.full(total.shape, -1), sums / np.maximum(total, 1e-9)[..., None], known
    )
    # Those that begin at a cell come last: where chips overlap, a cell belongs to one of them.
    for k in np.argsort(cells.begins_at_cell, kind="stable"):
        cells.chip_of[cells.window(int(k))] = mine[k]
    cells.known[cells.chip_of < 0] = False
    return cells


def _part(row: int, column: int, side: int) -> tuple[slice, slice]:
    return slice(row, row + side), slice(column, column + side)


def _squares(scene_id: str, chip_ids: list[str], proportions: Path, side: int) -> np.ndarray:
    """Land cover of the cells of chips, uint8 (N, n, n, K), in the order of the ids."""
    outputs = proportion_outputs(proportions)
    if not outputs.path(scene_id, CELLS).is_file():
        raise AuditError(
            f"{outputs.path(scene_id, CELLS)}: no land cover of cells. Set `proportions.cells_per_side: {side}` and run "
            "`geokr proportions`, or leave `map_audit.cells` out."
        )
    squares = outputs.array(scene_id, CELLS)
    if squares.shape[1] != side:
        raise AuditError(
            f"scene {scene_id}: land cover of {squares.shape[1]} x {squares.shape[1]} cells a chip, vectors of {side} x {side}. "
            f"Set `proportions.cells_per_side: {side}` and run `geokr proportions`, or leave `map_audit.cells` out."
        )
    counted = {name: k for k, name in enumerate(outputs.table(scene_id, ["chip_id"])["chip_id"].to_pylist())}
    found: np.ndarray = squares[[counted[name] for name in chip_ids]]
    return found
