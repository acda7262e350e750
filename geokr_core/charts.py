"""Charts of results and of pretraining, drawn by matplotlib without a display. Bytes depend on the data alone.

Pictures made of chips are in ``pictures``; the page they stand on is ``report``.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

MANY_INITIALISATIONS: Final = 7
"""With more of them nobody finds a colour of the legend again: charts name each row, tables lay them one below another."""

_OTHER_COLOURS: Final = ("#cc6677", "#332288", "#44aa99", "#999933", "#882255", "#88ccee")
"""Those of Paul Tol's "muted" scheme (SRON/EPS/TN/09-002), safe for the colour-blind, that are none of the five above."""
_SHAPES: Final[Mapping[str, tuple[str, str]]] = {
    "o": ("●", "solid"), "s": ("■", "dashed"), "^": ("▲", "dotted"), "D": ("◆", "dashdot"), "v": ("▼", "dashed"),
}  # fmt: skip
"""Once the colours repeat: marker in a chart, the same in a text, and how its lines are drawn."""

_WIDTH_INCHES: Final = 7.2
_ROW_INCHES: Final = 0.115
_LEAST_GROUP_INCHES: Final = 0.42
_GROUP_SHARE: Final = 0.84
"""What the rows of a group take of its height; the rest sets it apart from the next."""
_LEGEND_ROW_INCHES: Final = 0.19
_PNG_DPI: Final = 110

Format = Literal["png", "svg"]


@dataclass(frozen=True)
class Style:
    """How an initialisation is named and told apart, alike in every chart and table of a page.

    Attributes:
        label: its name in words.
        colour: as ``#rrggbb``.
        marker: matplotlib's, a circle until the colours repeat.
    """

    label: str
    colour: str
    marker: str = "o"

    @property
    def shape(self) -> str:
        """The marker as a character."""
        return _SHAPES[self.marker][0]

    @property
    def line(self) -> str:
        """Matplotlib's line style."""
        return _SHAPES[self.marker][1]


def initialisation_styles(names: Iterable[str]) -> dict[str, Style]:
    """Order, names and looks of initialisations.

    Args:
        names: initialisations or variants of pretraining, repeated or not.

    Returns:
        A style by name: `geokr` first, then the other variants in order of appearance, then the controls and starts
        that everybody knows, these always with the same colour.
    """
    given = dict.fromkeys(names)
    others = [name for name in given if name not in INITIALISATION_NAMES]
    styles = {
        name: Style(INITIALISATION_NAMES[name], INITIALISATION_COLOURS[name])
        for name in INITIALISATION_COLOURS
        if name in given
    }
    markers = list(_SHAPES)
    for index, name in enumerate(others):
        turn, colour = divmod(index, len(_OTHER_COLOURS))
        styles[name] = Style(name.replace("_", " "), _OTHER_COLOURS[colour], markers[turn % len(markers)])
    known = [name for name in INITIALISATION_COLOURS if name != "geokr"]
    return {name: styles[name] for name in ("geokr", *others, *known) if name in styles}


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


def comparison_chart(summary: pd.DataFrame, form: Format, styles: Mapping[str, Style] | None = None) -> bytes:
    """Mean of each task's first metric for every initialisation, a dot with its 95 % interval over seeds.

    Args:
        summary: rows of ``summary_table.csv``.
        form: picture format.
        styles: of all initialisations, where they are to look as they do elsewhere; None: in the summary's order.

    Returns:
        The picture; one panel a task and protocol, as high as what was evaluated in it needs. The colour histogram
        stands beside both kinds of features.
    """
    styles = styles or initialisation_styles(summary["initialisation"])
    accuracy = headline_rows(summary)
    panels = [
        (task, protocol, _groups(rows)) for (task, protocol), rows in accuracy.groupby(["task", "protocol"], sort=True)
    ]
    panels.sort(key=lambda panel: (panel[0], list(PROTOCOL_NAMES).index(str(panel[1]))))
    heights = [_panel_inches(groups) for _, _, groups in panels]
    shown = [style for name, style in styles.items() if (accuracy["initialisation"] == name).any()]
    many = len(shown) > MANY_INITIALISATIONS
    with _style():
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.26), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
        for ax, (task, protocol, groups) in zip(axes, panels, strict=True):
            _draw_panel(ax, groups, styles, named=many)
            ax.tick_params(axis="x", labelbottom=many or ax is axes[-1])
            metric = str(accuracy[accuracy["task"] == task]["metric"].iloc[0])
            ax.set_title(f"{task}: {PROTOCOL_NAMES.get(str(protocol), str(protocol))}, {METRIC_NAMES[metric]}")
        axes[-1].set_xlabel("mean and 95 % interval over seeds")
        _legend(figure, [_handle(style, linestyle="") for style in shown])
        return _encode(figure, form)


