"""Learning from a land-cover product: the chip's proportions, the teacher, feature-map cells, learned confusions."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from geokr_core.networks.augmentation import cells_under
from geokr_core.pretraining.objectives.contrastive import contrast
from geokr_core.pretraining.objectives.correction import aggregation_loss
from geokr_core.pretraining.objectives.losses import consistency_loss, dense_loss, label_kl, supervised_loss
from geokr_core.pretraining.objectives.network import Network, Outputs
from geokr_core.pretraining.objectives.objective import Forward, Objective, Seen
from geokr_core.pretraining.recipes import Recipe


class LandCoverObjective(Objective):
    """Proportions, consistency with the teacher, and what a recipe adds to them."""

    def __init__(self, recipe: Recipe, *, distributed: bool = False) -> None:
        """Take what the recipe asks for; ``distributed``: tell chips from those of the other processes, too."""
        self._recipe = recipe
        self.terms = ("loss", "supervised_loss", "consistency_loss", "train_kl", "label_entropy")
        self.terms += ("teacher_entropy",) if teacher_predicts(recipe) else ("student_entropy",)
        self.terms += ("dense_loss",) if recipe.dense_weight > 0 else ()
        self.terms += ("identity_loss", "aggregation_loss") if recipe.correction else ()
        self.terms += ("contrast_loss",) if recipe.contrast_weight > 0 else ()
        self._contrast = contrast(recipe, distributed=distributed) if recipe.contrast_weight > 0 else None

    def losses(self, network: Network, student: Forward, teacher: Forward, seen: Seen, step: int) -> Tensor:
        """See `Objective.losses`."""
        recipe = self._recipe
        said = student(seen.student)
        targets = teacher(seen.teacher).logits if teacher_predicts(recipe) else said.logits.detach()
        reported = network.as_product(said.logits)
        # The largest class alone is what a classifier would be given; the teacher and all figures keep the proportions.
        wanted = largest_class(seen.labels) if recipe.labels == "majority" else seen.labels
        supervised = supervised_loss(reported, wanted, recipe.reduction, seen.weights)
        consistency = consistency_loss(said.logits, targets, recipe.consistency, recipe.reduction)
        loss = recipe.land_cover_weight * (supervised + consistency_weight(step, recipe) * consistency)
        terms = [supervised, consistency, label_kl(reported.detach(), seen.labels).mean()]
        terms += [entropy(seen.labels), entropy(F.softmax(targets.float(), dim=1))]
        if recipe.dense_weight > 0:
            dense = self._dense(network, said, seen)
            loss = loss + recipe.dense_weight * dense
            terms.append(dense)
        if network.correction is not None and said.maps is not None:
            identity, aggregation = network.correction.identity_loss(), aggregation_loss(said.maps)
            loss = loss + recipe.correction_identity_weight * identity
            loss = loss + recipe.correction_aggregation_weight * aggregation
            terms += [identity, aggregation]
        if self._contrast is not None and said.projected is not None:
            first, second = said.projected.float().chunk(2)
            told_apart: Tensor = self._contrast(first, second)
            loss = loss + recipe.contrast_weight * told_apart
            terms.append(told_apart)
        return torch.stack([loss, *(term.float() for term in terms)])

    def _dense(self, network: Network, said: Outputs, seen: Seen) -> Tensor:
        if said.maps is None or seen.cells is None:  # refused, with words, before training begins
            return said.logits.new_zeros((), dtype=torch.float32)
        targets = cells_under(seen.cells, seen.geometry, said.maps.shape[-1])
        return dense_loss(network.as_product(said.maps.permute(0, 2, 3, 1)), targets, self._recipe.reduction)


def teacher_predicts(recipe: Recipe) -> bool:
    """Whether the teacher must see the batch: for the consistency loss, or to gather its own BatchNorm statistics."""
    disagrees = recipe.consistency != "none" and recipe.consistency_weight > 0 and recipe.land_cover_weight > 0
    return disagrees or recipe.batchnorm == "own"


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
