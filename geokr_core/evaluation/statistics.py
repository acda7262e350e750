"""Means, intervals and paired differences of an evaluation. Numbers and tables only: no files, no torch.

Two kinds of uncertainty are kept apart. The interval of a single cell says how far its score would move with other
test images of the same kind. The interval over seeds says how far the mean would move with other pretrainings, other
random networks and other draws of labels. Neither contains the other.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import UNTRAINED, parts_of
from geokr_core.evaluation.metrics import TaskMetrics
from geokr_core.evaluation.task_kinds import KNOWN_METRICS

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 200
"""Enough for a 95 % percentile interval good to a tenth of its width, at some 50 ms a cell."""

CELL_KEYS = ["task", "protocol", "features", "labels_per_class", "metric"]
SUMMARY_COLUMNS = [
    "task",
    "initialisation",
    "protocol",
    "features",
    "labels_per_class",
    "metric",
    "mean",
    "ci_low",
    "ci_high",
    "n_seeds",
]
DIFFERENCE_COLUMNS = [
    *CELL_KEYS,
    "contrast",
    "mean",
    "ci_low",
    "ci_high",
    "n_seeds",
    "items_ci_low",
    "items_ci_high",
    "items_overlap",
]
EFFICIENCY_COLUMNS = [
    "task",
    "protocol",
    "features",
    "metric",
    "ours",
    "initialisation",
    "target",
    "target_label_fraction",
    "needed_label_fraction",
]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; the bounds are NaN where one value alone gives none."""

    mean: float
    ci_low: float
    ci_high: float
    n_seeds: int


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of Student's t over independent repetitions.

    Args:
        values: one finite value a repetition.

    Returns:
        The mean plus and minus ``t(0.975, n - 1) * s / sqrt(n)``; NaN bounds for a single value.

    Raises:
        EvaluationError: no value at all, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise EvaluationError(
            f"Found scores {list(values)}; expected finite numbers, one a seed. "
            "A score that could not be measured must not enter a mean: remove its cell and evaluate again."
        )
    if array.size == 1:
        return Estimate(float(array.mean()), math.nan, math.nan, 1)
    with warnings.catch_warnings():
        # scipy doubts its digits where values are nearly equal; that such an interval has no width is what is wanted.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_1samp(array, 0.0).confidence_interval(CONFIDENCE)
    return Estimate(float(array.mean()), float(interval.low), float(interval.high), int(array.size))