def _panel_inches(groups: Sequence[tuple[str, pd.DataFrame]]) -> float:
    rows = max((len(set(rows["initialisation"])) for _, rows in groups), default=0)
    return max(1, len(groups)) * max(rows * _ROW_INCHES / _GROUP_SHARE, _LEAST_GROUP_INCHES) + 0.55


def _handle(style: Style, **looks: Any) -> Any:
    return mpl.lines.Line2D([], [], label=style.label, color=style.colour, marker=style.marker, **looks)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above the panels, in as many columns as their longest name allows; the figure grows by its rows."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(_WIDTH_INCHES / (0.45 + 0.07 * longest))))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW_INCHES * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


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
                    style.label, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
                    fontsize=6, color="#5c6670", va="center",
                )  # fmt: skip
    for border in range(1, len(groups)):
        ax.axhline(border - 0.5, color="#e6e8eb", linewidth=0.8)
    ax.set_yticks(range(len(groups)), [name for name, _ in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def pretraining_chart(
    history: pd.DataFrame, constant_kl: float | None, form: Format, styles: Mapping[str, Style] | None = None
) -> bytes:
    """KL divergence and learning rate against optimiser steps.

    Args:
        history: rows of ``history.csv``.
        constant_kl: KL of the best constant prediction in nat, or None.
        form: picture format.
        styles: of all variants, where they are to look as they do elsewhere; None: in the history's order.

    Returns:
        The picture: lines are training chips, markers held-out chips. The seeds of a variant look alike.
    """
    styles = styles or initialisation_styles(history["variant"])
    with _style():
        figure = Figure(figsize=(_WIDTH_INCHES, 3.7), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for (variant, _), rows in history.groupby(["variant", "seed"], sort=False):
            style = styles[str(variant)]
            line = {"color": style.colour, "linestyle": style.line}
            upper.plot(rows["step"], rows["train_kl"], linewidth=1.4, **line)
            judged = rows[rows["validation_kl"].notna()]
            upper.plot(judged["step"], judged["validation_kl"], style.marker, markersize=4, color=style.colour)
            lower.plot(rows["step"], rows["learning_rate"], linewidth=1.2, **line)
        points = history.groupby("variant")["train_kl"].count()
        handles = [_variant_handle(style, has_kl=points[name] > 0) for name, style in styles.items() if name in points]
        if constant_kl is not None:
            best = {"color": "#b3261e", "linewidth": 1, "linestyle": (0, (4, 3)), "label": "best constant"}
            handles.append(upper.axhline(constant_kl, **best))
        upper.set(ylabel="KL to the labels (nat)", ylim=(0, None))
        _legend(figure, handles)
        lower.set(ylabel="learning rate", xlabel="optimiser step", ylim=(0, None))
        return _encode(figure, form)


def _variant_handle(style: Style, *, has_kl: bool) -> Any:
    """The one entry of a variant; what predicts no land cover shows in the lower panel alone."""
    handle = _handle(style, linestyle=style.line, markersize=4, linewidth=1.4)
    if not has_kl:
        handle.set_label(f"{style.label} (no KL)")
    return handle


def _encode(figure: Figure, form: Format) -> bytes:
    """The picture without date or program name inside."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format=form, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()
