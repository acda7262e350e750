"""Charts of results and of pretraining, drawn by matplotlib without a display. Bytes depend on the data alone.

Pictures made of chips are in ``pictures``; the page they stand on is ``report``.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geokr_core.statistics import headline_rows, labels_order

INITIALISATION_COLOURS: Final[Mapping[str, str]] = {
    "geokr": "#0b6e4f",
    "shuffled": "#8e6bbf",
    "random": "#7a7f87",
    "imagenet": "#2f6db5",
    "colour_histogram": "#d98a1f",
}
INITIALISATION_NAMES: Final[Mapping[str, str]] = {
    "geokr": "GeoKR",
    "shuffled": "shuffled land cover",
    "random": "random weights",
    "imagenet": "ImageNet weights",
    "colour_histogram": "colour histogram",
}
PROTOCOL_NAMES: Final[Mapping[str, str]] = {
    "linear_probe": "linear probe",
    "knn": "nearest neighbours",
    "fine_tune": "fine-tuning",
}
METRIC_NAMES: Final[Mapping[str, str]] = {
    "accuracy": "accuracy",
    "macro_f1": "macro-averaged F1",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "map": "COCO mAP",
    "ap50": "AP at IoU 0.5",
    "cloud_precision": "precision of cloud",
    "cloud_recall": "recall of cloud",
}

FEATURE_NAMES: Final[Mapping[str, str]] = {
    "last": "last stage",
    "multi": "all stages",
    "histogram": "54 colour numbers",
}

_ROW_INCHES: Final = 0.62
_PNG_DPI: Final = 110

Format = Literal["png", "svg"]


def labels_name(labels: str) -> str:
    """How an amount of labels is written."""
    if labels == "all":
        return "all labels"
    if labels.endswith("%"):
        return f"{labels} of the labels"
    return "1 label a class" if labels == "1" else f"{labels} labels a class"


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(
        {
            "svg.hashsalt": "geokr",  # element ids that do not change from run to run
            "svg.fonttype": "path",
            "font.size": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#9aa1a9",
            "axes.titlesize": 10.0,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e8eb",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "text.parse_math": False,  # names of sets may hold a dollar sign
        }
    ):
        yield


def comparison_chart(summary: pd.DataFrame, form: Format) -> bytes:
    """Mean of each task's first metric for every initialisation, a dot with its 95 % interval over seeds.

    Args:
        summary: rows of ``summary_table.csv``.
        form: picture format.

    Returns:
        The picture; one panel a task and protocol. The colour histogram stands beside both kinds of features.
    """
    accuracy = headline_rows(summary)
    panels = [
        (task, protocol, _groups(rows)) for (task, protocol), rows in accuracy.groupby(["task", "protocol"], sort=True)
    ]
    panels.sort(key=lambda panel: (panel[0], list(PROTOCOL_NAMES).index(str(panel[1]))))
    heights = [max(1, len(groups)) * _ROW_INCHES + 0.55 for _, _, groups in panels]
    with _style():
        figure = Figure(figsize=(7.2, sum(heights) + 0.45), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
        for ax, (task, protocol, groups) in zip(axes, panels, strict=True):
            _draw_panel(ax, groups)
            metric = str(accuracy[accuracy["task"] == task]["metric"].iloc[0])
            ax.set_title(f"{task}: {PROTOCOL_NAMES.get(str(protocol), str(protocol))}, {METRIC_NAMES[metric]}")
        axes[-1].set_xlabel("mean and 95 % interval over seeds")
        shown = [name for name in INITIALISATION_COLOURS if (accuracy["initialisation"] == name).any()]
        handles = [
            mpl.lines.Line2D([], [], marker="o", linestyle="", color=INITIALISATION_COLOURS[name]) for name in shown
        ]
        names = [INITIALISATION_NAMES[name] for name in shown]
        figure.legend(handles, names, loc="outside upper center", ncols=max(1, len(shown)))
        return _encode(figure, form)


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
            groups.append((f"{FEATURE_NAMES[name]},\n{labels_name(labels)}", together))
    return groups


def _draw_panel(ax: Any, groups: list[tuple[str, pd.DataFrame]]) -> None:
    order = list(INITIALISATION_COLOURS)
    for position, (_, rows) in enumerate(groups):
        for row in rows.to_dict("records"):
            index = order.index(str(row["initialisation"]))
            y = position + (index - (len(order) - 1) / 2) * 0.17
            colour = INITIALISATION_COLOURS[order[index]]
            if np.isfinite(row["ci_low"]):
                bounds = np.clip([row["ci_low"], row["ci_high"]], 0.0, 1.0)
                ax.plot(bounds, [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot([row["mean"]], [y], marker="o", markersize=5.5, color=colour)
    ax.set_yticks(range(len(groups)), [name for name, _ in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def pretraining_chart(history: pd.DataFrame, constant_kl: float | None, form: Format) -> bytes:
    """KL divergence and learning rate against optimiser steps.

    Args:
        history: rows of ``history.csv``.
        constant_kl: KL of the best constant prediction in nat, or None.
        form: picture format.

    Returns:
        The picture: lines are training chips, dots held-out chips.
    """
    with _style():
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for number, ((variant, seed), rows) in enumerate(history.groupby(["variant", "seed"], sort=False)):
            colour = INITIALISATION_COLOURS.get(str(variant), "#7a7f87")
            style = ("-", "--", ":", "-.")[int(number) % 4] if len(set(history["seed"])) > 1 else "-"
            name = f"{INITIALISATION_NAMES.get(str(variant), str(variant))}, seed {seed}"
            upper.plot(rows["step"], rows["train_kl"], color=colour, linestyle=style, linewidth=1.4, label=name)
            judged = rows[rows["validation_kl"].notna()]
            upper.plot(judged["step"], judged["validation_kl"], "o", markersize=4, color=colour)
            lower.plot(rows["step"], rows["learning_rate"], color=colour, linestyle=style, linewidth=1.2)
        if constant_kl is not None:
            upper.axhline(constant_kl, color="#b3261e", linewidth=1, linestyle=(0, (4, 3)), label="best constant")
        upper.set(ylabel="KL to the labels (nat)", ylim=(0, None))
        upper.legend(fontsize="small", loc="upper right")
        lower.set(ylabel="learning rate", xlabel="optimiser step", ylim=(0, None))
        return _encode(figure, form)


def _encode(figure: Figure, form: Format) -> bytes:
    """The picture without date or program name inside."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format=form, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()
