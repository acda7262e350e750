"""The report's sections on downstream tasks: scores, differences, budgets, classes, label efficiency, pictures.

Numbers come from the outputs of ``evaluate``; nothing is measured. Layout is in ``templates``, the page in ``report``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from geokr_core.evaluation.charts import FEATURE_NAMES, MANY_INITIALISATIONS, METRIC_NAMES, PROTOCOL_NAMES, labels_name
from geokr_core.evaluation.statistics import Estimate, contrast_sides, contrasts, headline_rows, labels_order
from geokr_core.pictures.charts import Style, initialisation_styles
from geokr_core.step.files import read_json

Styles = Mapping[str, Style]

_COLUMNS_IN_ONE_LINE: Final = 5
"""With more columns the interval stands below its mean."""


@dataclass(frozen=True)
class Head:
    """What stands at the edge of a table: words, those of an initialisation with its colour and shape."""

    words: str
    colour: str = ""
    shape: str = ""


@dataclass(frozen=True)
class Entry:
    """A figure of a table, and what is to be said of it.

    Attributes:
        mean: the figure.
        interval: its interval, or what else belongs to it.
        note: a line of its own below.
        verdict: ``ahead`` or ``behind``, perhaps with a star, or nothing.
    """

    mean: str
    interval: str = ""
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A table that templates know how to draw.

    Attributes:
        title: words above it.
        corner: names of the columns that are heads of the rows.
        columns: heads of the other columns.
        rows: heads and entries of each row; None where nothing was evaluated.
        folded: shown on demand only.
    """

    title: str
    corner: Sequence[str]
    columns: Sequence[Head]
    rows: Sequence[tuple[Sequence[Head], Sequence[Entry | None]]]
    folded: bool = False

    @property
    def stacked(self) -> bool:
        """Whether intervals stand below their means, for want of width."""
        return len(self.columns) > _COLUMNS_IN_ONE_LINE


def laid_out(
    title: str,
    settings: Mapping[Any, Sequence[str]],
    setting_names: Sequence[str],
    compared: Mapping[Any, Head],
    compared_name: str,
    entries: Mapping[tuple[Any, Any], Entry],
    *,
    folded: bool = False,
) -> Table:
    """A table with settings down and what is compared across, or the other way round where that is too much across.

    Args:
        title: words above it.
        settings: words of each setting, by its key.
        setting_names: what these words are.
        compared: heads of what is compared, by its key.
        compared_name: what that is.
        entries: by setting and compared.
        folded: shown on demand only.
    """
    if len(compared) > MANY_INITIALISATIONS and len(compared) > len(settings):
        columns = [Head(", ".join(words)) for words in settings.values()]
        rows = [([head], [entries.get((k, c)) for k in settings]) for c, head in compared.items()]
        return Table(title, [compared_name], columns, rows, folded)
    body = [([Head(w) for w in words], [entries.get((k, c)) for c in compared]) for k, words in settings.items()]
    return Table(title, setting_names, list(compared.values()), body, folded)


def style_heads(styles: Styles, names: Iterable[str]) -> dict[Any, Head]:
    """The heads of initialisations, in the order of their styles."""
    wanted = set(names)
    return {name: Head(s.label, s.colour, s.shape) for name, s in styles.items() if name in wanted}


def score(estimate: Estimate) -> Entry:
    """A mean of scores with its interval, or alone where a single seed gives none."""
    low, high = estimate.ci_low, estimate.ci_high
    # A t-interval of few seeds may leave the range that a score can have; nobody needs to read that.
    interval = "" if math.isnan(low) else f"[{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
    return Entry(f"{estimate.mean:.3f}", interval)


def estimate_of(row: Mapping[Any, Any]) -> Estimate:
    """The estimate in a row of a summary or of differences."""
    return Estimate(float(row["mean"]), float(row["ci_low"]), float(row["ci_high"]), int(row["n_seeds"]))


def signed(value: float) -> str:
    """``+0.123`` or ``−0.123``; a true minus sign, so that a range never reads like a subtraction."""
    return f"{value:+.3f}".replace("-", "−")


def signed_interval(low: float, high: float) -> str:
    """``[−0.010, +0.020]``, or nothing where it is not known."""
    return "" if math.isnan(low) else f"[{signed(low)}, {signed(high)}]"


