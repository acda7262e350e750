"""The two frozen protocols of torchgeo-bench, by its definitions, so that its figures and ours stand side by side.

k-NN of five neighbours by L2 distance, and logistic regression whose C is chosen among forty on validation items and which is
then fitted on training and validation items. Features are taken as they are, not standardised. Intervals are over 200 resamples
of the test items. Definitions: torchgeo-bench 0.4 (github.com/torchgeo/torchgeo-bench, MIT); no code of it is used.

Our own protocols, which differ in all of these, are in ``probe``.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.protocols.probe import minimise, stratified_holdout
from geokr_core.networks.stopwatch import computing

KNN5: Final = "torchgeo_bench_knn5"
LINEAR: Final = "torchgeo_bench_linear"
"""Names of the two protocols in `evaluation.protocols`."""

NEIGHBOURS: Final = 5
C_RANGE: Final = (-6.0, 4.0, 40)
"""Exponents of the first and last C, and how many there are, evenly spread over the exponents."""
RESAMPLES: Final = 200
VALIDATION_FRACTION: Final = 0.2
"""Of the labelled items, where a set has no validation split: torchgeo-bench's own sets all have one."""

_SEARCH_ITERATIONS: Final = 2000
_FINAL_ITERATIONS: Final = 4000
_TOLERANCE: Final = 1e-7


@dataclass(frozen=True)
class Found:
    """What a protocol gives.

    Attributes:
        predicted: int64 (M,), classes of the test items.
        best_c: the C that was chosen; None for k-NN.
        num_train: items that were trained on while C was chosen.
        num_validation: items that C was chosen on, and that were trained on in the end.
    """

    predicted: np.ndarray
    best_c: float | None
    num_train: int
    num_validation: int


def knn5(features: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Found:
    """Classify by the majority of five neighbours; of classes with equal votes the first one.

    Args:
        features: float32 (N, D), of labelled training items.
        labels: int64 (N,).
        queries: float32 (M, D), of test items.

    Raises:
        EvaluationError: a feature is not finite.
    """
    _require_finite(features, queries)
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(labels)), algorithm="brute")
    with computing():
        near = labels[search.fit(features).kneighbors(queries, return_distance=False)]
    votes = (near[:, :, None] == np.arange(labels.max() + 1)).sum(axis=1)
    return Found(votes.argmax(axis=1).astype(np.int64), None, len(labels), 0)


def linear(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, *, seed: int) -> Found:
    """Logistic regression; C by accuracy on a fifth of the labelled items, the smallest of equally good ones.

    Args:
        features: float32 (N, D), of labelled training items.
        labels: int64 (N,), every class present.
        queries: float32 (M, D), of test items.
        num_classes: number of classes K.
        seed: of the items that C is chosen on.

    Raises:
        EvaluationError: a feature is not finite, or no class has a second item to choose C on.
    """
    _require_finite(features, queries)
    fitting, held_out = stratified_holdout(labels, seed, VALIDATION_FRACTION)
    if not len(held_out):
        raise EvaluationError(
            f"{LINEAR} chooses C on held-out labelled items, and every class has one: ask for 2 labels a class or more."
        )
    best_c, best = None, -1.0
    for c in np.logspace(*C_RANGE):
        weight, bias = _fitted(features[fitting], labels[fitting], num_classes, float(c), _SEARCH_ITERATIONS)
        accuracy = float((_predicted(features[held_out], weight, bias) == labels[held_out]).mean())
        if accuracy > best:
            best_c, best = float(c), accuracy
    assert best_c is not None  # noqa: S101  (accuracies are at least 0)
    weight, bias = _fitted(features, labels, num_classes, best_c, _FINAL_ITERATIONS)
    return Found(_predicted(queries, weight, bias), best_c, len(fitting), len(held_out))


def accuracy_interval(correct: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of accuracy over `RESAMPLES` of the test items.

    Args:
        correct: bool (M,), whether each test item was classified rightly.
        seed: of the resamples.
    """
    rows = np.random.default_rng(seed).integers(0, len(correct), size=(RESAMPLES, len(correct)))
    low, high = np.percentile(correct[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _fitted(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float, steps: int) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of least mean cross-entropy + |W|² / (2 C N), from zero by L-BFGS in float32."""
    inputs = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    targets = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    weight = torch.zeros(num_classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        history_size=10,
        tolerance_grad=_TOLERANCE,
        tolerance_change=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )
    minimise(solver, inputs, targets, weight, bias, 0.5 / (c * len(inputs)))
    return weight.detach(), bias.detach()


def _predicted(features: np.ndarray, weight: Tensor, bias: Tensor) -> np.ndarray:
    logits = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)) @ weight.T + bias
    predicted: np.ndarray = logits.argmax(dim=1).numpy()
    return predicted


def _require_finite(*parts: np.ndarray) -> None:
    if not all(np.isfinite(part).all() for part in parts):
        raise EvaluationError(
            "torchgeo-bench's protocols met features that are not finite; look at this network's training."
        )
