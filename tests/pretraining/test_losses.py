"""Losses against hand-computed numbers, and where they come to rest."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from geokr_core.pretraining.labels import CELLS_HALF_WEIGHT, GAP_HALF_WEIGHT_DAYS, constant_kl, label_weights
from geokr_core.pretraining.losses import consistency_loss, label_kl, supervised_loss


def _logits(*probabilities: list[float]) -> Tensor:
    """Logits whose softmax is the given rows; a constant is added, which must not matter."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + 3.0


STUDENT, TEACHER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
LN2 = math.log(2)


def test_supervised_loss_by_hand() -> None:
    logits = _logits([0.5, 0.5], [0.25, 0.75])
    labels = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    # chip 1: ln 2; chip 2: ln 4
    assert float(supervised_loss(logits, labels, "per_sample")) == pytest.approx(1.5 * LN2, rel=1e-6)
    assert float(supervised_loss(logits, labels, "per_element")) == pytest.approx(0.75 * LN2, rel=1e-6)


def test_label_weights_multiply_chips() -> None:
    logits = _logits([0.5, 0.5], [0.25, 0.75])
    labels = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    weighted = supervised_loss(logits, labels, "per_sample", torch.tensor([1.5, 0.5]))
    assert float(weighted) == pytest.approx((1.5 * LN2 + 0.5 * 2 * LN2) / 2, rel=1e-6)


def test_a_label_of_zeros_adds_nothing() -> None:
    logits = _logits([0.5, 0.5], [0.25, 0.75])
    labels = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    assert float(supervised_loss(logits, labels, "per_sample")) == pytest.approx(0.5 * LN2, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # p_s = (1/2, 1/4, 1/4), p_t = (1/4, 1/4, 1/2): logarithms are -ln 2 and -2 ln 2
        ("kl_teacher_student", (0.25 * (-2 + 1) + 0.25 * 0 + 0.5 * (-1 + 2)) * LN2),
        ("kl_student_teacher", (0.5 * (-1 + 2) + 0.25 * 0 + 0.25 * (-2 + 1)) * LN2),
        ("ce_student_teacher", (0.5 * 2 + 0.25 * 2 + 0.25 * 1) * LN2),
        ("none", 0.0),
    ],
)
def test_consistency_by_hand(kind: str, expected: float) -> None:
    student, teacher = _logits(STUDENT), _logits(TEACHER)
    assert float(consistency_loss(student, teacher, kind, "per_sample")) == pytest.approx(expected, rel=1e-6)
    assert float(consistency_loss(student, teacher, kind, "per_element")) == pytest.approx(expected / 3, rel=1e-6)


def test_the_two_kls_are_not_the_same() -> None:
    student, teacher = _logits([0.9, 0.1]), _logits([0.5, 0.5])
    forward = float(consistency_loss(student, teacher, "kl_teacher_student", "per_sample"))
    backward = float(consistency_loss(student, teacher, "kl_student_teacher", "per_sample"))
    assert forward == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)
    assert backward == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6)


@pytest.mark.parametrize("kind", ["kl_teacher_student", "kl_student_teacher", "ce_student_teacher"])
def test_only_the_student_gets_a_gradient(kind: str) -> None:
    student, teacher = _logits(STUDENT).requires_grad_(), _logits(TEACHER).requires_grad_()
    consistency_loss(student, teacher, kind, "per_sample").backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


def test_released_gradient_is_there_even_where_both_agree() -> None:
    student = _logits(STUDENT).requires_grad_()
    consistency_loss(student, _logits(STUDENT), "ce_student_teacher", "per_element").backward()
    p = torch.tensor(STUDENT, dtype=torch.float64)
    surprise = -p.log()
    torch.testing.assert_close(student.grad[0], p * (surprise - (p * surprise).sum()) / 3, rtol=1e-5, atol=1e-7)
    student = _logits(STUDENT).requires_grad_()
    consistency_loss(student, _logits(STUDENT), "kl_teacher_student", "per_element").backward()
    assert float(student.grad.abs().max()) < 1e-7


def _rest(proportions: list[float], kind: str, *, teacher_follows: bool) -> list[float]:
    """Where free logits come to rest under both losses, the teacher equal to the labels or to the student."""
    labels = torch.tensor([proportions])
    logits = labels.log().requires_grad_()
    for _ in range(1200 if teacher_follows else 300):
        teacher = logits.detach() if teacher_follows else labels.log()
        loss = supervised_loss(logits, labels, "per_sample") + consistency_loss(logits, teacher, kind, "per_sample")
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - slope).detach().requires_grad_()
    return [round(p, 2) for p in logits.softmax(dim=1)[0].tolist()]


