"""Errors planted into the cells of chips, and how well an audit of cells finds the chips and the cells.

The errors are those of ``planting``, put on the ground: a gross one gives a chip the cells of another chip, a gentle one moves a
quarter to a half of its ground, around one cell, from one class to another.
"""

from typing import Final

import numpy as np

from geokr_core.audit.cell_judge import CellJudge, Trial, means_of_chips, scores_of_cells, with_cells
from geokr_core.audit.planting import LEAST_DISTANCE, MOVED, Found, Kind, found_of

_MOVED_CELL: Final = 0.5
"""Share of a cell's ground that is another class by a planted error, from which the cell is looked for."""


def plant_on_ground(
    shares: np.ndarray, kind: Kind, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Plant errors into chips of cells.

    Args:
        shares: float64 (N, n, n, K), the map's.
        kind: of error, see ``planting.plant``.
        fraction: of the chips.
        rng: draws.

    Returns:
        The map with errors, and float64 (N, n, n), the share of each cell that is another class now.
    """
    changed, means = shares.copy(), shares.mean(axis=(1, 2))
    for row in rng.permutation(len(shares))[: max(1, round(fraction * len(shares)))]:
        if kind == "gross":
            far = np.flatnonzero(np.abs(means - means[row]).sum(axis=1) >= LEAST_DISTANCE)
            if len(far):
                changed[row] = shares[rng.choice(far)]
        else:
            changed[row] = _gentle(shares[row], rng)
    return changed, np.abs(changed - shares).sum(axis=-1) / 2


def _gentle(own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side, num_classes = own.shape[0], own.shape[-1]
    wanted, mean = rng.uniform(*MOVED), own.mean(axis=(0, 1))
    source = int(mean.argmax())
    if mean[source] < wanted or num_classes < 2:
        return own
    target = rng.choice(np.delete(np.arange(num_classes), source))
    middle = rng.integers(0, side, 2)
    rows, columns = np.indices((side, side))
    distance = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 + rng.uniform(0, 0.1, (side, side))
    flat = own.reshape(-1, num_classes).copy()
    order = np.argsort(distance, axis=None)
    # Cell by cell from the middle on, until as much ground as is wanted has moved.
    before = np.cumsum(flat[order, source]) - flat[order, source]
    moved = np.clip(wanted * side * side - before, 0.0, flat[order, source])
    flat[order, source] -= moved
    flat[order, target] += moved
    return flat.reshape(own.shape)


def measure_on_ground(
    trial: Trial, kind: Kind, fraction: float, rng: np.random.Generator
) -> tuple[Found, Found] | None:
    """Plant errors, learn and judge anew, and count what is found.

    Args:
        trial: chips of cells.
        kind: of error.
        fraction: of the chips.
        rng: draws.

    Returns:
        What was found of the chips, whose scores know their cells, and of the cells; None where no error of this kind can be
        planted.
    """
    changed, moved = plant_on_ground(trial.shares, kind, fraction, rng)
    looked_for = (moved >= _MOVED_CELL)[trial.known]
    planted = moved.mean(axis=(1, 2)) >= MOVED[0] - 1e-9
    if not looked_for.any() or not planted.any():
        return None
    flat = trial.known.ravel()
    judged = CellJudge.learned(trial, changed)(
        trial.vectors.reshape(-1, trial.vectors.shape[-1]),
        changed.reshape(-1, changed.shape[-1]),
        trial.folds.ravel(),
    )
    shape = trial.known.shape
    scores = scores_of_cells(judged.residual.reshape(shape), judged.expected.reshape(shape), flat.reshape(shape))
    means = changed.mean(axis=(1, 2))
    means /= np.maximum(means.sum(axis=1, keepdims=True), 1e-12)
    own = trial.chip_judge(means).score
    of_chips = with_cells(own, means_of_chips(scores))
    return found_of(of_chips, planted, kind), found_of(scores[trial.known], looked_for, kind)