def task_sections(evaluation: Path, styles: Styles | None = None) -> dict[str, Any]:
    """Everything about tasks that is not a score of a whole cell.

    Args:
        evaluation: the evaluation's folder. What an evaluation of an earlier version did not write is left out.
        styles: of all initialisations; None: in the order of the evaluation's settings.

    Returns:
        ``budgets``, ``per_class``, ``efficiency``, ``screening`` and ``galleries`` for the templates, each perhaps empty.
    """
    if styles is None:
        styles = initialisation_styles(read_json(evaluation / "evaluation.json")["initialisations"])
    details = _json(evaluation / "details.json", {"tasks": {}, "cells": []})
    return {
        "budgets": [_budget(task, content) for task, content in sorted(details["tasks"].items())],
        "per_class": _per_class(_csv(evaluation / "per_class.csv"), styles),
        "efficiency": _efficiency(_csv(evaluation / "label_efficiency.csv"), styles),
        "screening": _screening(details["cells"]),
        "galleries": _galleries(_json(evaluation / "gallery.json", {}), styles),
    }


def score_tables(summary: pd.DataFrame, styles: Styles) -> list[Table]:
    """One table a task and metric, the metric that a task is spoken of by first and the others folded.

    Args:
        summary: rows of ``summary_table.csv``.
        styles: of all initialisations.
    """
    first = set(zip(*(headline_rows(summary)[key] for key in ("task", "metric")), strict=True))
    tables = []
    keys = set(zip(summary["task"], summary["metric"], strict=True))
    for task, metric in sorted(keys, key=lambda key: (key[0], key not in first, key[1])):
        rows = summary[(summary["task"] == task) & (summary["metric"] == metric)]
        networks = rows[rows["features"] != "histogram"]
        settings = _settings(rows if networks.empty else networks)
        entries = {
            (setting, row["initialisation"]): score(estimate_of(row))
            for row in rows.to_dict("records")
            for setting in _settings_of(row, settings)
        }
        heads = style_heads(styles, rows["initialisation"])
        title = f"{task}: {metric_name(metric)}, mean and 95 % interval over seeds"
        folded = (task, metric) not in first
        tables.append(laid_out(title, settings, _SETTING_NAMES, heads, "Initialisation", entries, folded=folded))
    return tables


_SETTING_KEYS: Final = ["protocol", "features", "labels_per_class"]
_SETTING_NAMES: Final = ("Protocol", "Features", "Labels")


def _settings(rows: pd.DataFrame) -> dict[Any, list[str]]:
    """Words of each setting: linear probe before fine-tuning, last stage before all, few labels before many."""
    orders = {"protocol": list(PROTOCOL_NAMES), "features": list(FEATURE_NAMES)}

    def key(column: "pd.Series[Any]") -> "pd.Series[Any]":
        return column.map(orders[str(column.name)].index if str(column.name) in orders else labels_order)

    found = rows[_SETTING_KEYS].drop_duplicates().sort_values(_SETTING_KEYS, key=key)
    return {
        setting: [PROTOCOL_NAMES[setting[0]], FEATURE_NAMES[setting[1]], labels_name(setting[2])]
        for setting in found.itertuples(index=False, name=None)
    }


def _settings_of(row: Mapping[Any, Any], settings: Iterable[Any]) -> list[Any]:
    """Where a row stands; one of the colour histogram beside all features."""
    protocol, features, labels = (row[key] for key in _SETTING_KEYS)
    return [s for s in settings if (s[0], s[2]) == (protocol, labels) and (features in (s[1], "histogram"))]


