"""What is drawn of pretraining: loss and divergence over steps."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

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
    with chart_style():
        figure = Figure(figsize=(WIDTH_INCHES, 3.7), layout="constrained")
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
        chart_legend(figure, handles)
        lower.set(ylabel="learning rate", xlabel="optimiser step", ylim=(0, None))
        return encode_chart(figure, form)


def _variant_handle(style: Style, *, has_kl: bool) -> Any:
    """The one entry of a variant; what predicts no land cover shows in the lower panel alone."""
    handle = legend_handle(style, linestyle=style.line, markersize=4, linewidth=1.4)
    if not has_kl:
        handle.set_label(f"{style.label} (no KL)")
    return handle
