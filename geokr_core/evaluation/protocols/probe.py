"""Frozen features and a linear classifier on top: the linear probe, and the colour histogram that it must clear.

Here: starting a network, extracting its pooled features, the 54 numbers of the colour histogram, multinomial logistic
regression. Not here: reading images, drawing labels and scoring (``tasks``); learning all weights (``fine_tuning``).

Images are uint8 (N, H, W, 3), red, green, blue. Features are float32 (N, D). Labels are int64 (N,).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.starts import EXTRACTION_BATCH
from geokr_core.networks.architectures import Features
from geokr_core.networks.network import pooled
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime, one_thread
from geokr_core.networks.stopwatch import computing

HISTOGRAM_BINS = 16
HISTOGRAM_BATCH = 256
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Candidates for C, the inverse L2 strength in scikit-learn's sense: 0.5 |w|² + C * sum of losses, rising."""
SINGLE_LABEL_STRENGTH = 0.1
"""C where every class has one labelled item, so that none can be held out: the middle of `STRENGTHS`, fixed so that no
choice is made on test items."""
HOLDOUT_FRACTION = 0.2
HOLDOUTS = 3
"""Draws of held-out items that C is chosen on: a single one of a few items a class says too little."""
MANY_ITEMS = 1000
"""From so many labelled items on, one draw of held-out items says enough."""

_NUMBERS_AT_ONCE = 2**16
"""Features that are standardised at a time: they stay in the cache. The cells of a thousand chips at once are half a gigabyte, which the
system pages in anew for each draw: that took more than half of the time of mapping."""

_MAX_ITERATIONS = 1000
_GRADIENT_TOLERANCE = 1e-4
"""On the mean loss, as scikit-learn's default."""


def extract_features(
    network: nn.Module,
    images: np.ndarray,
    normalisation: Normalisation,
    features: Features,
    runtime: Runtime,
) -> np.ndarray:
    """Pooled features of images.

    Args:
        network: in evaluation mode.
        images: uint8 (N, H, W, 3).
        normalisation: of the input, on the runtime's device.
        features: last stage, or all stages side by side.
        runtime: where it runs.

    Returns:
        float32 (N, D).

    Raises:
        EvaluationError: a feature is not finite.
    """
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), EXTRACTION_BATCH):
            batch = normalisation(torch.from_numpy(images[first : first + EXTRACTION_BATCH]).to(runtime.device))
            with computing(), runtime.autocast():
                found = pooled(network, batch, features)
            parts.append(found.float().cpu().numpy())
    values: np.ndarray = np.concatenate(parts)
    num_bad = int((~np.isfinite(values)).any(axis=1).sum())
    if num_bad:
        raise EvaluationError(
            f"The network gives features that are not finite for {num_bad} of {len(values)} images; expected finite "
            "numbers. Its weights are damaged or its training diverged: look at the pretraining curves and run "
            "`geokr pretrain` again."
        )
    return values


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """The 54 numbers that know colours and nothing else: the baseline every pretraining must clear.

    Args:
        images: uint8 (N, H, W, 3).

    Returns:
        float32 (N, 54): a histogram of 16 equal bins of 0–255 for each channel as shares of the pixels, then
        the channel means, then the channel standard deviations, both scaled to 0–1.
    """
    parts = [
        _colour_numbers(images[first : first + HISTOGRAM_BATCH]) for first in range(0, len(images), HISTOGRAM_BATCH)
    ]
    return np.concatenate(parts).astype(np.float32)


