"""What is drawn of Levir-KR: chips with their land cover, the map of footprints, the histogram of classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pictures.images import DPI, drawn, paint, panel

_MAP_CELLS = 360
"""Cells across a map of footprints: finer ones than a picture shows are of no use."""

_MAX_BOXES = 200
"""Scenes up to which each gets a box on the map; more would hide it."""


def chips_with_land_cover(dataset: "LevirKR", num_chips: int, columns: int = 8, seed: int = 0) -> bytes:
    """A panel of chips drawn at random, under each a bar of its land-cover proportions.

    Returns:
        PNG bytes.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(dataset.catalogue), size=min(num_chips, len(dataset.catalogue)), replace=False))
    return panel(dataset.images(rows), dataset.proportions[rows], dataset.bands, dataset.class_colours, columns)


def footprint_map(
    lon: np.ndarray,
    lat: np.ndarray,
    size_deg: float,
    proportions: np.ndarray,
    scenes: np.ndarray,
    classes: Sequence[str],
    colours: Sequence[str],
) -> bytes:
    """A map of where chips lie, coloured by the class that covers most of the ground there.

    Works for a million chips: they are summed into cells, never drawn one by one. Across the antimeridian the map is
    cut where there is most empty ground.

    Args:
        lon: degrees (N,), centre of each chip.
        lat: degrees (N,).
        size_deg: side of a typical chip in degrees of latitude.
        proportions: float (N, K).
        scenes: which scene each chip is from (N,); up to 200 scenes get a box around their chips.
        classes: K names.
        colours: ``#RRGGBB`` of each.

    Returns:
        PNG bytes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lon = _side_by_side(lon)
    stretch = float(np.cos(np.radians(np.clip(np.abs(lat).mean(), 0, 80))))
    wide = max(float(np.ptp(lon)), float(np.ptp(lat)) / stretch, 2 * size_deg / stretch)
    step_lon = max(wide / _MAP_CELLS, size_deg / stretch)
    step_lat = step_lon * stretch
    left, top = lon.min() - step_lon / 2, lat.max() + step_lat / 2
    col, row = ((lon - left) / step_lon).astype(int), ((top - lat) / step_lat).astype(int)
    shape = (int(row.max()) + 1, int(col.max()) + 1)
    cell = row * shape[1] + col
    mass = [np.bincount(cell, weights=proportions[:, k], minlength=shape[0] * shape[1]) for k in range(len(classes))]
    most = np.where(np.bincount(cell, minlength=shape[0] * shape[1]) > 0, np.argmax(mass, axis=0), 255)
    image = paint(most.reshape(shape).astype(np.uint8), colours)
    image[(most == 255).reshape(shape)] = (244, 244, 240)
    figure = Figure(figsize=(7.6, float(np.clip(7.0 * shape[0] / shape[1], 2.2, 7.0)) + 0.9), dpi=DPI)
    axes = figure.subplots()
    extent = (left, left + shape[1] * step_lon, top - shape[0] * step_lat, top)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect=1 / stretch, zorder=1)
    axes.grid(color="#555555", linewidth=0.4, alpha=0.5, zorder=2)
    axes.set_facecolor("#f4f4f0")
    axes.set_xlim(extent[0] - 0.02 * wide, extent[1] + 0.02 * wide)
    axes.set_ylim(extent[2] - 0.02 * wide * stretch, extent[3] + 0.02 * wide * stretch)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "EW"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    axes.tick_params(labelsize=7.5)
    names, index = np.unique(scenes, return_inverse=True)
    if len(names) <= _MAX_BOXES:
        _draw_boxes(axes, lon, lat, index, len(names), step_lon, step_lat)
    shown = [k for k in np.argsort(-proportions.mean(axis=0), kind="stable") if (most == k).any()]
    handles = [Patch(facecolor=colours[k], edgecolor="#888888", label=classes[k].replace("_", " ")) for k in shown]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.08),
        ncols=5,
        fontsize=7.5,
        frameon=False,
        title=f"{len(lon):,} chips of {len(names):,} scenes, coloured by the class with most ground",
        title_fontsize=8,
    )
    return drawn(figure)


def _draw_boxes(
    axes: "Axes", lon: np.ndarray, lat: np.ndarray, index: np.ndarray, num: int, step_lon: float, step_lat: float
) -> None:
    """A box around the chips of each scene."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    low, high = np.full((num, 2), np.inf), np.full((num, 2), -np.inf)
    points = np.stack([lon, lat], axis=1)
    np.minimum.at(low, index, points)
    np.maximum.at(high, index, points)
    margin = np.array([step_lon, step_lat]) / 2
    boxes = [Rectangle(tuple(a - margin), *(b - a + 2 * margin)) for a, b in zip(low, high, strict=True)]
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor="black", linewidth=0.6, zorder=3))


def _side_by_side(lon: np.ndarray) -> np.ndarray:
    """Longitudes moved by whole turns so that the widest empty gap lies outside of them."""
    around = np.sort(np.unique(np.round(lon % 360.0, 3)))
    gaps = np.diff(np.append(around, around[0] + 360.0))
    start = around[(int(gaps.argmax()) + 1) % len(around)] - 1e-3
    moved = (lon - start) % 360.0 + start
    return np.asarray(moved - 360.0 * np.floor((np.median(moved) + 180.0) / 360.0))


def _degrees(value: float, letters: str) -> str:
    value = (value + 180.0) % 360.0 - 180.0 if letters == "EW" else value
    return f"{abs(value):g}°{'' if value == 0 else letters[int(value < 0)]}"


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
