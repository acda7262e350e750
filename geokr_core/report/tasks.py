"""What the page shows of downstream tasks: scores, differences, budgets, classes, label efficiency, pictures.

Every number comes from a finished evaluation; nothing is measured or averaged here. Layout is in ``templates``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import FEATURE_NAMES, PROTOCOL_NAMES, features_words, task_words
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import contrast_sides, contrasts, headline_rows, labels_order
from geokr_core.report.headline import tasks_in_order
from geokr_core.report.sections import spaced
from geokr_core.report.tables import (
    Entry,
    Head,
    Styles,
    Table,
    estimate_of,
    laid_out,
    listed,
    score,
    signed,
    signed_interval,
    style_heads,
)


def task_sections(judged: Judged, styles: Styles) -> dict[str, Any]:
    """Everything about tasks that is not a score of a whole cell.

    Args:
        judged: the evaluation.
        styles: of all initialisations.

    Returns:
        ``budgets``, ``per_class``, ``efficiency``, ``screening`` and ``galleries`` for the templates; each may be empty.
    """
    return {
        "budgets": [_budget(task, judged.tasks[task]) for task in tasks_in_order(judged, judged.tasks)],
        "per_class": _per_class(judged, styles),
        "efficiency": _efficiency(judged, styles),
        "screening": _screening(judged.cells),
        "galleries": _galleries(judged, styles),
    }


def score_tables(judged: Judged, styles: Styles) -> list[Table]:
    """One table a task and metric, the metric that a task is judged by first and the others folded."""
    summary = judged.summary
    first = set(zip(*(headline_rows(summary, judged.metrics)[key] for key in ("task", "metric")), strict=True))
    tables = []
    keys = set(zip(summary["task"], summary["metric"], strict=True))
    order = tasks_in_order(judged, summary["task"])
    for task, metric in sorted(keys, key=lambda key: (order.index(key[0]), key not in first, key[1])):
        rows = summary[(summary["task"] == task) & (summary["metric"] == metric)]
        networks = rows[rows["features"] != "histogram"]
        settings = _settings(rows if networks.empty else networks)
        entries = {
            (setting, row["initialisation"]): score(estimate_of(row))
            for row in rows.to_dict("records")
            for setting in _settings_of(row, settings)
        }
        heads = style_heads(styles, rows["initialisation"])
        title = f"{task_words(task)}: {judged.metrics.of(task, metric).words}, mean and 95 % interval over seeds"
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
        setting: [PROTOCOL_NAMES[setting[0]], features_words(setting[0], setting[1]), labels_name(setting[2])]
        for setting in found.itertuples(index=False, name=None)
    }


def _settings_of(row: Mapping[Any, Any], settings: Iterable[Any]) -> list[Any]:
    """Where a row stands; one of the colour histogram beside all features."""
    protocol, features, labels = (row[key] for key in _SETTING_KEYS)
    return [s for s in settings if (s[0], s[2]) == (protocol, labels) and (features in (s[1], "histogram"))]


def difference_tables(judged: Judged, styles: Styles) -> list[Table]:
    """One table a task: every contrast of the metric that it is judged by."""
    tables = []
    for task, rows in _by_task(judged, headline_rows(judged.differences, judged.metrics)):
        metric = judged.metrics.of(task, str(rows["metric"].iloc[0]))
        entries = {
            (tuple(row[key] for key in _SETTING_KEYS), row["contrast"]): _difference(row, metric.sign)
            for row in rows.to_dict("records")
        }
        heads = _contrast_heads(set(rows["contrast"]), styles)
        title = f"{task_words(task)}: {metric.words}"
        tables.append(laid_out(title, _settings(rows), _SETTING_NAMES, heads, "Difference", entries))
    return tables


def _contrast_heads(wanted: set[str], styles: Styles) -> dict[Any, Head]:
    pairs = {f"{first} - {second}": (first, second) for first, second in contrasts(styles)}
    return {
        contrast: Head(f"{styles[first].label} − {styles[second].label}")
        for contrast, (first, second) in pairs.items()
        if contrast in wanted
    }


def _difference(row: Mapping[Any, Any], sign: int) -> Entry:
    mean, low, high = (float(row[key]) for key in ("mean", "ci_low", "ci_high"))
    items = signed_interval(float(row["items_ci_low"]), float(row["items_ci_high"]))
    higher, lower = ("ahead", "behind") if sign > 0 else ("behind", "ahead")
    verdict = higher if low > 0.0 else lower if high < 0.0 else ""
    interval = "once" if math.isnan(low) else signed_interval(low, high)
    return Entry(signed(mean), interval, items, f"{verdict} *" if verdict and row["items_overlap"] else verdict)


def losses(judged: Judged, styles: Styles) -> list[str]:
    """A sentence for each cell and metric in which another initialisation is better than `geokr` beyond its interval over seeds.

    Returns:
        The sentences, each task's own metric first; each names all that are better in its cell.
    """
    sentences = []
    table = judged.differences[judged.differences["contrast"].str.startswith("geokr - ")]
    first = headline_rows(table, judged.metrics)
    for task, rows in _by_task(judged, pd.concat([first, table.drop(index=first.index)])):
        for name, of_metric in rows.groupby("metric", sort=False):
            metric = judged.metrics.of(task, str(name))
            # By how much the other one is better, from its worse bound to its better one.
            better = of_metric.assign(by=-metric.sign * of_metric["mean"])
            worse, best = ("ci_high", "ci_low") if metric.sign > 0 else ("ci_low", "ci_high")
            better = better.assign(by_low=-metric.sign * of_metric[worse], by_high=-metric.sign * of_metric[best])
            better = better[better["by_low"] > 0.0]
            for setting, words in _settings(better).items():
                of_cell = better[(better[_SETTING_KEYS] == list(setting)).all(axis=1)]
                of_cell = of_cell.sort_values("by", ascending=False, kind="stable")
                named = [_better(row, styles) for row in of_cell.to_dict("records")]
                sentences.append(
                    f"{task_words(task)}, {', '.join(words)}, {metric.words}: GeoKR is behind {listed(named)}."
                )
    return sentences


def _better(row: Mapping[Any, Any], styles: Styles) -> str:
    by, low, high = (float(row[key]) for key in ("by", "by_low", "by_high"))
    doubt = " *" if row["items_overlap"] else ""
    return f"{styles[contrast_sides(str(row['contrast']))[1]].label} by {by:.3f} [{low:.3f}, {high:.3f}]{doubt}"


def _budget(task: str, content: Mapping[str, Any]) -> dict[str, Any]:
    facts = [(name, _words(value)) for name, value in content["budget"].items()]
    return {"task": task_words(task), "facts": facts, "notes": content["notes"]}


def _words(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _by_task(judged: Judged, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each task that has some, in the order of the page."""
    for task in tasks_in_order(judged, table["task"]):
        yield task, table[table["task"] == task]