def _colour_numbers(images: np.ndarray) -> np.ndarray:
    num_images, num_channels = len(images), images.shape[-1]
    pixels = images.reshape(num_images, -1, num_channels)
    # One histogram for each image and channel, by giving each its own range of bin numbers.
    cells = np.arange(num_images * num_channels).reshape(num_images, 1, num_channels) * HISTOGRAM_BINS
    bins = pixels // (256 // HISTOGRAM_BINS) + cells
    counts = np.bincount(bins.ravel(), minlength=num_images * num_channels * HISTOGRAM_BINS)
    shares = counts.reshape(num_images, num_channels * HISTOGRAM_BINS) / pixels.shape[1]
    scaled = pixels.astype(np.float32) / 255.0
    return np.concatenate([shares, scaled.mean(axis=1), scaled.std(axis=1)], axis=1)


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression over standardised features.

    Attributes:
        centre: float64 (D,), subtracted from features.
        scale: float64 (D,), features are divided by it.
        weight: float32 (K, D).
        bias: float32 (K,).
        strength: C, the inverse L2 strength it was fitted with.
    """

    centre: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The most probable class of each item.

        Args:
            features: float32 (N, D).

        Returns:
            int64 (N,).

        Raises:
            EvaluationError: a prediction is not finite.
        """
        rows = max(1, _NUMBERS_AT_ONCE // features.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below, with words
            blocks = [self._logits(features[first : first + rows]) for first in range(0, max(1, len(features)), rows)]
        logits = np.concatenate(blocks)
        if not np.isfinite(logits).all():
            raise EvaluationError(
                "The linear probe predicts values that are not finite; expected finite logits. "
                "Look for constant or enormous features in this network."
            )
        predicted: np.ndarray = logits.argmax(axis=1).astype(np.int64)
        return predicted

    def _logits(self, features: np.ndarray) -> np.ndarray:
        standardised = features - self.centre
        standardised /= self.scale
        logits: np.ndarray = standardised @ self.weight.T + self.bias
        return logits


def nearest_neighbours(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, unlabelled: np.ndarray, num_neighbours: int
) -> np.ndarray:
    """Classify by the labelled images whose features point the same way.

    Cosine similarity of standardised features, votes weighted by similarity: the usual k-NN protocol of
    self-supervised learning, without its temperature.

    Args:
        features: float32 (N, D), of labelled training items.
        labels: int64 (N,).
        queries: float32 (M, D), of test items.
        unlabelled: float32 (P, D), of all training items, labelled or not: features are standardised by them.
        num_neighbours: items that vote, at most N.

    Returns:
        int64 (M,). Of classes with equal votes the first one.

    Raises:
        EvaluationError: a feature is not finite.
    """
    centre, scale = standardisation(unlabelled)
    known, asked = ((part - centre) / scale for part in (features, queries))
    if not (np.isfinite(known).all() and np.isfinite(asked).all()):
        raise EvaluationError("k-NN met features that are not finite; look for enormous features in this network.")
    classifier = KNeighborsClassifier(
        min(num_neighbours, len(labels)), metric="cosine", algorithm="brute", weights=_votes
    )
    with computing():
        predicted: np.ndarray = classifier.fit(known, labels).predict(asked).astype(np.int64)
    return predicted


def _votes(distances: np.ndarray) -> np.ndarray:
    """Similarity plus 1, from cosine distances: 0–2, so that an opposite neighbour has no vote."""
    return 2.0 - distances


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, 1 where a feature is constant.

    Args:
        features: float32 (N, D).

    Returns:
        Two float64 (D,).
    """
    centre = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    constant = scale <= 1e-7 * np.maximum(np.abs(centre), 1e-7)
    return centre, np.where(constant, 1.0, scale)


def fit_probe(
    features: np.ndarray, labels: np.ndarray, num_classes: int, unlabelled: np.ndarray, *, seed: int
) -> LinearClassifier:
    """Fit the linear probe: C is chosen among `STRENGTHS` on held-out labelled items, then all of them are fitted.

    A fixed C would judge features by how many there are: 1,280 of them want a stronger penalty than 54 colour numbers.

    Args:
        features: float32 (N, D), of labelled training items only.
        labels: int64 (N,), every class present.
        num_classes: number of classes K.
        unlabelled: float32 (M, D), of all training items, labelled or not: features are standardised by them, since
            mean and deviation of a few labelled items are mostly noise.
        seed: of the held-out items.

    Returns:
        The classifier.

    Raises:
        EvaluationError: the fit does not stay finite.
    """
    centre, scale = standardisation(unlabelled)
    standardised = (features - centre) / scale
    strength = _chosen_strength(standardised, labels, num_classes, seed)
    weight, bias = fit_logistic_regression(standardised, labels, num_classes, strength)
    return LinearClassifier(centre, scale, weight, bias, strength)


def _chosen_strength(features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int) -> float:
    """The C of least held-out cross-entropy: smoother over C than accuracy, so that the search may stop past its dip.

    Weak penalties, which take longest to fit and only overfit past the dip, are thus never tried in vain.
    """
    num_draws = 1 if len(labels) >= MANY_ITEMS else HOLDOUTS
    draws = [stratified_holdout(labels, [seed, number]) for number in range(num_draws)]
    if not len(draws[0][1]):
        return SINGLE_LABEL_STRENGTH
    best, least = STRENGTHS[0], np.inf
    solutions: list[tuple[np.ndarray, np.ndarray] | None] = [None] * num_draws
    for strength in STRENGTHS:
        losses = []
        for number, (fitting, held_out) in enumerate(draws):
            solution = fit_logistic_regression(
                features[fitting], labels[fitting], num_classes, strength, solutions[number]
            )
            solutions[number] = solution
            logits = torch.from_numpy(features[held_out] @ solution[0].T + solution[1])
            losses.append(float(F.cross_entropy(logits, torch.from_numpy(labels[held_out]))))
        loss = float(np.mean(losses))
        if loss >= least:
            break
        best, least = strength, loss
    return best


def stratified_holdout(
    labels: np.ndarray, seed: int | Sequence[int], fraction: float = HOLDOUT_FRACTION
) -> tuple[np.ndarray, np.ndarray]:
    """Split items into those to fit on and those held out, a share of each class.

    Args:
        labels: int64 (N,).
        seed: of the draw.
        fraction: share held out of each class, at least one item of a class of several.

    Returns:
        Two int64 arrays of item numbers. A class of a single item is fitted on.
    """
    rng = np.random.default_rng(seed)
    fitting, held_out = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        num_held_out = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held_out.append(rows[:num_held_out])
        fitting.append(rows[num_held_out:])
    return np.sort(np.concatenate(fitting)), np.sort(np.concatenate(held_out))


def fit_logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strength: float,
    first_guess: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression, the same problem as scikit-learn's ``LogisticRegression(C=strength)``.

    Minimises ``0.5 |w|² + C * sum of cross-entropies`` (the bias is free) by L-BFGS, in float32 and on one CPU thread,
    so that the result depends neither on the device nor on the number of threads.

    Args:
        features: float (N, D), standardised.
        labels: int64 (N,).
        num_classes: number of classes K.
        strength: C.
        first_guess: weight and bias to start from; the problem is convex, so it saves time and changes nothing.

    Returns:
        weight float32 (K, D) and bias float32 (K,).

    Raises:
        EvaluationError: the solution is not finite.
    """
    inputs = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    targets = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    if first_guess is None:
        first_guess = np.zeros((num_classes, inputs.shape[1])), np.zeros(num_classes)
    weight, bias = (torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in first_guess)
    penalty = 0.5 / (strength * len(inputs))
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    minimise(solver, inputs, targets, weight, bias, penalty)
    solution = weight.detach().numpy(), bias.detach().numpy()
    if not (np.isfinite(solution[0]).all() and np.isfinite(solution[1]).all()):
        raise EvaluationError(
            f"Logistic regression on {features.shape[0]} items of {features.shape[1]} features gave weights that are "
            "not finite; expected finite ones. Look for features that are not finite or enormous."
        )
    return solution


def minimise(
    solver: torch.optim.LBFGS, inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, penalty: float
) -> None:
    """Let a solver bring ``weight`` and ``bias`` to the least mean cross-entropy + ``penalty`` |W|², on one thread.

    Args:
        solver: of ``weight`` and ``bias``, which it changes.
        inputs: float32 (N, D).
        targets: int64 (N,).
        weight: (K, D).
        bias: (K,).
        penalty: of the squared weights; 0.5 / (C N) is scikit-learn's C.
    """

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), targets) + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with one_thread(), computing():
        solver.step(loss)  # type: ignore[no-untyped-call]