@pytest.mark.parametrize(
    ("proportions", "follows", "stays"),
    [
        ([0.6, 0.4], [0.82, 0.18], [0.69, 0.31]),
        ([0.7, 0.3], [0.90, 0.10], [0.82, 0.18]),
        ([0.8, 0.2], [0.95, 0.05], [0.91, 0.09]),
        ([0.4, 0.3, 0.2, 0.1], [0.78, 0.13, 0.07, 0.03], [0.53, 0.29, 0.14, 0.05]),
        ([0.34, 0.33, 0.33], [0.61, 0.19, 0.19], [0.35, 0.33, 0.33]),
    ],
)
def test_released_form_sharpens_and_kl_does_not(
    proportions: list[float], follows: list[float], stays: list[float]
) -> None:
    assert _rest(proportions, "ce_student_teacher", teacher_follows=True) == pytest.approx(follows, abs=0.011)
    assert _rest(proportions, "ce_student_teacher", teacher_follows=False) == pytest.approx(stays, abs=0.011)


@pytest.mark.parametrize("kind", ["kl_teacher_student", "kl_student_teacher"])
def test_with_either_kl_the_labels_themselves_are_the_rest(kind: str) -> None:
    labels = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    for start in (labels.log(), torch.tensor([[2.0, -1.0, 0.0, 1.0]])):
        logits = start.clone().requires_grad_()
        for _ in range(300):
            loss = supervised_loss(logits, labels, "per_sample")
            loss = loss + consistency_loss(logits, logits.detach(), kind, "per_sample")
            (slope,) = torch.autograd.grad(loss, logits)
            logits = (logits - slope).detach().requires_grad_()
        torch.testing.assert_close(logits.softmax(dim=1).detach(), labels, atol=1e-3, rtol=0)


def test_label_kl_is_zero_at_the_labels_and_ignores_their_entropy() -> None:
    labels = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    at_labels = torch.tensor([[0.0, 0.0, -80.0], [80.0, 0.0, 0.0]])
    torch.testing.assert_close(label_kl(at_labels, labels), torch.zeros(2), atol=1e-6, rtol=0)
    even = torch.zeros(2, 3)
    torch.testing.assert_close(label_kl(even, labels), torch.tensor([math.log(3) - LN2, math.log(3)]))


def test_constant_kl_by_hand() -> None:
    # Mean is (1/2, 1/2): each one-hot chip is ln 2 away.
    assert constant_kl(np.eye(2)) == pytest.approx(LN2)
    assert constant_kl(np.full((5, 2), 0.5)) == pytest.approx(0.0)
    # Constant (3/4, 1/4) judged on a chip of the rarer class.
    train = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert constant_kl(train, np.array([[0.0, 1.0]])) == pytest.approx(math.log(4))
    assert constant_kl(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])) == math.inf


def test_no_constant_beats_the_constant_of_constant_kl() -> None:
    rng = np.random.default_rng(0)
    labels = rng.dirichlet([0.3] * 4, size=50)
    best = constant_kl(labels)
    for other in rng.dirichlet([2.0] * 4, size=200):
        kl = (labels * np.log(np.maximum(labels, 1e-300) / other)).sum(axis=1).mean()
        assert kl >= best


def _catalogue(**columns: list[float]) -> pd.DataFrame:
    rows = len(next(iter(columns.values())))
    plain = {"known_fraction": 1.0, "num_cells": 100.0, "gap_days": 0.0}
    return pd.DataFrame({key: columns.get(key, [value] * rows) for key, value in plain.items()})


@pytest.mark.parametrize(
    ("columns", "ratio"),
    [
        ({"known_fraction": [1.0, 0.5]}, 0.5),
        ({"num_cells": [1e9, CELLS_HALF_WEIGHT]}, 0.5),
        ({"gap_days": [0.0, GAP_HALF_WEIGHT_DAYS]}, 0.5),
        ({"gap_days": [0.0, -GAP_HALF_WEIGHT_DAYS]}, 0.5),
    ],
)
def test_doubtful_labels_count_less(columns: dict[str, list[float]], ratio: float) -> None:
    weights = label_weights(_catalogue(**columns))
    assert weights[1] / weights[0] == pytest.approx(ratio, rel=1e-5)
    assert weights.mean() == pytest.approx(1.0)
    assert weights.dtype == np.float32


def test_voting_cells_saturate() -> None:
    weights = label_weights(_catalogue(num_cells=[1.0, 10.0, 1000.0, 10000.0]))
    assert weights[1] / weights[0] > 3
    assert weights[3] / weights[2] < 1.01


def test_a_chip_without_a_date_counts_like_the_average_dated_one() -> None:
    weights = label_weights(_catalogue(gap_days=[0.0, GAP_HALF_WEIGHT_DAYS, float("nan")]))
    assert weights[2] == pytest.approx((weights[0] + weights[1]) / 2)
    assert label_weights(_catalogue(gap_days=[float("nan")] * 3)).tolist() == [1.0, 1.0, 1.0]