def _per_class(judged: Judged, styles: Styles) -> list[dict[str, Any]]:
    """One table a task and metric, of its most labels and its first protocol; classes down, starts across."""
    pages, metrics = [], judged.metrics_per_class
    found = [
        (task, metric, rows)
        for task, of_task in _by_task(judged, judged.per_class)
        for metric, rows in of_task.groupby("metric", sort=True)
    ]
    for task, metric, rows in found:
        protocol = min(set(rows["protocol"]), key=list(PROTOCOL_NAMES).index)
        rows = rows[rows["protocol"] == protocol]
        labels = max(set(rows["labels_per_class"]), key=labels_order)
        rows = rows[(rows["labels_per_class"] == labels) & (rows["features"] != "multi")]
        name = metrics.of(task, str(metric)).words
        entries = {
            (row["class"], row["initialisation"]): Entry(f"{row['mean']:.3f}")
            for row in rows.to_dict("records")
            if not math.isnan(row["mean"])
        }
        heads = style_heads(styles, rows["initialisation"])
        classes: dict[Any, list[str]] = {of_class: [spaced(str(of_class))] for of_class in rows["class"]}
        pages.append(
            {
                "task": task_words(task),
                "caption": f"{PROTOCOL_NAMES[protocol]}, {labels_name(labels)}, mean over seeds; – is a class without test items",
                "table": laid_out(f"{task_words(task)}: {name}", classes, ["Class"], heads, "Initialisation", entries),
            }
        )
    return pages


def _efficiency(judged: Judged, styles: Styles) -> list[Table]:
    """One table a task: what share of the labels the first of two initialisations needs."""
    tables, metrics = [], judged.metrics
    for task, rows in _by_task(judged, judged.efficiency):
        records = rows.to_dict("records")
        entries = {
            ((r["protocol"], r["features"]), f"{r['ours']} - {r['initialisation']}"): _needed(r) for r in records
        }
        settings: dict[Any, list[str]] = {
            (r["protocol"], r["features"]): [
                PROTOCOL_NAMES[r["protocol"]],
                features_words(r["protocol"], r["features"]),
            ]
            for r in records
        }
        heads = {
            f"{first} - {second}": Head(f"{styles[first].label}, to reach {styles[second].label}")
            for first, second in contrasts(styles)
            if ((rows["ours"] == first) & (rows["initialisation"] == second)).any()
        }
        title = f"{task_words(task)}: {metrics.of(task, str(rows['metric'].iloc[0])).words}"
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
            "task": task_words(task),
            "caption": f"GeoKR, {labels_name(str(cell['labels_per_class']))}, seed {cell['seed']}",
            "rows": [
                [s["scene"], f"{s['over_screened']:.3f}", f"{s['under_screened']:.3f}"] for s in cell["screening"]
            ],
        }
        for task, cell in sorted(found.items())
    ]


def _galleries(judged: Judged, styles: Styles) -> list[dict[str, Any]]:
    return [
        {
            "task": task_words(task),
            "name": styles[name].label,
            "caption": labels_name(judged.gallery[task][name]["labels_per_class"]),
            "pictures": judged.gallery[task][name]["png"],
        }
        for task in tasks_in_order(judged, judged.gallery)
        for name in styles
        if name in judged.gallery[task]
    ]
