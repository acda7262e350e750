"""Scene classification: one class an image, judged by frozen features and by fine-tuning.

Drawing labels and scoring are here; how the files lie is written in ``sets.classes``, networks and classifiers in
``protocols.probe`` and ``protocols.fine_tuning``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import RGB, Cell, Features, Labels, Measurement, Score, Start, fraction_of_labels
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.learning.kept_features import KeptFeatures
from geokr_core.evaluation.protocols import torchgeo_bench
from geokr_core.evaluation.protocols.fine_tuning import (
    HEAD_LEARNING_RATE_FACTOR,
    LABEL_SMOOTHING,
    SCHEDULE,
    WARMUP_FRACTION,
    WEIGHT_DECAY,
    choose,
    fine_tune,
    predict,
)
from geokr_core.evaluation.protocols.probe import (
    HOLDOUT_FRACTION,
    HOLDOUTS,
    MANY_ITEMS,
    SINGLE_LABEL_STRENGTH,
    STRENGTHS,
    LinearClassifier,
    colour_histogram,
    extract_features,
    fit_probe,
    nearest_neighbours,
    stratified_holdout,
)
from geokr_core.evaluation.sets.classes import Round, read_image_set
from geokr_core.evaluation.starts import THREADS_OF_A_CELL, KeptNetwork, running, task_normalisation
from geokr_core.evaluation.statistics import bootstrap_rows, macro_f1_interval, wilson_interval
from geokr_core.evaluation.task_kinds import SceneClassificationConfig
from geokr_core.networks.normalisation import Normalisation, channel_statistics
from geokr_core.networks.runtime import Runtime, precision_of
from geokr_core.step.digests import found_version

BANDS = RGB
DEFAULT_SIZE_PX = 64
_OF_TORCHGEO_BENCH = (torchgeo_bench.KNN5, torchgeo_bench.LINEAR)


class SceneClassification:
    """A scene-classification set that scores networks."""

    def __init__(self, task: SceneClassificationConfig, evaluation: EvaluationConfig) -> None:
        """Read the set.

        Raises:
            EvaluationError: see `read_image_set`.
        """
        folder = evaluation.folder / task.name
        self.size_px = task.image_size_px or DEFAULT_SIZE_PX
        self.set = read_image_set(folder, self.size_px, evaluation.threads, task.bad_items, task.folds)
        self._data_version = found_version(folder)
        self._task = task
        self._evaluation = evaluation
        self._task_statistics = channel_statistics(self.set.images[self.set.train_rows])
        self._kept = KeptFeatures(self._computed)
        self._network = KeptNetwork()

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._task.name

    @property
    def data_version(self) -> str:
        """DVC's hash of the set's folder."""
        return self._data_version

    @property
    def bands(self) -> tuple[str, ...]:
        """Red, green, blue."""
        return BANDS

    @property
    def notes(self) -> Sequence[str]:
        """How many images were resized, and how a set without a split was split."""
        return self.set.notes

    @property
    def _learning_rates(self) -> tuple[float, ...]:
        config = self._evaluation
        return self._task.learning_rates or config.fine_tune_learning_rates or (config.fine_tune_learning_rate,)

    @property
    def _begins_as_probe(self) -> bool:
        return self._task.head == "linear_probe"

    @property
    def budget(self) -> Mapping[str, object]:
        """What every initialisation gets alike."""
        config = self._evaluation
        begun = {"head": "begins as the linear probe"} if self._begins_as_probe else {}
        folded = {"cross-validation": f"{self._task.folds} folds"} if self._task.folds else {}
        return {
            "image size": f"{self.size_px} px",
            **folded,
            "frozen features": "standardised by all training images; logistic regression (C chosen on held-out labelled items); "
            f"{config.knn_neighbours} nearest neighbours by cosine similarity",
            "fine-tuning": f"{config.fine_tune_steps} steps of {config.batch_size} images",
            "schedule": SCHEDULE,
            "learning rates": list(self._learning_rates),
            **begun,
            "augmentation": "flips and quarter turns",
            "BatchNorm of the backbone": "as pretrained" if self._task.batchnorm == "frozen" else "learns",
        }

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """Every parameter that the score of ``cell`` depends on, besides the data and the start."""
        config = self._evaluation
        probed = {
            "strengths": STRENGTHS,
            "holdouts": [HOLDOUTS, HOLDOUT_FRACTION, MANY_ITEMS],
            "single_label_strength": SINGLE_LABEL_STRENGTH,
            "standardised_by": "train",
        }
        settings: dict[str, object] = {"image_size_px": self.size_px, "threads": THREADS_OF_A_CELL}
        if self._task.folds:
            settings["folds"] = self._task.folds
        if cell.features != "histogram":
            settings |= {
                "match_statistics": config.match_statistics,
                "precision": precision_of(config.precision, config.device),
                "device": config.device,
            }
        if cell.protocol == "fine_tune":
            settings |= {
                "steps": config.fine_tune_steps,
                "learning_rate": config.fine_tune_learning_rate,
                "batch_size": config.batch_size,
                "weight_decay": WEIGHT_DECAY,
                "label_smoothing": LABEL_SMOOTHING,
                "head_learning_rate_factor": HEAD_LEARNING_RATE_FACTOR,
                "warmup_fraction": WARMUP_FRACTION,
            }
            if self._task.batchnorm == "frozen":
                settings["batchnorm"] = "frozen"
            if self._begins_as_probe:
                settings |= {**probed, "head": "linear_probe", "head_learning_rate_factor": 1.0}
            if self._task.learning_rates or config.fine_tune_learning_rates:
                settings["learning_rates"] = self._learning_rates
                settings["validation_fraction"] = config.validation_fraction
        elif cell.protocol == "knn":
            settings |= {"neighbours": config.knn_neighbours, "standardised_by": "train"}
        elif cell.protocol in _OF_TORCHGEO_BENCH:
            settings |= {
                "neighbours": torchgeo_bench.NEIGHBOURS,
                "c_range": torchgeo_bench.C_RANGE,
                "resamples": torchgeo_bench.RESAMPLES,
                "validation_fraction": torchgeo_bench.VALIDATION_FRACTION,
            }
        else:
            settings |= probed
        return settings

    def require(self, cell: Cell) -> None:
        """Check that every class has the labels that ``cell`` asks for.

        Raises:
            EvaluationError: a class has fewer training images.
        """
        for each in self.set.rounds:
            self.draw_labels(cell.labels_per_class, cell.seed, each)

    def draw_labels(self, labels_per_class: Labels, seed: int, of: Round) -> np.ndarray:
        """The labelled training images of a cell in one round.

        Args:
            labels_per_class: images drawn of each class, a share of each class such as ``10%``, or ``all``.
            seed: of the draw. With one seed, a larger draw contains every smaller one.
            of: round whose training images are drawn from.

        Returns:
            int64, sorted item numbers.

        Raises:
            EvaluationError: a class has fewer training images than asked for.
        """
        rows = of.train_rows
        if labels_per_class == "all":
            return rows
        rng = np.random.default_rng(seed)
        drawn = []
        for index, name in enumerate(self.set.classes):
            available = rows[self.set.labels[rows] == index]
            if isinstance(labels_per_class, str):
                share = max(1, math.ceil(fraction_of_labels(labels_per_class) * len(available) - 1e-9))
                drawn.append(rng.permutation(available)[:share])
                continue
            if len(available) < labels_per_class:
                raise EvaluationError(
                    f"{self.name}: class {name!r} has {len(available)} training image(s), but "
                    f"{labels_per_class} labels a class are asked for. Lower `evaluation.labels_per_class` "
                    "(and `fine_tune_labels_per_class`), or add images to the training split."
                )
            drawn.append(rng.permutation(available)[:labels_per_class])
        return np.sort(np.concatenate(drawn))

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Learn from the drawn training images and score on all test images, of each fold what was learnt from the others.

        Raises:
            EvaluationError: features, loss or predictions are not finite, or labels are too few.
            BackboneError: weights and architecture do not fit together.
        """
        labelled = [self.draw_labels(cell.labels_per_class, cell.seed, each) for each in self.set.rounds]
        fraction = float(
            np.mean([len(rows) / len(each.train_rows) for rows, each in zip(labelled, self.set.rounds, strict=True)])
        )
        rates: list[float] = []
        with running(self._evaluation) as runtime:
            if cell.protocol in _OF_TORCHGEO_BENCH:
                return self._benched(cell, start, labelled[0], fraction, runtime)
            predicted = []
            for rows, each in zip(labelled, self.set.rounds, strict=True):
                if cell.protocol == "fine_tune":
                    rates.append(self._chosen_learning_rate(cell, start, rows, each, runtime))
                    predicted.append(self._learnt(cell, start, rows, each, each.test_rows, rates[-1], runtime))
                else:
                    predicted.append(self._probe(cell, start, rows, each, runtime))
        chosen = {"learning_rate": rates[0] if len(rates) == 1 else rates} if rates else {}
        return replace(self._score(np.concatenate(predicted), fraction, cell.seed), details=chosen)

    def _start_network(self, start: Start, runtime: Runtime) -> tuple[nn.Module, Normalisation]:
        """The network of a start, to be changed at will, and how its images are scaled."""
        normalisation = task_normalisation(start, self._task_statistics, BANDS, self._evaluation, runtime)
        network = self._network.of(start, lambda: self._images(start)[self.set.train_rows], normalisation, runtime)
        return network, normalisation

    def _images(self, start: Start) -> np.ndarray:
        """All images with their bands in the order that the network reads."""
        if start.bands == BANDS:
            return self.set.images
        return np.ascontiguousarray(self.set.images[..., [BANDS.index(band) for band in start.bands]])

    def _probe(self, cell: Cell, start: Start, rows: np.ndarray, of: Round, runtime: Runtime) -> np.ndarray:
        """Predictions for the test images of a round."""
        features = self._features(cell.features, start, runtime)
        asked = features[of.test_rows]
        if cell.protocol == "knn":
            labelled, unlabelled = features[rows], features[of.train_rows]
            num_neighbours = self._evaluation.knn_neighbours
            return nearest_neighbours(labelled, self.set.labels[rows], asked, unlabelled, num_neighbours)
        return self._fitted(features, rows, of, cell.seed).predict(asked)

    def _fitted(self, features: np.ndarray, rows: np.ndarray, of: Round, seed: int) -> LinearClassifier:
        """The linear probe of the labelled images `rows` of a round."""
        unlabelled = features[of.train_rows]
        return fit_probe(features[rows], self.set.labels[rows], len(self.set.classes), unlabelled, seed=seed)

    def _benched(self, cell: Cell, start: Start, rows: np.ndarray, fraction: float, runtime: Runtime) -> Measurement:
        """Score by a protocol of torchgeo-bench, accuracy with its interval."""
        features = self._features(cell.features, start, runtime)
        labelled, labels, asked = features[rows], self.set.labels[rows], features[self.set.test_rows]
        if cell.protocol == torchgeo_bench.KNN5:
            found = torchgeo_bench.knn5(labelled, labels, asked)
        else:
            found = torchgeo_bench.linear(labelled, labels, asked, len(self.set.classes), seed=cell.seed)
        scored = self._score(found.predicted, fraction, cell.seed)
        correct = found.predicted == self.set.labels[self.set.test_rows]
        accuracy = Score("accuracy", scored.scores[0].value, *torchgeo_bench.accuracy_interval(correct, cell.seed))
        details = {
            "best_c": found.best_c,
            "num_train": found.num_train,
            "num_validation": found.num_validation,
            "feature_dim": features.shape[1],
            "image_size_px": self.size_px,
            "bands": ",".join(BANDS),
        }
        return replace(scored, scores=(accuracy, *scored.scores[1:]), details=details)

    def _features(self, features: Features, start: Start, runtime: Runtime) -> np.ndarray:
        """Features float32 (N, D) of all images."""
        return self._kept.of(features, start, runtime)[0]

    def _computed(self, features: Features, start: Start, runtime: Runtime) -> tuple[np.ndarray]:
        if start.initialisation == "colour_histogram":
            return (colour_histogram(self.set.images),)
        network, normalisation = self._start_network(start, runtime)
        return (
            extract_features(
                network, self._images(start), normalisation, "last" if features == "last" else "multi", runtime
            ),
        )

    def _chosen_learning_rate(self, cell: Cell, start: Start, rows: np.ndarray, of: Round, runtime: Runtime) -> float:
        candidates = self._learning_rates
        fitting, held_out = stratified_holdout(self.set.labels[rows], cell.seed, self._evaluation.validation_fraction)
        if not len(held_out):
            candidates = candidates[:1]  # one label a class: nothing can be held out, so nothing is chosen

        def held_out_accuracy(learning_rate: float) -> float:
            guessed = self._learnt(cell, start, rows[fitting], of, rows[held_out], learning_rate, runtime)
            return float((guessed == self.set.labels[rows[held_out]]).mean())

        return choose(candidates, held_out_accuracy)

    def _learnt(
        self,
        cell: Cell,
        start: Start,
        rows: np.ndarray,
        of: Round,
        asked: np.ndarray,
        learning_rate: float,
        runtime: Runtime,
    ) -> np.ndarray:
        """Predictions for the images `asked` of a network that learned from `rows`."""
        begins = self._begins_as_probe
        probe = self._fitted(self._features("last", start, runtime), rows, of, cell.seed) if begins else None
        network, normalisation = self._start_network(start, runtime)
        images = self._images(start)
        model = fine_tune(
            network,
            start.architecture,
            images[rows],
            self.set.labels[rows],
            len(self.set.classes),
            normalisation,
            self._evaluation,
            cell.seed,
            runtime,
            learning_rate,
            frozen_batchnorm=self._task.batchnorm == "frozen",
            probe=probe,
        )
        return predict(model, images[asked], normalisation, runtime)

    def _score(self, predicted: np.ndarray, label_fraction: float, seed: int) -> Measurement:
        truth = self.set.labels[self.set.test_rows]
        indices = list(range(len(self.set.classes)))
        table = confusion_matrix(truth, predicted, labels=indices)
        accuracy = Score(
            "accuracy", float(accuracy_score(truth, predicted)), *wilson_interval(int(table.trace()), len(truth))
        )
        macro_f1 = Score(
            "macro_f1",
            float(f1_score(truth, predicted, labels=indices, average="macro", zero_division=0.0)),
            *macro_f1_interval(truth, predicted, len(indices), seed),
        )
        per_class = f1_score(truth, predicted, labels=indices, average=None, zero_division=0.0)
        correct = (truth == predicted).astype(np.float64)
        return Measurement(
            per_class={"f1": tuple(round(float(value), 6) for value in per_class)},
            replicates=tuple(correct[bootstrap_rows(len(truth))].mean(axis=1).round(6).tolist()),
            scores=(accuracy, macro_f1),
            n=len(truth),
            label_fraction=label_fraction,
            classes=self.set.classes,
            confusion=tuple(tuple(int(v) for v in row) for row in table),
        )
