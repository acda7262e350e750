"""Baselines that see no land cover: SimCLR and MoCo, with lightly's losses and heads, in the same loop.

SimCLR: Chen and others 2020. MoCo: He and others 2020, version 2; its key network is the loop's averaged teacher,
which predicts in eval mode, so that BatchNorm cannot tell which keys share a batch with the query (their shuffling
across GPUs serves the same end). Both crop their two views independently.
"""

from typing import Any

import torch
from torch import Tensor

from geokr_core.pretraining.objectives.network import PROJECTION_DIM, Network
from geokr_core.pretraining.objectives.objective import Forward, Objective, Seen
from geokr_core.pretraining.recipes import Recipe


def contrast(recipe: Recipe, *, distributed: bool, remembers: bool = False) -> Any:  # lightly ships no types
    """The loss that tells two views of a chip from all other chips of the batch, and of a memory where it has one."""
    from lightly.loss import NTXentLoss  # type: ignore[import-untyped]

    size = (recipe.memory_bank_size, PROJECTION_DIM) if remembers else 0
    return NTXentLoss(recipe.temperature, memory_bank_size=size, gather_distributed=distributed)


class ContrastiveObjective(Objective):
    """Two views of a chip belong together, those of other chips do not."""

    terms = ("loss",)

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool) -> None:
        """Set up the loss; MoCo's memory starts with random directions from torch's global generator.

        Args:
            recipe: temperature, and how many chips MoCo remembers.
            device: of the networks.
            distributed: also compare with the chips of the other processes.
        """
        self._moco = recipe.objective == "moco"
        self._loss = contrast(recipe, distributed=distributed, remembers=self._moco).to(device)

    def losses(self, network: Network, student: Forward, teacher: Forward, seen: Seen, step: int) -> Tensor:
        """See `Objective.losses`."""
        if self._moco:
            query, key = student(seen.student).logits, teacher(seen.teacher).logits
        else:
            both = student(torch.cat([seen.student, seen.teacher])).logits
            query, key = both.chunk(2)
        loss: Tensor = self._loss(query.float(), key.float())
        return loss[None]

    def state(self) -> dict[str, Tensor]:
        """MoCo's memory and the place that is written next."""
        memory = self._loss.memory_bank
        return {"bank": memory.bank, "bank_place": memory.bank_ptr} if self._moco else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up MoCo's memory."""
        if self._moco:
            memory = self._loss.memory_bank
            memory.bank.copy_(state["bank"])
            memory.bank_ptr.copy_(state["bank_place"])