def metric_name(metric: str) -> str:
    """A metric in words."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def difference_tables(table: pd.DataFrame, styles: Styles) -> list[Table]:
    """One table a task: every contrast of the metric that it is spoken of by.

    Args:
        table: rows of ``differences.csv`` with ``overlap``, whether the intervals over test items overlap.
        styles: of all initialisations.
    """
    tables = []
    for task, rows in headline_rows(table).groupby("task", sort=True):
        entries = {
            (tuple(row[key] for key in _SETTING_KEYS), row["contrast"]): _difference(row)
            for row in rows.to_dict("records")
        }
        heads = _contrast_heads(set(rows["contrast"]), styles)
        title = f"{task}: {metric_name(str(rows['metric'].iloc[0]))}"
        tables.append(laid_out(title, _settings(rows), _SETTING_NAMES, heads, "Difference", entries))
    return tables


def _contrast_heads(wanted: set[str], styles: Styles) -> dict[Any, Head]:
    pairs = {f"{first} - {second}": (first, second) for first, second in contrasts(styles)}
    return {
        contrast: Head(f"{styles[first].label} − {styles[second].label}")
        for contrast, (first, second) in pairs.items()
        if contrast in wanted
    }


def _difference(row: Mapping[Any, Any]) -> Entry:
    mean, low, high = (float(row[key]) for key in ("mean", "ci_low", "ci_high"))
    items = signed_interval(float(row["items_ci_low"]), float(row["items_ci_high"]))
    verdict = "ahead" if low > 0.0 else "behind" if high < 0.0 else ""
    interval = "once" if math.isnan(low) else signed_interval(low, high)
    return Entry(signed(mean), interval, items, f"{verdict} *" if verdict and row["overlap"] else verdict)


def losses(table: pd.DataFrame, styles: Styles) -> list[str]:
    """A sentence for each cell in which another initialisation is better than `geokr` beyond its interval over seeds.

    Args:
        table: rows of ``differences.csv`` with ``overlap``, whether the intervals over test items overlap.
        styles: of all initialisations.

    Returns:
        The sentences, of the metric that a task is spoken of by; each names all that are better in its cell.
    """
    sentences = []
    for task, rows in headline_rows(table).groupby("task", sort=True):
        lost = rows[rows["contrast"].str.startswith("geokr - ") & (rows["ci_high"] < 0.0)]
        for setting, words in _settings(lost).items():
            of_cell = lost[(lost[_SETTING_KEYS] == list(setting)).all(axis=1)].sort_values("mean")
            better = [_better(row, styles) for row in of_cell.to_dict("records")]
            metric = metric_name(str(rows["metric"].iloc[0]))
            sentences.append(f"{task}, {', '.join(words)}, {metric}: GeoKR is behind {listed(better)}.")
    return sentences


def _better(row: Mapping[Any, Any], styles: Styles) -> str:
    mean, low, high = (-float(row[key]) for key in ("mean", "ci_high", "ci_low"))
    doubt = " *" if row["overlap"] else ""
    return f"{styles[contrast_sides(str(row['contrast']))[1]].label} by {mean:.3f} [{low:.3f}, {high:.3f}]{doubt}"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


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


def _per_class(table: pd.DataFrame, styles: Styles) -> list[dict[str, Any]]:
    """One table a task and metric, of its most labels and the protocol that is spoken of; classes down, starts across."""
    if table.empty:
        return []
    pages = []
    for (task, metric), rows in table.groupby(["task", "metric"], sort=True):
        protocol = min(set(rows["protocol"]), key=list(PROTOCOL_NAMES).index)
        rows = rows[rows["protocol"] == protocol]
        labels = max(set(rows["labels_per_class"]), key=labels_order)
        rows = rows[(rows["labels_per_class"] == labels) & (rows["features"] != "multi")]
        name = {"iou": "IoU", "ap": "AP (COCO)", "ap50": "AP at IoU 0.5", "f1": "F1"}.get(str(metric), str(metric))
        entries = {
            (row["class"], row["initialisation"]): Entry(f"{row['mean']:.3f}")
            for row in rows.to_dict("records")
            if not math.isnan(row["mean"])
        }
        classes: dict[Any, list[str]] = {of_class: [of_class] for of_class in rows["class"]}
        pages.append(
            {
                "task": task,
                "caption": f"{PROTOCOL_NAMES[protocol]}, {labels_name(labels)}, mean over seeds; – is a class without test items",
                "table": laid_out(
                    f"{task}: {name}", classes, ["Class"], style_heads(styles, rows["initialisation"]),
                    "Initialisation", entries,
                ),
            }
        )  # fmt: skip
    return pages


def _efficiency(table: pd.DataFrame, styles: Styles) -> list[Table]:
    """One table a task: what share of the labels the first of two initialisations needs."""
    if "ours" not in table:
        return []
    tables = []
    for task, rows in table.groupby("task", sort=True):
        records = rows.to_dict("records")
        entries = {
            ((r["protocol"], r["features"]), f"{r['ours']} - {r['initialisation']}"): _needed(r) for r in records
        }
        settings: dict[Any, list[str]] = {
            (r["protocol"], r["features"]): [PROTOCOL_NAMES[r["protocol"]], FEATURE_NAMES[r["features"]]]
            for r in records
        }
        heads = {
            f"{first} - {second}": Head(f"{styles[first].label}, to reach {styles[second].label}")
            for first, second in contrasts(styles)
            if ((rows["ours"] == first) & (rows["initialisation"] == second)).any()
        }
        title = f"{task}: {metric_name(str(rows['metric'].iloc[0]))}"
        tables.append(laid_out(title, settings, ("Protocol", "Features"), heads, "Who, to reach whom", entries))
    return tables


def _needed(row: Mapping[Any, Any]) -> Entry:
    needed = float(row["needed_label_fraction"])
    reached = "not reached" if math.isnan(needed) else f"{needed:.1%} of the labels"
    return Entry(reached, f"for {float(row['target']):.3f} with {float(row['target_label_fraction']):.1%}")


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


def _galleries(content: Mapping[str, Mapping[str, Any]], styles: Styles) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "name": styles[name].label,
            "caption": labels_name(of_task[name]["labels_per_class"]),
            "pictures": of_task[name]["png"],
        }
        for task, of_task in sorted(content.items())
        for name in styles
        if name in of_task
    ]
