"""What every objective looks like to the loop: chips in, losses out.

Not here: the objectives themselves (``pretraining.objectives``). A package of your own may bring one: a method whose
``required`` holds ``{"objective": "my_package.my_module:MyObjective"}``, see ``pretraining.recipes.Method``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from geokr_core.networks.augmentation import Geometry
from geokr_core.pretraining.network import Network, Outputs
from geokr_core.pretraining.recipe import Recipe

Forward = Callable[[Tensor], Outputs]
"""A forward pass in the run's precision; compiled or, the student's, distributed where that is asked for."""


@dataclass(frozen=True)
class Inputs:
    """What the networks are shown of some chips, and what is known about them.

    Attributes:
        student: float32 (B, C, H, W), normalised, channels_last. Where land cover and contrast are learned together, first one
            crop of every chip and then another: B is then twice the chips, here and below.
        teacher: the same chips for the teacher, or the other view of a contrastive method; often the very same tensor.
        geometry: what of the chips ``student`` shows.
        labels: float32 (B, K), land cover of what ``student`` shows; rows of zeros where nothing is known.
        weights: float32 (B,), how much each chip's proportions count; None: all alike.
        cells: uint8 (B, n, n, K), land cover within the whole chips; None where no method asks for it.
        types: int64 (B,), type of ground of each chip; None where no method asks for it.
        audit_weights: float32 (B,), how much cells and type of each chip count; None: all alike.
    """

    student: Tensor
    teacher: Tensor
    geometry: Geometry
    labels: Tensor
    weights: Tensor | None
    cells: Tensor | None
    types: Tensor | None = None
    audit_weights: Tensor | None = None


class Objective(ABC):
    """What a method minimises.

    Attributes:
        learns_land_cover: whether the network's head is linear and predicts classes, so that student and teacher see one crop
            and a KL is measured. Otherwise the head projects, and each of two views is cropped independently.
        terms: names of what `losses` returns, columns of ``history.csv``; the first is ``loss``.
    """

    learns_land_cover: ClassVar[bool] = True
    terms: tuple[str, ...]

    @abstractmethod
    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        """Set up what a recipe asks for.

        Args:
            recipe: weights and forms of the losses.
            device: of the networks.
            distributed: whether other processes learn from the other chips of each batch.
        """

    @abstractmethod
    def losses(self, network: Network, student: Forward, teacher: Forward, inputs: Inputs, step: int) -> Tensor:
        """Forward passes and losses of some chips.

        Args:
            network: the student.
            student: its forward pass.
            teacher: that of its average, without gradients.
            inputs: the chips.
            step: counted from 1.

        Returns:
            float32 (T,) in the order of ``terms``; the first entry is the one to be minimised.
        """

    @classmethod
    def code(cls, recipe: Recipe) -> Mapping[str, Any]:
        """What its code does otherwise than it once did, where a recipe makes use of it: part of a run's fingerprint.

        Whoever changes what an objective computes adds an entry here, so that runs finished before are trained again.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """What it remembers from step to step, for a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027  # most objectives remember nothing
        """Take over what `state` gave."""
