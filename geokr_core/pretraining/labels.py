"""The label of each chip as a run learns it, and how much each label weighs."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from geokr_core.levir_kr.audited import WEIGHT_COLUMN
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.coarsening import averaged_over_squares
from geokr_core.pretraining.geographic_types import GeographicTypes, fit_types
from geokr_core.pretraining.recipe import Recipe

CELLS_HALF_WEIGHT: Final = 4.0
"""Voting cells at which a label counts half: the sampling variance of a proportion falls as 1/n, and a saturating
n / (n + n0) is the inverse of that variance plus a constant part. n0 is a judgement, not a measurement."""

GAP_HALF_WEIGHT_DAYS: Final = 3652.5
"""Days between image and product after which a label counts half: ten years. A judgement, not a measurement."""


def constant_kl(train: np.ndarray, judged: np.ndarray | None = None) -> float:
    """Mean KL of the best constant prediction: the figure that a network which looks at its input must beat.

    The best constant is the mean of the training labels.

    Args:
        train: float (N, K) proportions that the constant is fitted to.
        judged: float (M, K) proportions that it is judged on; None: ``train``.

    Returns:
        Mean KL in nat. Infinity where ``judged`` holds a class that ``train`` never shows.
    """
    constant = train.astype(np.float64).mean(axis=0)
    labels = (train if judged is None else judged).astype(np.float64)
    shown = labels > 0
    ratio = np.divide(labels, constant, out=np.ones_like(labels), where=shown & (constant > 0))
    ratio[shown & (constant == 0)] = np.inf
    return float((labels * np.log(ratio, out=np.zeros_like(labels), where=shown)).sum(axis=1).mean())


def label_weights(catalogue: pd.DataFrame) -> np.ndarray:
    """How much each chip's label counts: known share × saturating number of voting cells × age of the label.

    ``known · n / (n + n0) · 2^(−gap / half-life)`` with ``known`` the share of ground whose land cover is known and
    among the classes, n the land-cover cells that voted and gap the days between image and product. A chip without
    a date gets the mean age factor of those that have one.

    Args:
        catalogue: columns ``known_fraction``, ``num_cells``, ``gap_days`` (may be NaN).

    Returns:
        float32 (N,), mean 1.
    """
    known = catalogue["known_fraction"].to_numpy(np.float64)
    cells = catalogue["num_cells"].to_numpy(np.float64)
    age = 0.5 ** (np.abs(catalogue["gap_days"].to_numpy(np.float64)) / GAP_HALF_WEIGHT_DAYS)
    dated = np.isfinite(age)
    age = np.where(dated, age, age[dated].mean() if dated.any() else 1.0)
    weights: np.ndarray = known * cells / (cells + CELLS_HALF_WEIGHT) * age
    mean = weights.mean()
    # Nothing is known about any label: weigh them alike rather than divide by zero.
    relative = weights / mean if mean > 0 else np.ones_like(weights)
    return relative.astype(np.float32)


@dataclass(frozen=True)
class RunLabels:
    """The label of each chip of the catalogue in one run.

    Attributes:
        proportions: float32 (N, K).
        weights: float32 (N,), mean 1 over the training chips: how much a chip's proportions count; None: all alike.
        audit_weights: float32 (N,), the part of it that an audit of the map gave: how much anything counts that the map says of the
            chip, its cells and its type too; None: no audit weighs.
        num_cells: float32 (N,), land-cover cells that voted.
        rows: int64 (N,), the chip that each chip has its label from.
        cells: uint8 (N, n, n, K), the land cover within chips; None: as the data set has it.
        types: int64 (N,), the type of ground of each chip, and their centres; None: not asked for.
    """

    proportions: np.ndarray
    weights: np.ndarray | None
    audit_weights: np.ndarray | None
    num_cells: np.ndarray
    rows: np.ndarray
    cells: np.ndarray | None = None
    types: tuple[np.ndarray, GeographicTypes] | None = None


def labels_of_data(data: LevirKR, train_rows: np.ndarray, recipe: Recipe, seed: int) -> RunLabels:
    """Labels of one run.

    Where the data set weighs chips by an audit, these weights count beside those of the recipe, and alone for what the recipe does
    not weigh.

    ``shuffled`` permutes the labels of the training chips, with their weights and the land cover within them, among these
    chips; everything else of the run is as it is for ``geokr``. ``label_resolution_m`` averages the land cover of training
    chips over squares. Validation chips keep their own.
    """
    rows = np.arange(len(data.catalogue))
    if recipe.labels == "shuffled":
        rows[train_rows] = np.random.default_rng([seed, 1]).permutation(train_rows)
    weights = np.ones(len(rows), dtype=np.float32)
    training = data.catalogue.iloc[train_rows]
    by_audit = WEIGHT_COLUMN in training  # asked for in `levir_kr.audit`, whatever the recipe weighs by
    if recipe.label_weighting:
        weights[train_rows] = label_weights(training)
    audit_weights = None
    if by_audit:
        audited = training[WEIGHT_COLUMN].to_numpy(np.float32)
        weights[train_rows] = _mean_one(weights[train_rows] * audited)
        audit_weights = np.ones(len(rows), dtype=np.float32)
        audit_weights[train_rows] = _mean_one(audited)
        audit_weights = audit_weights[rows]
    num_cells = data.catalogue["num_cells"].to_numpy(np.float32)
    weigh = recipe.label_weighting or by_audit
    types = _types(data, train_rows, recipe)
    if types is not None:
        types = types[0][rows], types[1]
    proportions, cells = _at_resolution(data, train_rows, recipe.label_resolution_m)
    return RunLabels(
        proportions[rows], weights[rows] if weigh else None, audit_weights, num_cells[rows], rows, cells, types
    )


def _at_resolution(data: LevirKR, train_rows: np.ndarray, side_m: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Proportions (N, K) and cells of the data set with those of training chips averaged over squares; None: the cells as they are."""
    cells = None if side_m is None else data.cells(np.arange(len(data.catalogue)))
    if side_m is None or cells is None:  # the latter is refused, with words, before this
        return data.proportions, None
    cells[train_rows] = averaged_over_squares(
        data.catalogue.iloc[train_rows], cells[train_rows], data.chip_size_px, side_m
    )
    shares = cells[train_rows].mean(axis=(1, 2), dtype=np.float64)
    known = shares.sum(axis=1, keepdims=True)
    proportions = data.proportions.copy()
    proportions[train_rows] = np.divide(shares, known, out=np.zeros_like(shares), where=known > 0)
    return proportions, cells


def _types(data: LevirKR, train_rows: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, GeographicTypes] | None:
    """The type of each chip, found among the training chips."""
    if recipe.types_weight == 0:
        return None
    lon, lat = (data.catalogue[name].to_numpy(np.float64) for name in ("lon", "lat"))
    proportions = data.proportions
    factors = recipe.types_land_cover, recipe.types_place
    types = fit_types(proportions[train_rows], lon[train_rows], lat[train_rows], recipe.num_types, *factors)
    return types.of(proportions, lon, lat), types


def _mean_one(weights: np.ndarray) -> np.ndarray:
    mean = weights.mean(dtype=np.float64)
    # Every label was judged wrong: weigh them alike rather than divide by zero.
    return (weights / mean).astype(np.float32) if mean > 0 else np.ones_like(weights)
