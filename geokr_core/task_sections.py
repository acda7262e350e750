"""The report's sections on downstream tasks: the headline table, budgets, classes, label efficiency, pictures.

Numbers come from the outputs of ``evaluate``; nothing is measured. Layout is in ``templates``, the page in ``report``.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geokr_core.charts import (
    FEATURE_NAMES,
    INITIALISATION_COLOURS,
    INITIALISATION_NAMES,
    METRIC_NAMES,
    PROTOCOL_NAMES,
    labels_name,
)
from geokr_core.files import read_json
from geokr_core.statistics import labels_order


def task_sections(evaluation: Path) -> dict[str, Any]:
    """Everything about tasks that is not a score of a whole cell.

    Args:
        evaluation: the evaluation's folder. What an evaluation of an earlier version did not write is left out.

    Returns:
        ``budgets``, ``per_class``, ``efficiency``, ``screening`` and ``galleries`` for the templates, each perhaps empty.
    """
    details = _json(evaluation / "details.json", {"tasks": {}, "cells": []})
    return {
        "budgets": [_budget(task, content) for task, content in sorted(details["tasks"].items())],
        "per_class": _per_class(_csv(evaluation / "per_class.csv")),
        "efficiency": _efficiency(_csv(evaluation / "label_efficiency.csv")),
        "screening": _screening(details["cells"]),
        "galleries": _galleries(_json(evaluation / "gallery.json", {})),
    }


def item_intervals(evaluation: Path) -> pd.DataFrame:
    """Rows of ``differences.csv``, for their intervals over test items; empty where an earlier version wrote none."""
    table = _csv(evaluation / "differences.csv")
    return table if "items_ci_low" in table else pd.DataFrame()


def _json(path: Path, otherwise: Any) -> Any:
    return read_json(path) if path.is_file() else otherwise


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"labels_per_class": str}) if path.is_file() else pd.DataFrame()


def _budget(task: str, content: Mapping[str, Any]) -> dict[str, Any]:
    facts = [(name, _words(value)) for name, value in content["budget"].items()]
    return {"task": task, "facts": facts, "notes": content["notes"]}


def _words(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _per_class(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One table a task and metric, of its most labels and the protocol that is spoken of; classes down, starts across."""
    if table.empty:
        return []
    pages = []
    for (task, metric), rows in table.groupby(["task", "metric"], sort=True):
        protocol = min(set(rows["protocol"]), key=list(PROTOCOL_NAMES).index)
        rows = rows[rows["protocol"] == protocol]
        labels = max(set(rows["labels_per_class"]), key=labels_order)
        rows = rows[(rows["labels_per_class"] == labels) & (rows["features"] != "multi")]
        columns = [name for name in INITIALISATION_COLOURS if (rows["initialisation"] == name).any()]
        means = {(r["class"], r["initialisation"]): float(r["mean"]) for r in rows.to_dict("records")}
        body = [
            {"name": name, "cells": [_figure(means.get((name, column), math.nan)) for column in columns]}
            for name in dict.fromkeys(rows["class"])
        ]
        pages.append(
            {
                "task": task,
                "metric": {"iou": "IoU", "ap": "AP (COCO)", "ap50": "AP at IoU 0.5", "f1": "F1"}.get(
                    str(metric), metric
                ),
                "caption": f"{PROTOCOL_NAMES[protocol]}, {labels_name(labels)}, mean over seeds; – is a class without test items",
                "columns": _heads(columns),
                "rows": body,
            }
        )
    return pages


def _heads(columns: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": INITIALISATION_NAMES[name], "colour": INITIALISATION_COLOURS[name]} for name in columns]


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _efficiency(table: pd.DataFrame) -> list[list[str]]:
    rows = []
    for row in table.to_dict("records"):
        needed, share = float(row["needed_label_fraction"]), float(row["target_label_fraction"])
        rows.append(
            [
                str(row["task"]),
                PROTOCOL_NAMES.get(str(row["protocol"]), str(row["protocol"])),
                FEATURE_NAMES.get(str(row["features"]), str(row["features"])),
                f"{INITIALISATION_NAMES[str(row['initialisation'])]}: "
                f"{METRIC_NAMES.get(str(row['metric']), str(row['metric']))} {float(row['target']):.3f} "
                f"with {share:.1%} of the labels",
                "not reached" if math.isnan(needed) else f"{needed:.1%} of the labels",
            ]
        )
    return rows


def _screening(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Over- and under-screening by scene of the pretrained backbone, most labels, first seed."""
    found: dict[str, Mapping[str, Any]] = {}
    ours = [c for c in cells if "screening" in c and c["initialisation"] == "geokr"]
    for cell in sorted(ours, key=lambda c: labels_order(str(c["labels_per_class"])), reverse=True):
        found.setdefault(str(cell["task"]), cell)
    return [
        {
            "task": task,
            "caption": f"GeoKR, {labels_name(str(cell['labels_per_class']))}, seed {cell['seed']}",
            "rows": [
                [s["scene"], f"{s['over_screened']:.3f}", f"{s['under_screened']:.3f}"] for s in cell["screening"]
            ],
        }
        for task, cell in sorted(found.items())
    ]


def _galleries(content: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "name": INITIALISATION_NAMES[name],
            "caption": labels_name(of_task[name]["labels_per_class"]),
            "pictures": of_task[name]["png"],
        }
        for task, of_task in sorted(content.items())
        for name in INITIALISATION_COLOURS
        if name in of_task
    ]
