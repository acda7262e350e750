"""What is drawn of Levir-KR: chips with their land cover and the histogram of classes. The map is in ``footprints``."""

from collections.abc import Sequence

import numpy as np

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pictures.images import DPI, drawn, panel


def chips_with_land_cover(dataset: "LevirKR", num_chips: int, columns: int = 8, seed: int = 0) -> bytes:
    """A panel of chips drawn at random, under each a bar of its land-cover proportions.

    Returns:
        PNG bytes.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(dataset.catalogue), size=min(num_chips, len(dataset.catalogue)), replace=False))
    return panel(dataset.images(rows), dataset.proportions[rows], dataset.bands, dataset.class_colours, columns)


def class_histogram(
    train: np.ndarray, validation: np.ndarray | None, classes: Sequence[str], colours: Sequence[str]
) -> bytes:
    """How much ground each class covers, as bars in the class colours.

    Args:
        train: mean proportions (K,) of the training chips.
        validation: mean proportions (K,) of the validation chips, or None where there are none.
        classes: K names.
        colours: ``#RRGGBB`` of each.

    Returns:
        PNG bytes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(6.4, 0.42 * len(classes) + 0.9), dpi=DPI)
    axes = figure.subplots()
    place = np.arange(len(classes))
    axes.barh(place - 0.19, train, 0.36, color=list(colours), edgecolor="#666666", linewidth=0.6)
    handles = [Patch(facecolor="#cccccc", edgecolor="#666666", label="training")]
    if validation is not None:
        axes.barh(
            place + 0.19,
            validation,
            0.36,
            color=list(colours),
            edgecolor="#666666",
            linewidth=0.6,
            hatch="////",
            alpha=0.7,
        )
        handles.append(Patch(facecolor="#ffffff", edgecolor="#666666", hatch="////", label="validation"))
    for k, share in enumerate(train):
        axes.text(share, k - 0.19, f" {share:.1%}", va="center", fontsize=7.5)
    axes.set_yticks(place, [name.replace("_", " ") for name in classes], fontsize=8)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(0, float(max(train.max(), 0 if validation is None else validation.max())) * 1.12)
    axes.set_xlabel("share of the chips' ground", fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, fontsize=7.5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return drawn(figure)
