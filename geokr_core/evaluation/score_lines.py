"""One line a task for whoever opens the evaluation: what GeoKR reaches with the most labels, and what the other starts reach."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import PROTOCOL_NAMES, in_order, task_words
from geokr_core.evaluation.metrics import TaskMetrics
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
        By ``<task>: <metric>`` the scores of every start, with the 95 % interval of GeoKR's, by the first protocol and the
        largest amount of labels that it was judged with. Tasks that GeoKR was not judged on are left out.
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
        scores = [_score(label.label, beside[beside["initialisation"] == name]) for name, label in styles.items()]
        how = f"{PROTOCOL_NAMES.get(row['protocol'], row['protocol'])}, {labels_name(str(most))}"
        words = metrics.of(task, str(row["metric"])).words
        found[f"{task_words(task)}: {words}"] = f"{' · '.join(filter(None, scores))} ({how})"
    return found


def _score(name: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row: dict[Any, Any] = rows.iloc[0].to_dict()
    if math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]):
        return f"{name} {row['mean']:.3f}"
    return f"{name} {row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
