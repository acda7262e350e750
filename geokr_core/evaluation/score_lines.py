"""One line a task for whoever opens the evaluation: what GeoKR reaches with the most labels, and what the best of the other starts does."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import PROTOCOL_NAMES, in_order, task_words
from geokr_core.evaluation.metrics import Metric, TaskMetrics
from geokr_core.evaluation.statistics import headline_rows, labels_order
from geokr_core.pictures.charts import Style

_OURS = "geokr"


def score_lines(summary: pd.DataFrame, metrics: TaskMetrics, styles: Mapping[str, Style]) -> dict[str, str]:
    """Scores of each task in words.

    Args:
        summary: means over seeds, one row a cell and metric.
        metrics: of the tasks.
        styles: of the initialisations, in the order in which they are named.

    Returns:
        By ``<task>: <metric> (<protocol>, <labels>)`` the score of GeoKR with its 95 % interval, and of the other start that
        reaches most, by the first protocol and the largest amount of labels that GeoKR was judged with; short enough for a
        table of Dagster's. Tasks that GeoKR was not judged on are left out.
    """
    first = headline_rows(summary, metrics)
    found = {}
    for task in in_order(first["task"]):
        rows = first[first["task"] == task]
        ours = rows[rows["initialisation"] == _OURS]
        if ours.empty:
            continue
        most = max(ours["labels_per_class"], key=labels_order)
        row = ours[ours["labels_per_class"] == most].iloc[0]
        beside = rows[(rows["protocol"] == row["protocol"]) & (rows["labels_per_class"] == most)]
        metric = metrics.of(task, str(row["metric"]))
        how = f"{PROTOCOL_NAMES.get(row['protocol'], row['protocol'])}, {labels_name(str(most))}"
        scores = f"{styles[_OURS].label} {_with_interval(row.to_dict())}{_best_other(beside, metric, styles)}"
        found[f"{task_words(task)}: {metric.words} ({how})"] = scores
    return found


def _with_interval(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]):
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _best_other(rows: pd.DataFrame, metric: Metric, styles: Mapping[str, Style]) -> str:
    others = rows[rows["initialisation"] != _OURS]
    if others.empty:
        return ""
    best: dict[Any, Any] = others.iloc[int((others["mean"] * metric.sign).to_numpy().argmax())].to_dict()
    return f" · best other: {styles[best['initialisation']].label} {best['mean']:.3f}"
