"""Land-cover mapping: the class of every cell of chips on ground that was never trained on, from a few labelled chips.

The labels are a land-cover product's, frozen as a second Levir-KR whose validation split is mapped, or masks that people drew.
A linear classifier judges the frozen features of cells; where the task asks for it, backbone and classifier then learn on together.

Not here: where the ground comes from (``learning.ground``), how a network gives features of cells (``networks.network``), the
classifier (``protocols.probe``), how both learn on (``protocols.cell_tuning``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Features, Labels, Measurement, Score, Start, chips_of_labels
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.ground import read_ground
from geokr_core.evaluation.learning.kept_features import KeptFeatures
from geokr_core.evaluation.learning.mask_metrics import iou_of, mean_iou, pixel_accuracy
from geokr_core.evaluation.protocols.cell_tuning import CellBudget, fine_tune_cells
from geokr_core.evaluation.protocols.fine_tuning import SCHEDULE, WARMUP_FRACTION, WEIGHT_DECAY, predict
from geokr_core.evaluation.protocols.probe import (
    HOLDOUT_FRACTION,
    HOLDOUTS,
    MANY_ITEMS,
    SINGLE_LABEL_STRENGTH,
    STRENGTHS,
    LinearClassifier,
    colour_histogram,
    fit_probe,
)
from geokr_core.evaluation.starts import EXTRACTION_BATCH, THREADS_OF_A_CELL, KeptNetwork, running, task_normalisation
from geokr_core.evaluation.statistics import bootstrap_rows, percentile_interval
from geokr_core.evaluation.task_kinds import LandCoverMappingConfig
from geokr_core.networks.network import cell_features
from geokr_core.networks.normalisation import Normalisation, channel_statistics
from geokr_core.networks.runtime import Runtime, precision_of
from geokr_core.networks.stopwatch import computing

_NONE: Final = -1
"""Class of a cell that takes no part: mixed, unknown, or of a class that is too rare."""

_WITHOUT_EFFECT: Final = {
    "name",
    "seeds",
    "levir_kr",
    "label_chips",
    "features",
    "fine_tune_steps",
    "fine_tune_learning_rate",
    "fine_tune_initialisations",
}
"""What a score does not depend on, or is told otherwise."""

_OF_MASKS: Final = {"chip_size_px", "cells_per_side"}
"""What says how masks are cut; a Levir-KR is cut already."""

_LEARNING_RATE: Final = 1e-4
"""What suits a backbone whose head begins as its probe with few labels, see docs/decisions/0069."""

_STANDARDISED_BY: Final = 10_000
"""Cells that mean and deviation of features are taken from, evenly spread: more change them by less than a hundredth."""


@dataclass(frozen=True)
class _Split:
    """Chips of one split.

    Attributes:
        images: uint8 (N, S, S, C).
        classes: int64 (N, n, n), index of each cell's class, `_NONE` where it takes no part.
    """

    images: np.ndarray
    classes: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """int64 (M,), classes of the cells that take part, chip by chip."""
        labels: np.ndarray = self.classes[self.classes != _NONE]
        return labels

    @property
    def chips(self) -> np.ndarray:
        """int64 (M,), the chip that each of these cells is from."""
        return np.nonzero(self.classes != _NONE)[0]


class LandCoverMapping:
    """Ground that scores networks by the mean IoU of its cells."""

    def __init__(self, task: LandCoverMappingConfig, evaluation: EvaluationConfig) -> None:
        """Read chips and cells.

        Raises:
            MissingInputError: there is no Levir-KR.
            EvaluationError: the ground cannot be used, see ``read_ground``, or has too few classes.
            DatasetError: it is damaged.
        """
        ground = read_ground(task, evaluation)
        self._task, self._evaluation, self._notes = task, evaluation, ground.notes
        self._bands, self._data_version = ground.bands, ground.data_version
        splits = (ground.train, ground.test)
        dominant = [_dominant(chips.cells, task.dominant_fraction) for chips in splits]
        kept = _common_enough(dominant, len(ground.classes), task.min_class_fraction)
        if len(kept) < 2:
            names = ", ".join(ground.classes[k] for k in kept) or "none"
            raise EvaluationError(
                f"{task.name}: classes that cover {task.min_class_fraction:.0%} of the cells of both splits: {names}; expected two "
                "or more. Choose other ground, or lower `min_class_fraction` or `dominant_fraction`."
            )
        self.classes = tuple(ground.classes[k] for k in kept)
        place = np.full(len(ground.classes) + 1, _NONE)  # the last entry is that of `_NONE` itself
        place[kept] = np.arange(len(kept))
        self.train, self.test = (
            _Split(chips.images, place[cells]) for chips, cells in zip(splits, dominant, strict=True)
        )
        self._statistics = channel_statistics(self.train.images)
        self._cells_per_side = ground.train.cells.shape[1]
        self._kept = KeptFeatures(self._computed)
        self._network = KeptNetwork()

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._task.name

    @property
    def data_version(self) -> str:
        """Hash of all that the ground was read from."""
        return self._data_version

    @property
    def bands(self) -> tuple[str, ...]:
        """Those of the chips."""
        return self._bands

    @property
    def notes(self) -> Sequence[str]:
        """How much ground is labelled and mapped."""
        return [
            *self._notes,
            *(
                f"{len(split.images)} chips {use}, {len(split.labels)} of their {split.classes.size} cells of one class"
                for split, use in ((self.train, "to label from"), (self.test, "to map"))
            ),
        ]

    @property
    def budget(self) -> Mapping[str, object]:
        """What every initialisation gets alike."""
        budget = self._budget
        tuned = budget and {
            "fine-tuning": f"{budget.steps} steps of {budget.batch_size} chips, or of all that are labelled; backbone and classifier, from "
            "the linear probe of all stages; BatchNorm as pretrained",
            "schedule": SCHEDULE,
            "learning rate": budget.learning_rate,
            "augmentation": "flips and quarter turns",
        }
        return {
            "cells": f"{self._cells_per_side} x {self._cells_per_side} a chip, of a class that covers "
            f"{self._task.dominant_fraction:.0%} of one",
            "labels": f"all such cells of the labelled chips; mean over {self._task.draws} draws of chips",
            "frozen features": "stages brought to the grid of the cells, standardised by cells of all chips to label from; logistic "
            "regression (C chosen on held-out labelled cells)",
            **(tuned or {}),
        }

    @property
    def _budget(self) -> CellBudget | None:
        """How long a network learns on; None: it does not."""
        if self._task.fine_tune_steps is None:
            return None
        rate = self._task.fine_tune_learning_rate or _LEARNING_RATE
        return CellBudget(self._task.fine_tune_steps, self._evaluation.batch_size, rate)

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        config = self._evaluation
        settings: dict[str, object] = {
            **self._task.model_dump(
                mode="json", exclude=_WITHOUT_EFFECT | (set() if self._task.levir_kr is None else _OF_MASKS)
            ),
            "strengths": STRENGTHS,
            "holdouts": [HOLDOUTS, HOLDOUT_FRACTION, MANY_ITEMS],
            "single_label_strength": SINGLE_LABEL_STRENGTH,
        }
        if cell.protocol == "fine_tune" and self._budget is not None:
            settings |= {**asdict(self._budget), "weight_decay": WEIGHT_DECAY, "warmup_fraction": WARMUP_FRACTION}
        if cell.features != "histogram":
            settings |= {
                "match_statistics": config.match_statistics,
                "precision": precision_of(config.precision, config.device),
                "device": config.device,
                "threads": THREADS_OF_A_CELL,
            }
        return settings

    def require(self, cell: Cell) -> None:
        """Check that there are as many chips as ``cell`` asks for.

        Raises:
            EvaluationError: there are fewer, or the protocol is not one of mapping.
        """
        wanted = chips_of_labels(cell.labels_per_class)
        known = ("linear_probe",) if self._budget is None else ("linear_probe", "fine_tune")
        if cell.protocol not in known or (wanted is None and cell.labels_per_class != "all"):
            raise EvaluationError(
                f"{self.name}: found {cell.protocol} with labels {cell.labels_per_class}; land-cover mapping is judged by the linear "
                "probe and, with `fine_tune_steps`, by fine-tuning, with a number of chips (`4 chips`) or `all`."
            )
        if wanted is not None and wanted > len(self.train.images):
            raise EvaluationError(
                f"{self.name}: {wanted} labelled chips are asked for, but there are {len(self.train.images)} to label from; lower "
                "`label_chips`, or raise `max_chips`."
            )

    def draw_chips(self, labels: Labels, seed: int, draw: int) -> np.ndarray:
        """The labelled chips of one draw, int64, sorted; within a draw a larger number contains every smaller one."""
        everything, number = np.arange(len(self.train.images)), chips_of_labels(labels)
        if number is None:
            return everything
        return np.sort(np.random.default_rng([seed, draw]).permutation(everything)[:number])

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the cells of the drawn chips and map the test chips, draw by draw.

        Raises:
            EvaluationError: features are not finite.
            BackboneError: weights and architecture do not fit together.
        """
        self.require(cell)
        with running(self._evaluation) as runtime:
            found = list(self._mapped(cell, start, runtime))
        confusions = np.stack([self._confusions(predicted) for predicted, _ in found])
        num_labelled = sum(count for _, count in found)
        return self._scored(confusions, num_labelled / len(found) / max(1, len(self.train.labels)))

    def _mapped(self, cell: Cell, start: Start, runtime: Runtime) -> Iterator[tuple[np.ndarray, int]]:
        """Classes of the test cells, int64, and the number of labelled cells, draw by draw."""
        tuned = self._budget if cell.protocol == "fine_tune" else None
        train, test = self._kept.of("multi" if tuned else cell.features, start, runtime)
        # With all chips every draw is the same.
        for draw in range(1 if cell.labels_per_class == "all" else self._task.draws):
            chips = self.draw_chips(cell.labels_per_class, cell.seed, draw)
            labelled = np.isin(self.train.chips, chips)
            known, probe = _learnt(train, labelled, self.train.labels[labelled], cell.seed)
            if probe is None:
                predicted = np.full(len(test), known[0] if len(known) else 0)
            elif tuned is None:
                predicted = known[probe.predict(test)]
            else:
                predicted = self._learnt_on(start, chips, known, probe, tuned, [cell.seed, draw], runtime)
            yield predicted, int(labelled.sum())

    def _learnt_on(
        self,
        start: Start,
        chips: np.ndarray,
        known: np.ndarray,
        probe: LinearClassifier,
        budget: CellBudget,
        seed: Sequence[int],
        runtime: Runtime,
    ) -> np.ndarray:
        """Classes of the test cells, int64, of a network that learnt on with its probe from the labelled ``chips``."""
        network, normalisation = self._start_network(start, runtime)
        places = np.full(len(self.classes) + 1, _NONE)  # the last entry is that of `_NONE` itself
        places[known] = np.arange(len(known))
        model = fine_tune_cells(
            network,
            probe,
            self._images(self.train.images[chips], start),
            places[self.train.classes[chips]],
            normalisation,
            budget,
            int(np.random.SeedSequence(seed).generate_state(1)[0]),
            runtime,
        )
        mapped = predict(model, self._images(self.test.images, start), normalisation, runtime)
        predicted: np.ndarray = known[mapped[self.test.classes != _NONE]]
        return predicted

    def _confusions(self, predicted: np.ndarray) -> np.ndarray:
        """int64 (T, K, K): of each test chip, cells by true and predicted class."""
        size = len(self.classes)
        codes = (self.test.chips * size + self.test.labels) * size + predicted
        counted = np.bincount(codes, minlength=len(self.test.images) * size * size)
        return counted.reshape(len(self.test.images), size, size)

    def _scored(self, confusions: np.ndarray, label_fraction: float) -> Measurement:
        """The mean over draws of (R, T, K, K), and what other test chips might have given."""
        by_draw = confusions.sum(axis=1)
        chosen = bootstrap_rows(confusions.shape[1])
        # How often each resample holds each chip: the sums over chips are then one product.
        times = np.stack([np.bincount(rows, minlength=confusions.shape[1]) for rows in chosen])
        resampled = np.einsum("bt,rtij->rbij", times, confusions)
        scores, replicates = [], {}
        for name, metric in (("miou", mean_iou), ("cell_accuracy", pixel_accuracy)):
            replicates[name] = metric(resampled).mean(axis=0)
            scores.append(Score(name, float(metric(by_draw).mean()), *percentile_interval(replicates[name].tolist())))
        return Measurement(
            scores=tuple(scores),
            n=len(self.test.labels),
            label_fraction=label_fraction,
            classes=self.classes,
            confusion=tuple(tuple(int(v) for v in row) for row in by_draw.sum(axis=0)),
            per_class={"iou": tuple(round(float(value), 6) for value in iou_of(by_draw).mean(axis=0))},
            replicates=tuple(replicates["miou"].round(6).tolist()),
        )

    def _computed(self, features: Features, start: Start, runtime: Runtime) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 (M, D) of the cells that take part, of the chips to label from and of those to map."""
        if start.initialisation == "colour_histogram":
            return self._colours(self.train), self._colours(self.test)
        network, normalisation = self._start_network(start, runtime)
        of_stages: Literal["last", "multi"] = "last" if features == "last" else "multi"
        train, test = (
            self._of_cells(network, split.classes, self._images(split.images, start), normalisation, of_stages, runtime)
            for split in (self.train, self.test)
        )
        return train, test

    def _start_network(self, start: Start, runtime: Runtime) -> tuple[nn.Module, Normalisation]:
        """The network of a start, to be changed at will, and how its images are scaled."""
        normalisation = task_normalisation(start, self._statistics, self.bands, self._evaluation, runtime)
        network = self._network.of(start, lambda: self._images(self.train.images, start), normalisation, runtime)
        return network, normalisation

    def _images(self, images: np.ndarray, start: Start) -> np.ndarray:
        """Images with their bands in the order that the network reads."""
        return np.ascontiguousarray(images[..., [self.bands.index(band) for band in start.bands]])

    def _of_cells(
        self,
        network: nn.Module,
        classes: np.ndarray,
        images: np.ndarray,
        normalisation: Normalisation,
        features: Literal["last", "multi"],
        runtime: Runtime,
    ) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for first in range(0, len(images), EXTRACTION_BATCH):
                taken = slice(first, first + EXTRACTION_BATCH)
                batch = normalisation(torch.from_numpy(images[taken]).to(runtime.device))
                with computing(), runtime.autocast():
                    found = cell_features(network, batch, self._cells_per_side, features)
                parts.append(found.float().cpu().numpy()[classes[taken] != _NONE])
        values = np.concatenate(parts)
        if not np.isfinite(values).all():
            raise EvaluationError(
                f"{self.name}: the network gives features that are not finite; expected finite numbers. Look at the "
                "pretraining curves and run `geokr pretrain` again."
            )
        return values

    def _colours(self, split: _Split) -> np.ndarray:
        """The 54 colour numbers of each cell's pixels."""
        size, side = split.images.shape[1], self._cells_per_side
        if size % side:
            raise EvaluationError(
                f"{self.name}: chips of {size} px have no {side} x {side} cells of whole pixels, which `colour_histogram` counts; "
                "take it out of `evaluation.initialisations`."
            )
        width, (count, channels) = size // side, (len(split.images), split.images.shape[3])
        cut = split.images.reshape(count, side, width, side, width, channels).transpose(0, 1, 3, 2, 4, 5)
        return colour_histogram(np.ascontiguousarray(cut[split.classes != _NONE]))


