"""What every method's step looks like to the loop: chips in, losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from geokr_core.networks.augmentation import Geometry
from geokr_core.pretraining.objectives.network import Network, Outputs

Forward = Callable[[Tensor], Outputs]
"""A forward pass in the run's precision; compiled or, the student's, distributed where that is asked for."""


@dataclass(frozen=True)
class Seen:
    """What the networks see of some chips, and what is known about them.

    Attributes:
        student: float32 (B, C, H, W), normalised, channels_last. Where land cover and contrast are learned together, first one
            crop of every chip and then another: B is then twice the chips, here and below.
        teacher: the same chips for the teacher, or the other view of a contrastive method; often the very same tensor.
        geometry: what of the chips ``student`` shows.
        labels: float32 (B, K), land cover of what ``student`` shows; rows of zeros where nothing is known.
        weights: float32 (B,), how much each label counts; None: all alike.
        cells: uint8 (B, n, n, K), land cover within the whole chips; None where no method asks for it.
    """

    student: Tensor
    teacher: Tensor
    geometry: Geometry
    labels: Tensor
    weights: Tensor | None
    cells: Tensor | None


class Objective(ABC):
    """What a method minimises.

    Attributes:
        terms: names of what `losses` returns; the first is ``loss``.
    """

    terms: tuple[str, ...]

    @abstractmethod
    def losses(self, network: Network, student: Forward, teacher: Forward, seen: Seen, step: int) -> Tensor:
        """Forward passes and losses of some chips.

        Args:
            network: the student.
            student: its forward pass.
            teacher: that of its average, without gradients.
            seen: the chips.
            step: counted from 1.

        Returns:
            float32 (T,) in the order of ``terms``; the first entry is the one to be minimised.
        """

    def state(self) -> dict[str, Tensor]:
        """What it remembers from step to step, for a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027  # most objectives remember nothing
        """Take up what `state` gave."""
