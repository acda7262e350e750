"""What student and teacher are held to: land-cover proportions, each other, and how much each label counts.

Logits are float (B, K) before the softmax; proportions are float32 (B, K) whose rows sum to 1 over the known ground.
All losses are in nat. No network here, and no schedule.
"""

from typing import Final, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

Consistency = Literal["kl_teacher_student", "kl_student_teacher", "ce_student_teacher", "none"]
Reduction = Literal["per_sample", "per_element"]
"""``per_sample``: mean over the batch; ``per_element``: divided by the number of classes too, as first published."""

CELLS_HALF_WEIGHT: Final = 4.0
"""Voting cells at which a label counts half: the sampling variance of a proportion falls as 1/n, and a saturating
n / (n + n0) is the inverse of that variance plus a constant part. n0 is a judgement, not a measurement."""

GAP_HALF_WEIGHT_DAYS: Final = 3652.5
"""Days between image and product after which a label counts half: ten years. A judgement, not a measurement."""


def supervised_loss(logits: Tensor, proportions: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with soft labels: KL(proportions ‖ softmax) plus the labels' own entropy, which is constant.

    Args:
        logits: float (B, K) of the student.
        proportions: float32 (B, K); a row of zeros adds nothing.
        reduction: see `Reduction`.
        weights: float32 (B,), how much each chip's label counts, 1 on average over the data set; None: all alike.

    Returns:
        A scalar.
    """
    per_chip = -(proportions * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    if weights is not None:
        # Divided by the batch size and not by the batch's own weights: a chip counts the same in any company.
        per_chip = per_chip * weights
    return _reduce(per_chip, logits.shape[1], reduction)


def dense_loss(logits: Tensor, parts: Tensor, reduction: Reduction) -> Tensor:
    """Cross-entropy with the land cover of each feature-map cell; a cell counts as much as its ground is known.

    Args:
        logits: float (B, H, W, K) of each cell.
        parts: float32 (B, H, W, K), share of each class in the cell's ground; sums below 1 where some is unknown.
        reduction: see `Reduction`.

    Returns:
        A scalar: mean over all cells, so that one counts the same in any company, as a chip does in `supervised_loss`.
    """
    # Unnormalised shares weigh each cell by its known share by themselves.
    return _reduce(-(parts * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1), logits.shape[-1], reduction)


def consistency_loss(student: Tensor, teacher: Tensor, kind: Consistency, reduction: Reduction) -> Tensor:
    """How far student and teacher disagree; the gradient reaches the student alone.

    With p_s and p_t the two softmaxes:

    * ``kl_teacher_student``: KL(p_t ‖ p_s) = Σ p_t (log p_t − log p_s), least where both are equal.
    * ``kl_student_teacher``: KL(p_s ‖ p_t) = Σ p_s (log p_s − log p_t), least where both are equal.
    * ``ce_student_teacher``: −Σ p_s log p_t, the form first published. It is least where p_s puts everything on the
      teacher's largest class: joined with the supervised loss it sharpens 0.6 / 0.4 to 0.82 / 0.18.
    * ``none``: zero.

    Args:
        student: float (B, K) logits.
        teacher: float (B, K) logits.
        kind: one of the above.
        reduction: see `Reduction`.

    Returns:
        A scalar.
    """
    if kind == "none":
        return student.new_zeros((), dtype=torch.float32)
    log_s = F.log_softmax(student.float(), dim=1)
    log_t = F.log_softmax(teacher.detach().float(), dim=1)
    if kind == "kl_teacher_student":
        per_chip = (log_t.exp() * (log_t - log_s)).sum(dim=1)
    elif kind == "kl_student_teacher":
        per_chip = (log_s.exp() * (log_s - log_t)).sum(dim=1)
    else:
        per_chip = -(log_s.exp() * log_t).sum(dim=1)
    return _reduce(per_chip, student.shape[1], reduction)


def _reduce(per_chip: Tensor, num_classes: int, reduction: Reduction) -> Tensor:
    mean = per_chip.mean()
    return mean / num_classes if reduction == "per_element" else mean


def label_kl(logits: Tensor, proportions: Tensor) -> Tensor:
    """KL(proportions ‖ softmax(logits)) of each chip: how wrong a prediction is, whatever the labels' entropy.

    Args:
        logits: float (B, K).
        proportions: float32 (B, K).

    Returns:
        float32 (B,), at least 0.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return (torch.xlogy(proportions, proportions) - proportions * log_p).sum(dim=1)


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
