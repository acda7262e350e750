"""Charts of results and of pretraining, drawn by matplotlib without a display. Bytes depend on the data alone.

Pictures made of chips are in ``pictures``; the page they stand on is ``report``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.metrics import TaskMetrics
from geokr_core.evaluation.statistics import headline_rows, labels_order
from geokr_core.evaluation.task_kinds import KINDS, KNOWN_METRICS
from geokr_core.pictures.charts import (
    WIDTH_INCHES,
    Format,
    Style,
    chart_legend,
    chart_style,
    encode_chart,
    initialisation_styles,
    legend_handle,
)

PROTOCOL_NAMES: Final[Mapping[str, str]] = {
    "linear_probe": "linear probe",
    "knn": "nearest neighbours",
    "fine_tune": "fine-tuning",
    "torchgeo_bench_knn5": "5 nearest neighbours (torchgeo-bench)",
    "torchgeo_bench_linear": "logistic regression (torchgeo-bench)",
}
FEATURE_NAMES: Final[Mapping[str, str]] = {
    "last": "last stage",
    "multi": "all stages",
    "histogram": "54 colour numbers",
}


def features_words(protocol: str, features: str) -> str:
    """What of a network a protocol reads, in words; fine-tuning changes and reads all of it, whatever its rows are filed under."""
    return "whole network" if protocol == "fine_tune" else FEATURE_NAMES.get(features, features)


_TASK_WORDS: Final[Mapping[str, str]] = {
    "cloud_snow": "cloud and snow",
    "detection": "object detection",
    # Published sets, as their authors write them.
    "aid": "AID",
    "dota": "DOTA",
    "eurosat": "EuroSAT",
    "gid": "GID",
    "l8_biome": "Landsat 8 Biome",
    "levir_cs": "Levir_CS",
    "loveda": "LoveDA",
    "nwpu_resisc45": "NWPU-RESISC45",
    "nwpu_vhr10": "NWPU VHR-10",
    "potsdam": "Potsdam",
    "resisc45": "RESISC45",
    "ucmerced": "UC Merced",
    "uc_merced": "UC Merced",
    "vaihingen": "Vaihingen",
}

MANY_INITIALISATIONS: Final = 7
"""With more of them no one finds a colour of the legend again: charts name each row, tables lay them one below another."""


def task_words(task: str) -> str:
    """A task's name as it is read: a published set's, whatever capitals its folder has, or the folder's in words."""
    return _TASK_WORDS.get(task.lower(), task.replace("_", " "))


def in_order(tasks: Iterable[Any], kinds: Mapping[str, str] | None = None) -> list[str]:
    """Tasks, each once: those of one kind together, in the order of `KINDS`, then by name.

    Args:
        tasks: names.
        kinds: kind by name; a task without one may have the name of its kind.
    """
    order = {kind: number for number, kind in enumerate(KINDS)}

    def key(task: str) -> tuple[int, str]:
        return order.get((kinds or {}).get(task, task), len(order)), task

    return sorted({str(task) for task in tasks}, key=key)


_ROW_INCHES: Final = 0.115
_LEAST_GROUP_INCHES: Final = 0.42
_GROUP_SHARE: Final = 0.84
"""What the rows of a group take of its height; the rest separates it from the next."""


def comparison_chart(
    summary: pd.DataFrame,
    form: Format,
    styles: Mapping[str, Style] | None = None,
    metrics: TaskMetrics = KNOWN_METRICS,
) -> bytes:
    """Mean of each task's first metric for every initialisation, a dot with its 95 % interval over seeds.

    Args:
        summary: rows of ``summary_table.csv``.
        form: picture format.
        styles: of all initialisations, where they are to look as they do elsewhere; None: in the summary's order.
        metrics: of the tasks.

    Returns:
        The picture; one panel a task and protocol, as high as what was evaluated in it needs. The colour histogram
        stands beside both kinds of features.
    """
    styles = styles or initialisation_styles(summary["initialisation"])
    first = headline_rows(summary, metrics)
    panels = [
        (task, protocol, _groups(rows)) for (task, protocol), rows in first.groupby(["task", "protocol"], sort=True)
    ]
    order = in_order(first["task"])
    panels.sort(key=lambda panel: (order.index(str(panel[0])), list(PROTOCOL_NAMES).index(str(panel[1]))))
    heights = [_panel_inches(groups) for _, _, groups in panels]
    shown = [style for name, style in styles.items() if (first["initialisation"] == name).any()]
    many = len(shown) > MANY_INITIALISATIONS
    with chart_style():
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.26), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
        for ax, (task, protocol, groups) in zip(axes, panels, strict=True):
            _draw_panel(ax, groups, styles, named=many)
            ax.tick_params(axis="x", labelbottom=many or ax is axes[-1])
            metric = metrics.of(str(task), str(first[first["task"] == task]["metric"].iloc[0]))
            less = "" if metric.higher_is_better else " (less is better)"
            ax.set_title(
                f"{task_words(str(task))}: {PROTOCOL_NAMES.get(str(protocol), str(protocol))}, {metric.words}{less}"
            )
        axes[-1].set_xlabel("mean and 95 % interval over seeds")
        chart_legend(figure, [legend_handle(style, linestyle="") for style in shown])
        return encode_chart(figure, form)


def _panel_inches(groups: Sequence[tuple[str, pd.DataFrame]]) -> float:
    rows = max((len(set(rows["initialisation"])) for _, rows in groups), default=0)
    return max(1, len(groups)) * max(rows * _ROW_INCHES / _GROUP_SHARE, _LEAST_GROUP_INCHES) + 0.55


def _groups(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of a panel by what is compared: features and labels, the histogram joined to each."""
    groups = []
    colour = rows[rows["features"] == "histogram"]
    features = [name for name in FEATURE_NAMES if name != "histogram" and (rows["features"] == name).any()]
    for name in features or ["histogram"]:
        own = rows[rows["features"] == name]
        for labels in sorted(set(own["labels_per_class"]), key=labels_order):
            parts = [own, colour] if name != "histogram" else [own]
            together = pd.concat(parts)
            together = together[together["labels_per_class"] == labels]
            protocol = str(rows["protocol"].iloc[0])
            groups.append((f"{features_words(protocol, name)},\n{labels_name(labels)}", together))
    return groups


def _draw_panel(
    ax: Any, groups: Sequence[tuple[str, pd.DataFrame]], styles: Mapping[str, Style], *, named: bool
) -> None:
    there = {name for _, rows in groups for name in rows["initialisation"]}
    order = [name for name in styles if name in there]
    for position, (_, rows) in enumerate(groups):
        for row in rows.to_dict("records"):
            style = styles[str(row["initialisation"])]
            index = order.index(str(row["initialisation"]))
            y = position + ((index + 0.5) / len(order) - 0.5) * _GROUP_SHARE
            if np.isfinite(row["ci_low"]):
                bounds = np.clip([row["ci_low"], row["ci_high"]], 0.0, 1.0)
                ax.plot(bounds, [y, y], color=style.colour, linewidth=2, solid_capstyle="butt")
            ax.plot([row["mean"]], [y], marker=style.marker, markersize=5.5, color=style.colour)
            if named:
                ax.annotate(
                    style.label,
                    (1, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(5, 0),
                    textcoords="offset points",
                    fontsize=6,
                    color="#5c6670",
                    va="center",
                )
    for border in range(1, len(groups)):
        ax.axhline(border - 0.5, color="#e6e8eb", linewidth=0.8)
    ax.set_yticks(range(len(groups)), [name for name, _ in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
