"""Learning from a land-cover product: the chip's proportions, the teacher, feature-map cells, learned confusions."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geokr_core.networks.augmentation import cells_under
from geokr_core.pretraining.contrast import NTXent
from geokr_core.pretraining.correction import aggregation_loss
from geokr_core.pretraining.losses import (
    consistency_loss,
    dense_loss,
    label_kl,
    supervised_loss,
    types_loss,
)
from geokr_core.pretraining.network import Network, Outputs
from geokr_core.pretraining.objective import Forward, Inputs, Objective
from geokr_core.pretraining.recipe import Recipe


class LandCoverObjective(Objective):
    """Proportions, consistency with the teacher, and what a recipe adds to them."""

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        """See `Objective`; ``distributed``: contrast compares with the chips of the other processes, too."""
        self._recipe = recipe
        self.terms = ("loss", "supervised_loss", "consistency_loss", "train_kl", "label_entropy")
        self.terms += ("teacher_entropy",) if recipe.teacher_predicts else ("student_entropy",)
        self.terms += ("dense_loss",) if recipe.dense_weight > 0 else ()
        self.terms += ("types_loss",) if recipe.types_weight > 0 else ()
        self.terms += ("identity_loss", "aggregation_loss") if recipe.correction else ()
        self.terms += ("contrast_loss",) if recipe.contrast_weight > 0 else ()
        contrasts = recipe.contrast_weight > 0
        self._contrast = (
            NTXent(recipe.temperature, recipe.contrast_softness, distributed=distributed) if contrasts else None
        )

    @classmethod
    def code(cls, recipe: Recipe) -> Mapping[str, Any]:
        """The land cover of cells was once asked of the last stage alone, beside that of the chip."""
        return {"dense": "mean over all cells, all stages"} if recipe.dense_weight > 0 else {}

    def losses(self, network: Network, student: Forward, teacher: Forward, inputs: Inputs, step: int) -> Tensor:
        """See `Objective.losses`."""
        recipe = self._recipe
        outputs = student(inputs.student)
        targets = teacher(inputs.teacher).logits if recipe.teacher_predicts else outputs.logits.detach()
        reported = network.as_product(outputs.logits)
        # The largest class alone is what a classifier would be given; the teacher and all figures keep the proportions.
        wanted = largest_class(inputs.labels) if recipe.labels == "majority" else inputs.labels
        supervised = supervised_loss(reported, wanted, recipe.reduction, inputs.weights)
        consistency = consistency_loss(outputs.logits, targets, recipe.consistency, recipe.reduction)
        loss = recipe.land_cover_weight * (supervised + consistency_weight(step, recipe) * consistency)
        terms = [supervised, consistency, label_kl(reported.detach(), inputs.labels).mean()]
        terms += [entropy(inputs.labels), entropy(F.softmax(targets.float(), dim=1))]
        if recipe.dense_weight > 0:
            dense = self._dense(network, outputs, inputs)
            loss = loss + recipe.dense_weight * dense
            terms.append(dense)
        if outputs.types is not None and inputs.types is not None:
            distinguished = types_loss(outputs.types, inputs.types, inputs.audit_weights)
            loss = loss + recipe.types_weight * distinguished
            terms.append(distinguished)
        if network.correction is not None and outputs.maps is not None:
            identity, aggregation = network.correction.identity_loss(), aggregation_loss(outputs.maps)
            loss = loss + recipe.correction_identity_weight * identity
            loss = loss + recipe.correction_aggregation_weight * aggregation
            terms += [identity, aggregation]
        if self._contrast is not None and outputs.projected is not None:
            first, second = outputs.projected.float().chunk(2)
            alike = inputs.labels.chunk(2) if recipe.contrast_softness > 0 else None
            contrast: Tensor = self._contrast(first, second, alike)
            loss = loss + recipe.contrast_weight * contrast
            terms.append(contrast)
        return torch.stack([loss, *(term.float() for term in terms)])

    def _dense(self, network: Network, outputs: Outputs, inputs: Inputs) -> Tensor:
        if outputs.maps is None or inputs.cells is None:  # refused, with words, before training begins
            return outputs.logits.new_zeros((), dtype=torch.float32)
        targets = cells_under(inputs.cells, inputs.geometry, outputs.maps.shape[-1])
        cells = network.as_product(outputs.maps.permute(0, 2, 3, 1))
        return dense_loss(cells, targets, self._recipe.reduction, inputs.audit_weights)


def consistency_weight(step: int, recipe: Recipe) -> float:
    """Weight of the consistency loss at a step: ``exp(-5 (1 - t)²)`` of its full value while it ramps up.

    The shape is that of Tarvainen and Valpola 2017: next to nothing while the teacher knows next to nothing.
    """
    if recipe.ramp_steps == 0 or step >= recipe.ramp_steps:
        return recipe.consistency_weight
    return recipe.consistency_weight * math.exp(-5.0 * (1.0 - step / recipe.ramp_steps) ** 2)


def largest_class(proportions: Tensor) -> Tensor:
    """1 for the class with the largest share and 0 for the others, float32 (B, K); rows of zeros stay zero."""
    one = F.one_hot(proportions.argmax(dim=1), proportions.shape[1]).to(proportions.dtype)
    return one * (proportions.sum(dim=1, keepdim=True) > 0)


@torch.no_grad()
def entropy(proportions: Tensor) -> Tensor:
    """Mean entropy of proportions (B, K), nat. A teacher far below its labels sharpens, one far above knows nothing."""
    return -torch.xlogy(proportions, proportions).sum(dim=1).mean()
