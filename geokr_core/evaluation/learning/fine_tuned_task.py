"""What tasks share that are judged by fine-tuning on a share of their training images.

Here: which items are labelled, how the learning rate is chosen, and that a cell is learnt and scored in this order. How a
network is built and trained for the task, and what its predictions are worth, is up to the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Measurement, Start, fraction_of_labels
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.protocols.budget import Budget, budget_of, drawn, held_out, require_fine_tuned
from geokr_core.evaluation.protocols.fine_tuning import choose
from geokr_core.evaluation.starts import THREADS_OF_A_CELL, running
from geokr_core.evaluation.task_kinds import FineTunedConfig
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime, precision_of
from geokr_core.step.digests import found_version


class FineTunedTask(ABC):
    """A labelled set that scores networks by fine-tuning; a kind fills in learning, predicting and scoring.

    Attributes:
        bands: common names of the bands its images have.
        rows: items of each split; ``val`` may be empty.
        statistics: channel means and deviations of the training images.
        plan: steps, batches and learning rates.
        notes: what a reader needs to know about the set.
    """

    bands: tuple[str, ...]
    rows: Mapping[Any, np.ndarray]
    statistics: Normalisation
    notes: Sequence[str]

    def __init__(self, task: FineTunedConfig, evaluation: EvaluationConfig, *, frozen_by_default: bool) -> None:
        """Remember the sections and take the data version of the set.

        Args:
            task: which set, and how it is learnt.
            evaluation: where sets lie and how they are judged.
            frozen_by_default: keep the backbone's BatchNorm as it is where the task's section does not say.
        """
        self._task, self._evaluation = task, evaluation
        self.plan: Budget = budget_of(task, evaluation, frozen_by_default=frozen_by_default)
        self._data_version = found_version(evaluation.folder / task.name)

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._task.name

    @property
    def data_version(self) -> str:
        """DVC's hash of the set's folder."""
        return self._data_version

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        config, of_the_budget = (
            self._evaluation,
            {"name", "seeds", "fine_tune_initialisations", "steps", "batch_size", "learning_rates", "batchnorm"},
        )
        return {
            **self._task.model_dump(mode="json", exclude=of_the_budget),
            **self.plan.settings(),
            "match_statistics": config.match_statistics,
            "precision": precision_of(config.precision, config.device),
            "device": config.device,
            "threads": THREADS_OF_A_CELL,
        }

    def require(self, cell: Cell) -> None:
        """Check that ``cell`` is one that this task knows.

        Raises:
            EvaluationError: it asks for labels by number, or for frozen features.
        """
        require_fine_tuned(self.name, cell)

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the drawn training images and score on all test images.

        Raises:
            EvaluationError: a loss or a prediction is not finite.
            BackboneError: weights and architecture, or bands, do not fit together.
        """
        self.require(cell)
        labelled = drawn(self.rows["train"], fraction_of_labels(cell.labels_per_class), cell.seed)
        with running(self._evaluation) as runtime:
            rate = self._learning_rate(cell, start, labelled, runtime)
            model = self.learnt(cell, start, labelled, rate, runtime)
            found = [self.predicted(model, row, start, runtime) for row in self.rows["test"]]
        return self.scored(found, labelled, {"learning_rate": rate, "labelled_images": len(labelled)})

    @abstractmethod
    def learnt(self, cell: Cell, start: Start, rows: np.ndarray, rate: float, runtime: Runtime) -> Any:
        """A network that learned from the items ``rows``, in evaluation mode."""

    @abstractmethod
    def predicted(self, model: Any, row: int, start: Start, runtime: Runtime) -> Any:
        """What a network of `learnt` predicts for an item."""

    @abstractmethod
    def worth(self, found: Sequence[Any], rows: np.ndarray) -> float:
        """The task's first metric of predictions for the items ``rows``, by which a learning rate is chosen."""

    @abstractmethod
    def scored(self, found: Sequence[Any], labelled: np.ndarray, details: Mapping[str, object]) -> Measurement:
        """The measurement of a cell from the predictions for all test items.

        Args:
            found: by test item.
            labelled: items that were learnt from.
            details: of the cell, to be passed on.
        """

    def _learning_rate(self, cell: Cell, start: Start, labelled: np.ndarray, runtime: Runtime) -> float:
        fitting, spared = held_out(labelled, self.rows["val"], self.plan.validation_fraction, cell.seed)
        candidates = self.plan.learning_rates if len(spared) else self.plan.learning_rates[:1]

        def score(rate: float) -> float:
            model = self.learnt(cell, start, fitting, rate, runtime)
            return self.worth([self.predicted(model, row, start, runtime) for row in spared], spared)

        return choose(candidates, score)

    def order_of(self, start: Start) -> list[int]:
        """Places of the network's bands among those of the images, in the order that it reads them."""
        return [self.bands.index(band) for band in start.bands]

    def normalisation_of(self, start: Start) -> Normalisation:
        """How a network's input is scaled: by the set's statistics where these are matched, else as it was trained."""
        if not self._evaluation.match_statistics:
            return Normalisation(torch.tensor(start.mean), torch.tensor(start.std))
        order = self.order_of(start)
        return Normalisation(self.statistics.mean[order], self.statistics.std[order])

    def absences(self, untested: Sequence[str], untaught: Sequence[str], unit: str) -> list[str]:
        """Notes on classes that a split lacks.

        Args:
            untested: classes without a test item.
            untaught: classes without a training item.
            unit: what an item of a class is, e.g. ``pixel``.

        Raises:
            EvaluationError: a class has no test item and these are to fail.
        """
        if untested and self._task.absent_classes == "fail":
            raise EvaluationError(
                f"{self.name}: class {untested[0]!r} has no {unit} in the test split (so have {len(untested)}); expected "
                "every class. Choose other `test_groups` or split files, or set `absent_classes: leave_out`."
            )
        notes = [f"no test {unit}, left out of the means: {', '.join(untested)}"] if untested else []
        untaught = [name for name in untaught if name not in untested]
        return [*notes, *([f"no training {unit}, cannot be learnt: {', '.join(untaught)}"] if untaught else [])]
