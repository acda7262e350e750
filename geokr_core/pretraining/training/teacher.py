"""The mean teacher: a running average of the student that is never trained itself, and when it moves.

Not here: what its predictions are used for (``pretraining.objectives.land_cover``), when it moves (``loop``).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from geokr_core.errors import TrainingError
from geokr_core.pretraining.recipe import BatchNormPolicy

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)

RELEASED_PERIODS: Final = (500, 10_500, 20_500, 30_500)
"""Update periods of the method as first published, in steps of 16 images each."""

_RELEASED_BATCH_SIZE: Final = 16

_RELEASED_STEPS: Final = 10 * 1_431_950 // _RELEASED_BATCH_SIZE
"""Length of the run as first published: ten times its 1,431,950 images."""


class Teacher(Generic[AnyNetwork]):
    """A deep copy of the student that follows it by exponential averaging.

    It is deliberately no ``nn.Module``: assigned to an attribute of one, it is not registered, so that neither
    the parent's ``.train()`` nor its ``.parameters()`` ever reaches it.

    Attributes:
        network: the averaged network; no parameter needs a gradient.
        batchnorm: the policy, see `BatchNormPolicy`.
    """

    def __init__(self, student: AnyNetwork, batchnorm: BatchNormPolicy, *, compiled: bool = False) -> None:
        """Copy the student; nothing is shared with it from here on. Compiled, it predicts through ``torch.compile``."""
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.batchnorm = batchnorm
        self._predict: Callable[[Tensor], Any] = torch.compile(self.network) if compiled else self.network
        self._declare_mode()

    def _declare_mode(self) -> None:
        self.network.train(self.batchnorm == "own")

    def __call__(self, images: Tensor) -> Any:
        """Predict without gradients, in the mode that the BatchNorm policy declares.

        Args:
            images: float32 (B, C, H, W), normalised.

        Returns:
            What the network returns.
        """
        self._declare_mode()
        with torch.no_grad():
            return self._predict(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move towards the student: ``teacher = momentum * teacher + (1 - momentum) * student``.

        Integer buffers (counters) cannot be averaged and are copied, except under ``own``, which leaves all
        buffers to the teacher.

        Args:
            student: the network that `network` was copied from.
            momentum: share of the old teacher that stays, 0-1.

        Raises:
            TrainingError: the momentum is no fraction.
        """
        if not 0.0 <= momentum <= 1.0:
            raise TrainingError(f"Teacher momentum must lie in 0-1, found {momentum}.")
        averaged: list[Tensor] = list(self.network.parameters())
        target: list[Tensor] = list(student.parameters())
        if self.batchnorm != "own":
            for mine, theirs in zip(self.network.buffers(), student.buffers(), strict=True):
                if self.batchnorm == "averaged" and mine.is_floating_point():
                    averaged.append(mine)
                    target.append(theirs)
                else:
                    mine.copy_(theirs)
        # One fused call instead of one a tensor: half a millisecond instead of several, each step.
        torch._foreach_lerp_(averaged, target, 1.0 - momentum)

    def shares_storage_with(self, student: nn.Module) -> bool:
        """Whether any parameter or buffer lies in the same memory as one of the student's."""
        return bool(_storages(self.network) & _storages(student))

    @torch.no_grad()
    def max_difference(self, student: nn.Module) -> float:
        """Largest absolute difference between a parameter of the teacher and the student's."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def _storages(module: nn.Module) -> set[int]:
    tensors: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return {tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()}


def warmed_up_momentum(momentum: float, num_updates: int) -> float:
    """Momentum of the teacher's next update while it is still close to its random start.

    ``min(momentum, 1 - 1 / (n + 1))`` for the n-th update (Tarvainen and Valpola 2017, section 3.4): until it
    reaches ``momentum``, the teacher is the plain mean of all students so far, and its start is soon forgotten.

    Args:
        momentum: the momentum to reach, 0-1.
        num_updates: updates made so far.

    Returns:
        The momentum to use now.
    """
    return min(momentum, 1.0 - 1.0 / (num_updates + 2))


def released_update_steps(batch_size: int, num_steps: int) -> list[int]:
    """Steps after which the teacher moves on the schedule of the method as first published.

    The current period is ``int(period / batch_size * 16)`` with period from `RELEASED_PERIODS`; the teacher moves
    at each step (counted from 1) with ``step % period == 1``; after each move the next period takes over, and the
    last one stays for ever. In images this is the same schedule whatever the batch size.

    Args:
        batch_size: chips a step.
        num_steps: steps of the whole run.

    Returns:
        The steps, ascending, counted from 1.
    """
    # A batch beyond 8000 chips would make the first period 0, which no step divides by.
    periods = [max(1, int(period / batch_size * _RELEASED_BATCH_SIZE)) for period in RELEASED_PERIODS]
    # The list's head is read at the start and popped only by the first move, so it governs the first two moves.
    waiting = list(periods)
    period, step = periods[0], 1
    moves: list[int] = []
    while step <= num_steps:
        moves.append(step)
        if waiting:
            period = waiting.pop(0)
        step = ((step - 1) // period + 1) * period + 1
    return moves


def scaled_update_steps(num_steps: int) -> list[int]:
    """Steps after which the teacher moves at the same shares of a run as in the one first published.

    That one moves it 33 times, so that 0.95³³ = 18 % of the start is left in what is delivered. By images, as
    `released_update_steps` has it, a short run moves it once or twice and delivers its start.

    Args:
        num_steps: steps of the whole run.

    Returns:
        The steps, ascending, counted from 1: 33, or every step of a run that has fewer.
    """
    steps: list[int] = []
    for published in released_update_steps(_RELEASED_BATCH_SIZE, _RELEASED_STEPS):
        share = (published - 1) / _RELEASED_STEPS
        # The first moves lie close together: where two would fall on one step, the later one takes the next.
        steps.append(max(1 + int(share * num_steps), steps[-1] + 1 if steps else 1))
    return [step for step in steps if step <= num_steps]