def _learnt(
    train: np.ndarray, labelled: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, LinearClassifier | None]:
    """Classes that labelled cells are of, int64, and the probe that distinguishes them; None where they are of one or none.

    Cells whose class no labelled cell has are never mapped as it; of chips without a cell of one class, all is the first one.
    """
    known, places = np.unique(labels, return_inverse=True)
    if len(known) < 2:
        return known, None
    unlabelled = train[:: -(-len(train) // _STANDARDISED_BY)]
    return known, fit_probe(train[labelled], places.astype(np.int64), len(known), unlabelled, seed=seed)


def _dominant(cells: np.ndarray, fraction: float) -> np.ndarray:
    """The class that covers ``fraction`` of each cell, int64 (N, n, n) of uint8 (N, n, n, K); `_NONE` without one."""
    largest = cells.argmax(axis=3)
    return np.where(cells.max(axis=3) >= fraction * 255, largest, _NONE)


def _common_enough(splits: Sequence[np.ndarray], num_classes: int, fraction: float) -> np.ndarray:
    """Classes that make up ``fraction`` of the cells of each split, int64, sorted."""
    shares = [np.bincount(found[found != _NONE], minlength=num_classes) for found in splits]
    enough = [counts >= max(1.0, fraction * counts.sum()) for counts in shares]
    return np.flatnonzero(np.logical_and.reduce(enough))