def wilson_interval(num_correct: int, num_items: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy over test items (Wilson 1927, JASA 22:209).

    Args:
        num_correct: items predicted correctly.
        num_items: test items, at least 1.

    Returns:
        Lower and upper bound, 0–1.
    """
    interval = stats.binomtest(num_correct, num_items).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def macro_f1_interval(truth: np.ndarray, predicted: np.ndarray, num_classes: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the macro-averaged F1 score over test items.

    Args:
        truth: int (N,), class indices.
        predicted: int (N,), class indices.
        num_classes: number of classes K averaged over.
        seed: of the resampling.

    Returns:
        Lower and upper bound, 0–1.
    """
    pairs = np.asarray(truth, dtype=np.int32) * num_classes + np.asarray(predicted, dtype=np.int32)
    if len(pairs) < 2:
        return math.nan, math.nan
    result = stats.bootstrap(
        (pairs,),
        _macro_f1_of_pairs(num_classes),
        n_resamples=BOOTSTRAP_RESAMPLES,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _macro_f1_of_pairs(num_classes: int) -> Callable[..., np.ndarray]:
    """Macro F1 of items coded ``truth * K + predicted`` along an axis, for all resamples at once."""

    def statistic(pairs: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.moveaxis(np.atleast_2d(pairs), axis, -1)
        offsets = np.arange(len(rows))[:, None] * num_classes**2
        counts = np.bincount((rows + offsets).ravel(), minlength=len(rows) * num_classes**2)
        table = counts.reshape(len(rows), num_classes, num_classes).astype(np.float64)
        hits = np.diagonal(table, axis1=1, axis2=2)
        marginals = table.sum(axis=1) + table.sum(axis=2)
        # 2 TP / (2 TP + FP + FN); a class neither present nor predicted counts as 0, as in scikit-learn.
        f1 = np.divide(2 * hits, marginals, out=np.zeros_like(hits), where=marginals > 0).mean(axis=1)
        return np.asarray(f1 if np.ndim(pairs) > 1 else f1[0])

    return statistic


def bootstrap_rows(num_items: int) -> np.ndarray:
    """Resampled test items, the same for every initialisation of a task, so that their scores are pairs.

    Args:
        num_items: number of test items N.

    Returns:
        int64 (`BOOTSTRAP_RESAMPLES`, N), drawn with replacement.
    """
    return np.random.default_rng([0, num_items]).integers(0, num_items, size=(BOOTSTRAP_RESAMPLES, num_items))


def percentile_interval(replicates: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap replicates; NaN where there are none."""
    if len(replicates) == 0:
        return math.nan, math.nan
    low, high = np.quantile(np.asarray(replicates, dtype=np.float64), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


def labels_order(labels: str) -> tuple[int, float]:
    """Sort key of ``labels_per_class``: numbers by size, then shares by size, ``all`` last."""
    if labels == "all":
        return (2, 0.0)
    return (1, float(labels[:-1])) if labels.endswith("%") else (0, int(labels.removesuffix(" chips")))


def headline_rows(table: pd.DataFrame, metrics: TaskMetrics = KNOWN_METRICS) -> pd.DataFrame:
    """The rows of the metric that each task is judged by.

    Args:
        table: with the columns ``task`` and ``metric``.
        metrics: of the tasks.
    """
    there = {str(task): list(dict.fromkeys(rows)) for task, rows in table.groupby("task")["metric"]}
    first = {task: metrics.headline(task, names) for task, names in there.items()}
    return table[table["metric"] == table["task"].map(first)]


def sort_rows(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Sort a table of results, ``labels_per_class`` by size and not by spelling."""

    def key(column: pd.Series) -> pd.Series:
        return column.map(labels_order) if column.name == "labels_per_class" else column

    return table.sort_values(list(by), key=key, kind="stable").reset_index(drop=True)


def repetitions(results: pd.DataFrame) -> pd.Series:
    """What each row is a repetition of: rows of one cell that share a value here are no independent ones.

    A frozen network that is given all labels is the same measurement whatever the seed, up to how its classifier was
    regularised. Counted as several, it would lend an interval a certainty that no one has.

    Args:
        results: rows of ``results.parquet``.

    Returns:
        Text: the network where nothing else was drawn, else network and seed; the seed alone where the table does not say
        which network it was.
    """
    seeds = results["seed"].astype(str)
    if "network" not in results:
        return seeds
    networks = results["network"].map(lambda network: "" if pd.isna(network) else str(network))
    nothing_drawn = (
        networks.ne("") & results["protocol"].ne("fine_tune") & results["labels_per_class"].astype(str).eq("all")
    )
    return networks + "/" + seeds.mask(nothing_drawn, "")


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds of every cell of the comparison.

    Args:
        results: rows of ``results.parquet``.

    Returns:
        One row a task, initialisation, protocol, features, labels and metric; columns `SUMMARY_COLUMNS`, where ``n_seeds``
        counts `repetitions`.

    Raises:
        EvaluationError: a value is not finite.
    """
    keys = SUMMARY_COLUMNS[:6]
    rows = []
    for key, group in results.groupby(keys, sort=False):
        estimate = t_interval(group.groupby(repetitions(group), sort=False)["value"].mean().tolist())
        rows.append([*key, estimate.mean, estimate.ci_low, estimate.ci_high, estimate.n_seeds])
    return sort_rows(pd.DataFrame(rows, columns=SUMMARY_COLUMNS), keys)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], pair_of: Mapping[int, Hashable] | None = None
) -> Estimate:
    """Mean difference of two initialisations over the seeds they share, with its 95 % t-interval.

    Args:
        first: score by seed.
        second: score by seed, of the same seeds (the same draws of labels).
        pair_of: by seed, what the pair is a repetition of: pairs of one value count once, by their mean; None: each seed
            is a separate one.

    Raises:
        EvaluationError: the seeds differ, so that the scores are not pairs.
    """
    if first.keys() != second.keys():
        raise EvaluationError(
            f"Found seeds {sorted(first)} on one side and {sorted(second)} on the other; a paired difference needs the "
            "same seeds on both. Evaluate all initialisations with one list of `evaluation.seeds`."
        )
    pairs: dict[Hashable, list[float]] = {}
    for seed in sorted(first):
        pairs.setdefault(seed if pair_of is None else pair_of[seed], []).append(first[seed] - second[seed])
    return t_interval([math.fsum(values) / len(values) for values in pairs.values()])


def contrasts(initialisations: Iterable[str]) -> list[tuple[str, str]]:
    """Which initialisations are compared, first minus second.

    Args:
        initialisations: names, in the order in which they are to be compared.

    Returns:
        `geokr` with every other one; then every other pretraining with `imagenet` and with `simclr`, where these are among
        them: ImageNet weights cost nothing and SimCLR needs no land cover, so both are what a pretraining has to beat.
        The control `shuffled` claims nothing. Two starts side by side are compared with each of the two: what does one add?
    """
    everything = list(dict.fromkeys(initialisations))
    names = [name for name in everything if len(parts_of(name)) == 1]
    trained = [name for name in names if name not in (*UNTRAINED, "geokr", "shuffled")]
    against_ours = [("geokr", name) for name in names if name != "geokr" and "geokr" in names]
    added = [
        (name, part)
        for name in everything
        if name not in names
        for part in dict.fromkeys(parts_of(name))
        if part in names
    ]
    references = [name for name in ("imagenet", "simclr") if name in names]
    return against_ours + [(name, other) for other in references for name in trained if name != other] + added


def contrast_sides(contrast: str) -> tuple[str, str]:
    """The two initialisations of ``"geokr - random"``; no name of a variant holds a blank."""
    first, second = contrast.split(" - ")
    return first, second


def cell_of(cell: Sequence[str], initialisation: str) -> tuple[str, ...]:
    """Where an initialisation is found that stands in a cell.

    Args:
        cell: task, protocol, features, and whatever else distinguishes cells.
        initialisation: its name.

    Returns:
        The cell and the name. The colour histogram has other features and stands beside all others.
    """
    task, protocol, features, *rest = cell
    return (task, protocol, "histogram" if initialisation == "colour_histogram" else features, *rest, initialisation)


def differences(results: pd.DataFrame, replicates: pd.DataFrame | None = None) -> pd.DataFrame:
    """Paired differences of all `contrasts`, over seeds and over test items.

    Args:
        results: rows of ``results.parquet``.
        replicates: one row a cell with its first metric on resampled test items. The same resamples of two
            initialisations are subtracted in pairs and averaged over seeds: the columns ``items_ci_*`` hold the 95 %
            percentile interval of that, NaN where it is not known. ``items_overlap`` tells whether the two sides' own
            intervals over test items, averaged over seeds, overlap: seeds alone may show no variation at all (all labels,
            one pretraining), which is no certainty about other test items.

    Returns:
        One row a cell and contrast (``"geokr - random"`` …); columns `DIFFERENCE_COLUMNS`. A cell that only one side
        was evaluated in has no row; the table is empty where nothing can be compared.

    Raises:
        EvaluationError: two initialisations were not evaluated on the same seeds.
    """
    scores = _by_cell(results, "value")
    repeated = _by_cell(results.assign(repetition=repetitions(results)), "repetition")
    resampled = {} if replicates is None else _by_cell(replicates, "replicates")
    bounds = _item_bounds(results)
    pairs = contrasts(results["initialisation"])
    rows = []
    for cell in dict.fromkeys(key[:-1] for key in scores):
        for first, second in pairs:
            ours, theirs = cell_of(cell, first), cell_of(cell, second)
            if ours not in scores or theirs not in scores:
                continue
            pair_of = {seed: (mine, repeated[theirs].get(seed)) for seed, mine in repeated[ours].items()}
            estimate = paired_difference(scores[ours], scores[theirs], pair_of)
            items = _item_interval(resampled.get(ours, {}), resampled.get(theirs, {}))
            overlap = _overlap(bounds.get(ours), bounds.get(theirs))
            figures = [estimate.mean, estimate.ci_low, estimate.ci_high, estimate.n_seeds, *items, overlap]
            rows.append([*cell, f"{first} - {second}", *figures])
    table = pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)
    return table if table.empty else sort_rows(table, DIFFERENCE_COLUMNS[:6])


def _by_cell(table: pd.DataFrame, column: str) -> dict[tuple[str, ...], dict[int, Any]]:
    """What a column holds of each cell and initialisation, by seed."""
    return {
        tuple(map(str, key)): dict(zip(rows["seed"].tolist(), rows[column].tolist(), strict=True))
        for key, rows in table.groupby([*CELL_KEYS, "initialisation"], sort=False)
    }


def _item_interval(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> tuple[float, float]:
    if not ours or ours.keys() != theirs.keys():
        return math.nan, math.nan
    pairs = [np.asarray(ours[seed], np.float64) - np.asarray(theirs[seed], np.float64) for seed in ours]
    return percentile_interval(np.mean(pairs, axis=0).tolist())


def _item_bounds(results: pd.DataFrame) -> dict[tuple[str, ...], tuple[float, float]]:
    """Each cell's interval over test items, averaged over seeds; empty where the table holds none."""
    if not {"ci_low", "ci_high"} <= set(results.columns):
        return {}
    means = results.groupby([*CELL_KEYS, "initialisation"])[["ci_low", "ci_high"]].mean()
    return {tuple(map(str, key)): (float(low), float(high)) for key, low, high in means.itertuples()}


def _overlap(ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> bool:
    """Whether two intervals overlap; False where one is not known."""
    return ours is not None and theirs is not None and ours[0] <= theirs[1] and theirs[0] <= ours[1]


def label_efficiency(results: pd.DataFrame, metrics: TaskMetrics = KNOWN_METRICS) -> pd.DataFrame:
    """How many labels one initialisation needs to reach what another reaches with the most labels, for all `contrasts`.

    The score between two amounts of labels is interpolated linearly over the logarithm of the share of labelled
    training items.

    Args:
        results: rows of ``results.parquet``.
        metrics: of the tasks.

    Returns:
        One row a task, protocol, features and contrast; columns `EFFICIENCY_COLUMNS`. ``target`` is the mean of
        ``initialisation`` with its most labels; ``needed_label_fraction`` is the smallest share with which ``ours``
        reaches it, NaN where it never does. The smallest share tried is an upper bound: fewer may do. What was
        evaluated with one amount of labels alone has no row as ``ours``.
    """
    headline = headline_rows(results, metrics)
    keys = ["task", "protocol", "features", "metric", "initialisation"]
    means = headline.groupby([*keys, "label_fraction"], as_index=False)["value"].mean()
    curves = {
        tuple(map(str, key)): pd.DataFrame(rows).sort_values("label_fraction")
        for key, rows in means.groupby(keys, sort=True)
    }
    pairs = contrasts(headline["initialisation"])
    rows = []
    for cell in dict.fromkeys(key[:-1] for key in curves):
        for first, second in pairs:
            ours, theirs = curves.get(cell_of(cell, first)), curves.get(cell_of(cell, second))
            if ours is None or theirs is None or len(ours) < 2:
                continue
            target, share = float(theirs["value"].iloc[-1]), float(theirs["label_fraction"].iloc[-1])
            sign = metrics.of(cell[0], cell[3]).sign
            needed = _first_reaching(ours["label_fraction"].to_numpy(), sign * ours["value"].to_numpy(), sign * target)
            rows.append([*cell, first, second, target, share, needed])
    return pd.DataFrame(rows, columns=EFFICIENCY_COLUMNS)


def _first_reaching(fractions: np.ndarray, values: np.ndarray, target: float) -> float:
    if values[0] >= target:
        return float(fractions[0])
    for k in range(1, len(values)):
        if values[k] >= target:
            low, high = math.log(fractions[k - 1]), math.log(fractions[k])
            part = (target - values[k - 1]) / (values[k] - values[k - 1])
            return math.exp(low + part * (high - low))
    return math.nan


def flat_metrics(summary: pd.DataFrame) -> dict[str, float]:
    """Means by ``<task>/<protocol>/<features>/<labels>/<initialisation>/<metric>``, for ``dvc metrics``."""
    keys = ["task", "protocol", "features", "labels_per_class", "initialisation", "metric"]
    names = summary[keys].astype(str).agg("/".join, axis=1)
    return {name: round(mean, 6) for name, mean in zip(names, summary["mean"].tolist(), strict=True)}
