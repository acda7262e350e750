"""Average precision against figures by hand and against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from geokr_core.evaluation.learning.box_metrics import Boxes, Matched


def boxes(*rows: tuple[float, ...], labels: list[int], scores: list[float] | None = None) -> Boxes:
    found = None if scores is None else np.array(scores)
    return Boxes(np.array(rows, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=np.int64), found)


def random_images(num_images: int, seed: int) -> tuple[list[Boxes], list[Boxes]]:
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(num_images):
        corner = rng.uniform(0, 80, (5, 2))
        size = rng.uniform(8, 30, (5, 2))
        rows = np.concatenate([corner, corner + size], axis=1)
        labels = rng.integers(1, 4, 5)
        truth.append(Boxes(rows, labels))
        moved = np.concatenate([rows + rng.normal(0, 2, rows.shape), rows[:2] + 40])
        guessed = np.concatenate([labels, rng.integers(1, 4, 2)])
        found.append(Boxes(moved, guessed, rng.uniform(0.1, 1, 7)))
    return truth, found


def test_average_precision_by_hand() -> None:
    # Class 1: one of two true boxes found by the best of two guesses, at IoU 1; recall 0 … 0.5 has precision 1, above
    # it 0: of COCO's 101 recall points, 51 have precision 1. Class 2: found, but behind a better scored miss: 0.5.
    truth = [boxes((0, 0, 10, 10), (50, 50, 60, 60), (20, 20, 40, 40), labels=[1, 1, 2])]
    found = [
        boxes(
            (0, 0, 10, 10),
            (80, 80, 90, 90),
            (20, 20, 40, 40),
            (60, 0, 70, 10),
            labels=[1, 1, 2, 2],
            scores=[0.9, 0.8, 0.5, 0.7],
        )
    ]
    result = Matched(truth, found, 3).precision()

    assert result.at_50[:2] == pytest.approx([51 / 101, 0.5])
    assert np.isnan(result.at_50[2])
    assert result.ap50 == pytest.approx((51 / 101 + 0.5) / 2)
    assert result.map == pytest.approx(result.ap50)


def test_a_loose_box_counts_at_half_overlap_and_not_above() -> None:
    truth = [boxes((0, 0, 10, 10), labels=[1])]
    found = [boxes((0, 0, 10, 6.2), labels=[1], scores=[0.9])]  # IoU 0.62: right at 0.50, 0.55 and 0.60 of ten
    result = Matched(truth, found, 1).precision()

    assert result.ap50 == pytest.approx(1.0)
    assert result.map == pytest.approx(0.3)


def test_average_precision_equals_torchmetrics() -> None:
    truth, found = random_images(6, seed=0)
    metric = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    metric.update(
        [
            {"boxes": torch.tensor(f.boxes), "labels": torch.tensor(f.labels), "scores": torch.tensor(f.scores)}
            for f in found
        ],
        [{"boxes": torch.tensor(t.boxes), "labels": torch.tensor(t.labels)} for t in truth],
    )
    wanted = metric.compute()
    result = Matched(truth, found, 3).precision()

    assert 0.1 < result.map < 0.9
    assert result.map == pytest.approx(float(wanted["map"]), abs=1e-6)
    assert result.ap50 == pytest.approx(float(wanted["map_50"]), abs=1e-6)
    assert result.coco == pytest.approx(wanted["map_per_class"].numpy(), abs=1e-6)


def test_resampled_images_score_like_a_set_that_holds_them_so_often() -> None:
    truth, found = random_images(4, seed=1)
    draw = [0, 2, 2, 3]
    matched = Matched(truth, found, 3)
    wanted = Matched([truth[k] for k in draw], [found[k] for k in draw], 3).precision()

    assert matched.precision(draw).map == pytest.approx(wanted.map)
    assert matched.precision().map == pytest.approx(Matched(truth, found, 3).precision().map)


def test_nothing_found_is_zero_and_nothing_true_is_no_class() -> None:
    truth = [boxes((0, 0, 10, 10), labels=[1])]
    nothing = [boxes(labels=[], scores=[])]

    assert Matched(truth, nothing, 2).precision().map == 0.0
    assert np.isnan(Matched(truth, nothing, 2).precision().coco[1])


def test_an_ignored_box_costs_nothing_found_or_not() -> None:
    rows = np.array([[0, 0, 10, 10], [40, 40, 60, 60]], dtype=np.float64)
    truth = [Boxes(rows, np.array([1, 1]), None, np.array([False, True]))]
    for extra in (False, True):
        keep = slice(None) if extra else slice(1)
        found = [Boxes(rows[keep], np.array([1, 1])[keep], np.array([0.5, 0.9])[keep])]
        assert Matched(truth, found, 1).precision().map == pytest.approx(1.0)
