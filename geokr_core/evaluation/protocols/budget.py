"""What every initialisation gets alike when it is fine-tuned: steps, batches, learning rates, and which labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.protocols.fine_tuning import (
    HEAD_LEARNING_RATE_FACTOR,
    SCHEDULE,
    WARMUP_FRACTION,
    WEIGHT_DECAY,
)
from geokr_core.evaluation.task_kinds import FineTunedConfig


@dataclass(frozen=True)
class Budget:
    """A task's share of section `evaluation`, with the task's own values in place of the general ones.

    Attributes:
        steps: optimiser steps.
        batch_size: crops or images a step.
        learning_rates: the grid; one entry is no choice.
        validation_fraction: share of the labelled items held out to choose among them.
        frozen_batchnorm: keep the backbone's BatchNorm as it is.
    """

    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]
    validation_fraction: float
    frozen_batchnorm: bool

    def settings(self) -> Mapping[str, object]:
        """Everything a score depends on, for fingerprints."""
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rates": self.learning_rates,
            "validation_fraction": self.validation_fraction,
            "frozen_batchnorm": self.frozen_batchnorm,
            "weight_decay": WEIGHT_DECAY,
            "head_learning_rate_factor": HEAD_LEARNING_RATE_FACTOR,
            "warmup_fraction": WARMUP_FRACTION,
        }

    def words(self, unit: str) -> Mapping[str, object]:
        """The same for the report; ``unit`` is what a batch is made of."""
        return {
            "fine-tuning": f"{self.steps} steps of {self.batch_size} {unit}",
            "schedule": SCHEDULE,
            "learning rates": list(self.learning_rates),
            "BatchNorm of the backbone": "as pretrained" if self.frozen_batchnorm else "learns",
        }


def budget_of(task: FineTunedConfig, evaluation: EvaluationConfig, *, frozen_by_default: bool) -> Budget:
    """The budget of a task."""
    rates = task.learning_rates or evaluation.fine_tune_learning_rates or (evaluation.fine_tune_learning_rate,)
    return Budget(
        steps=task.steps or evaluation.fine_tune_steps,
        batch_size=task.batch_size or evaluation.batch_size,
        learning_rates=rates,
        validation_fraction=evaluation.validation_fraction,
        frozen_batchnorm=frozen_by_default if task.batchnorm is None else task.batchnorm == "frozen",
    )


def drawn(rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Labelled items of a cell, the same for every initialisation.

    Args:
        rows: int64 (N,), the training split.
        fraction: share wanted; at least one item is drawn.
        seed: of the draw. With one seed, a larger draw contains every smaller one.

    Returns:
        int64, sorted.
    """
    count = max(1, round(fraction * len(rows)))
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def held_out(rows: np.ndarray, validation: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labelled items to fit on and items to choose the learning rate on; the latter are empty where none can be spared.

    Args:
        rows: int64, labelled items of the cell.
        validation: int64, the set's own validation split, used as it is where there is one.
        fraction: share held out of `rows` where there is none.
        seed: of the draw.
    """
    if len(validation):
        return rows, validation
    count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
    order = np.random.default_rng([seed, 1]).permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count])


def require_fine_tuned(name: str, cell: Cell) -> None:
    """Check that a cell asks for fine-tuning on a share of the training images.

    Args:
        name: of the set, for the message.
        cell: the cell.

    Raises:
        EvaluationError: it asks for labels by number, or for frozen features.
    """
    if cell.protocol != "fine_tune" or not isinstance(cell.labels_per_class, str):
        raise EvaluationError(
            f"{name}: asked for {cell.protocol} with {cell.labels_per_class} labels; this kind of task is judged "
            "by fine-tuning on a share of the training images, such as `10%` or `all`."
        )
