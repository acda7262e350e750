"""Fitting a head on the training places of Levir-KR, and judging it on places that were held out.

Half of the held-out places calibrate the intervals, the other half test them: a place is in one of the two only.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from geokr_core.embeddings.cells import cells_per_side
from geokr_core.embeddings.encoder import BATCH_SIZE, Encoder
from geokr_core.embeddings.regression import fit, place_folds
from geokr_core.errors import PredictionError
from geokr_core.land_cover_shares.config import LandCoverSharesConfig
from geokr_core.land_cover_shares.head import Head, describe_head
from geokr_core.land_cover_shares.intervals import conformal_factors, covered, interval
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.step.digests import text_digest
from geokr_core.step.selection import even_selection

_FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out places.

    Attributes:
        calibration: int64, rows of the places that intervals are calibrated on.
        test: int64, rows of those that they are tested on; empty where a single place is held out.
        num_places: held-out places.
    """

    calibration: np.ndarray
    test: np.ndarray
    num_places: int

    @property
    def judged(self) -> np.ndarray:
        """Rows that a head is judged on: those of the test, or of the calibration where there are no others."""
        return self.test if len(self.test) else self.calibration


@dataclass(frozen=True)
class Judgement:
    """How good a head is on held-out places.

    Attributes:
        num_training_chips: chips that the head was fitted on.
        num_calibration_chips: chips that its intervals were calibrated on.
        num_test_chips: chips that it was judged on; of places that were used for nothing else, unless a single one is held out.
        num_held_out_places: places of both.
        residual: mean over test chips of the sum of absolute differences to the map's shares, 0 to 2.
        baseline_residual: the same of the mean shares of the training chips, given to every chip.
        coverage: share of test chips' shares within their intervals; NaN where no place is left to test them.
        coverage_by_class: the same a class.
        mean_width: mean width of the intervals.
    """

    num_training_chips: int
    num_calibration_chips: int
    num_test_chips: int
    num_held_out_places: int
    residual: float
    baseline_residual: float
    coverage: float
    coverage_by_class: dict[str, float]
    mean_width: float

    def as_json(self) -> dict[str, object]:
        """Plain values; a coverage that was not measured is null."""
        content = asdict(self)
        if np.isnan(self.coverage):
            content |= {"coverage": None, "coverage_by_class": {}}
        return content


def held_out(dataset: LevirKR) -> HeldOut:
    """Divide the held-out places into those that calibrate and those that test, by the order of their hashes.

    Raises:
        PredictionError: no place is held out.
    """
    rows = dataset.rows_of("validation")
    if not len(rows):
        raise PredictionError(
            f"{dataset.folder}: no place of this Levir-KR is held out, so that neither error nor intervals could be measured. "
            "Raise `levir_kr.validation_fraction`, or lower `levir_kr.place_size_deg`, and freeze it again."
        )
    lonlat = dataset.catalogue[["lon", "lat"]].to_numpy()[rows]
    cells = np.floor(lonlat / place_size_deg(dataset)).astype(int)
    unique, inverse = np.unique(cells, axis=0, return_inverse=True)
    order = sorted(range(len(unique)), key=lambda k: text_digest([int(unique[k][0]), int(unique[k][1])]))
    tests = np.zeros(len(unique), dtype=bool)
    tests[order[1::2]] = True
    is_test = tests[inverse.ravel()]
    return HeldOut(rows[~is_test], rows[is_test], len(unique))


def place_size_deg(dataset: LevirKR) -> float:
    """Size of the cells by which the data set was split."""
    return float(dataset.manifest["config"]["levir_kr"]["place_size_deg"])


def vectors_of(dataset: LevirKR, rows: np.ndarray, encoder: Encoder, workers: int) -> np.ndarray:
    """Mean vectors of the cells of chips, float32 (N, D)."""
    side = cells_per_side(dataset.chip_size_px)

    def encode(batch: np.ndarray) -> np.ndarray:
        found: np.ndarray = encoder.encode_cells(batch, side).mean(axis=(1, 2))
        return found

    return np.concatenate(_in_batches(dataset, rows, encoder, workers, encode))


def predicted(dataset: LevirKR, rows: np.ndarray, encoder: Encoder, head: Head, workers: int) -> np.ndarray:
    """Shares of chips as a map gives them: the mean over their cells, float64 (N, K)."""
    side = cells_per_side(dataset.chip_size_px)

    def encode(batch: np.ndarray) -> np.ndarray:
        found: np.ndarray = head.cell_shares(encoder.encode_cells(batch, side)).mean(axis=(1, 2), dtype=np.float64)
        return found

    return np.concatenate(_in_batches(dataset, rows, encoder, workers, encode))


def _in_batches(
    dataset: LevirKR, rows: np.ndarray, encoder: Encoder, workers: int, encode: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for first in range(0, len(rows), 16 * BATCH_SIZE):
        images = dataset.images(rows[first : first + 16 * BATCH_SIZE])
        found += list(encoder.batches(images, workers, encode))
    return found


def fit_head(
    config: LandCoverSharesConfig, dataset: LevirKR, encoder: Encoder, places: HeldOut, workers: int
) -> tuple[Head, int]:
    """Fit a head on training places and calibrate its intervals on held-out ones.

    Returns:
        The head, and the number of chips that it was fitted on.
    """
    rows = even_selection(dataset.rows_of("train"), config.max_training_chips)
    lonlat = dataset.catalogue[["lon", "lat"]].to_numpy()[rows]
    folds = place_folds(lonlat[:, 0], lonlat[:, 1], place_size_deg(dataset), _FOLDS)
    labels = dataset.proportions[rows].astype(np.float64)
    linear = fit(vectors_of(dataset, rows, encoder, workers), labels, folds)
    about = describe_head(dataset, encoder, config.confidence)
    blind = Head(linear, np.zeros(len(dataset.classes)), about)
    given = predicted(dataset, places.calibration, encoder, blind, workers)
    factors = conformal_factors(given, dataset.proportions[places.calibration], config.confidence)
    return Head(linear, factors, about), len(rows)


def judge(
    head: Head, dataset: LevirKR, encoder: Encoder, places: HeldOut, num_training_chips: int, workers: int
) -> Judgement:
    """Judge a head on the test places; on the calibration places, without a coverage, where there are no others."""
    rows = places.judged
    given, true = predicted(dataset, rows, encoder, head, workers), dataset.proportions[rows].astype(np.float64)
    mean = dataset.proportions[dataset.rows_of("train")].mean(axis=0, dtype=np.float64)
    inside = covered(given, true, head.factors)
    measured = len(places.test) > 0
    low, high = interval(given, head.factors)
    return Judgement(
        num_training_chips=num_training_chips,
        num_calibration_chips=len(places.calibration),
        num_test_chips=len(rows),
        num_held_out_places=places.num_places,
        residual=round(float(np.abs(given - true).sum(axis=1).mean()), 4),
        baseline_residual=round(float(np.abs(mean - true).sum(axis=1).mean()), 4),
        coverage=round(float(inside.mean()), 4) if measured else float("nan"),
        coverage_by_class={
            name: round(float(inside[:, k].mean()), 4) for k, name in enumerate(head.classes) if measured
        },
        mean_width=round(float((high - low).mean()), 4),
    )
