"""Baselines that see no land cover: SimCLR and MoCo, in the same loop; MoCo with lightly's memory and head.

SimCLR: Chen and others 2020. MoCo: He and others 2020, version 2; its key network is the loop's averaged teacher,
which predicts in eval mode, so that BatchNorm cannot tell which keys share a batch with the query (their shuffling
across GPUs serves the same end). Both crop their two views independently.
"""

from typing import ClassVar

import torch
from torch import Tensor

from geokr_core.pretraining.losses import contrastive_loss
from geokr_core.pretraining.network import PROJECTION_DIM, Network
from geokr_core.pretraining.objective import Forward, Inputs, Objective
from geokr_core.pretraining.recipe import Recipe


class SimCLRObjective(Objective):
    """Two views of a chip belong together, those of other chips of the batch do not."""

    learns_land_cover: ClassVar[bool] = False
    terms = ("loss",)

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        """See `Objective`; ``distributed``: chips of the other processes are compared with, too."""
        self._loss = contrastive_loss(recipe.temperature, distributed=distributed).to(device)

    def losses(self, network: Network, student: Forward, teacher: Forward, inputs: Inputs, step: int) -> Tensor:
        """See `Objective.losses`."""
        first, second = student(torch.cat([inputs.student, inputs.teacher])).logits.chunk(2)
        loss: Tensor = self._loss(first.float(), second.float())
        return loss[None]


class MoCoObjective(Objective):
    """A view belongs with the averaged network's view of the same chip, and not with a memory of chips seen before."""

    learns_land_cover: ClassVar[bool] = False
    terms = ("loss",)

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        """See `Objective`; the memory starts with random directions from torch's global generator."""
        memory = (recipe.memory_bank_size, PROJECTION_DIM)
        self._loss = contrastive_loss(recipe.temperature, distributed=distributed, memory=memory).to(device)

    def losses(self, network: Network, student: Forward, teacher: Forward, inputs: Inputs, step: int) -> Tensor:
        """See `Objective.losses`."""
        query, key = student(inputs.student).logits, teacher(inputs.teacher).logits
        loss: Tensor = self._loss(query.float(), key.float())
        return loss[None]

    def state(self) -> dict[str, Tensor]:
        """The memory, and the place that is written next."""
        memory = self._loss.memory_bank
        return {"bank": memory.bank, "bank_place": memory.bank_ptr}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over the memory."""
        memory = self._loss.memory_bank
        memory.bank.copy_(state["bank"])
        memory.bank_ptr.copy_(state["bank_place"])
