"""The losses that objectives are made of: student against land-cover proportions, teacher and other chips.

Logits are float (B, K) before the softmax; proportions are float32 (B, K) whose rows sum to 1 over the known ground.
All losses are in nat. No network here, and no schedule.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geokr_core.pretraining.contrast import NTXent
from geokr_core.pretraining.recipe import Consistency, Reduction


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
    return _reduce(_weighed(per_chip, weights), logits.shape[1], reduction)


def types_loss(logits: Tensor, types: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the type of ground of each chip.

    Args:
        logits: float (B, T).
        types: int64 (B,).
        weights: float32 (B,), see `supervised_loss`.

    Returns:
        A scalar.
    """
    return _weighed(F.cross_entropy(logits.float(), types, reduction="none"), weights).mean()


def dense_loss(logits: Tensor, parts: Tensor, reduction: Reduction, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the land cover of each feature-map cell; a cell counts as much as its ground is known.

    Args:
        logits: float (B, H, W, K) of each cell.
        parts: float32 (B, H, W, K), share of each class in the cell's ground; sums below 1 where some is unknown.
        reduction: see `Reduction`.
        weights: float32 (B,), how much the cells of each chip count, see `supervised_loss`.

    Returns:
        A scalar: mean over all cells, so that one counts the same in any company, as a chip does in `supervised_loss`.
    """
    # Unnormalised shares weigh each cell by its known share by themselves.
    per_cell = -(parts * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
    return _reduce(_weighed(per_cell, weights), logits.shape[-1], reduction)


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


def _weighed(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (B, ...) times the weight of their chip.

    Not divided by the batch's own weights: a chip counts the same in any company.
    """
    return losses if weights is None else losses * weights.reshape(-1, *[1] * (losses.ndim - 1))


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


def contrastive_loss(temperature: float, *, distributed: bool, memory: tuple[int, int] | None = None) -> Any:
    """The loss between two views of a chip and all other chips of the batch (NT-Xent, Chen and others 2020).

    Args:
        temperature: of the softmax over similarities.
        distributed: compare with the chips of the other processes, too.
        memory: chips that are remembered as further negatives, and the length of their vectors; None: none are.

    Returns:
        A module: two float32 (B, P) → a scalar. With a memory it is lightly's, which ships no types.
    """
    if memory is None:
        return NTXent(temperature, distributed=distributed)
    from lightly.loss import NTXentLoss  # type: ignore[import-untyped]

    return NTXentLoss(temperature, memory_bank_size=memory, gather_distributed=distributed)
