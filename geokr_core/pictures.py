"""Small pictures that let a person check at a glance: chips with their land cover, footprints, quick looks.

Everything returns PNG bytes that depend on the data alone (no dates inside), small enough for the Dagster event log.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from geokr_core.levir_kr import LevirKR

_MAX_BYTES = 200_000
_BAR_PX = 10
_DPI = 100
_PALETTE = 128

_SIDE_PX = 300
"""Longer side of each image of a pair; smaller ones are enlarged up to it."""

_ENTRY_PX, _LINE_PX = 190, 18
"""Width and height of an entry of a legend."""

_MAP_CELLS = 360
"""Cells across a map of footprints: finer ones than a picture shows are of no use."""

_MAX_BOXES = 200
"""Scenes up to which each gets a box on the map; more would hide it."""


def png(pixels: np.ndarray) -> bytes:
    """Encode an image.

    Args:
        pixels: uint8 (H, W, 3) or (H, W).

    Returns:
        PNG bytes; with a palette, and halved in size, as needed to stay below 200 kB.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    if buffer.tell() > _MAX_BYTES and image.mode == "RGB":
        # A palette is a third of the bytes and hardly to be seen; only then is size given up.
        buffer = io.BytesIO()
        image.quantize(_PALETTE).save(buffer, format="PNG", optimize=True)
    if buffer.tell() <= _MAX_BYTES:
        return buffer.getvalue()
    while True:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= _MAX_BYTES or min(image.size) < 64:
            return buffer.getvalue()
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def as_rgb(chips: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """The red, green and blue channels of chips, or the first channel thrice where there are none.

    Args:
        chips: uint8 (..., C).
        bands: common band names in channel order.

    Returns:
        uint8 (..., 3).
    """
    if {"red", "green", "blue"} <= set(bands):
        return chips[..., [bands.index(name) for name in ("red", "green", "blue")]]
    return np.repeat(chips[..., :1], 3, axis=-1)


def proportion_bar(
    proportions: np.ndarray, colours: tuple[str, ...], width_px: int, height_px: int = _BAR_PX
) -> np.ndarray:
    """A horizontal bar whose parts are as long as the proportions.

    Args:
        proportions: float (K,), summing to 1.
        colours: ``#RRGGBB`` of each class.
        width_px: length of the bar.
        height_px: thickness of the bar.

    Returns:
        uint8 (height_px, width_px, 3).
    """
    edges = np.round(np.cumsum(proportions) * width_px).astype(int)
    index = np.searchsorted(edges, np.arange(width_px), side="right").clip(0, len(colours) - 1)
    return np.repeat(palette_of(colours)[index][None], height_px, axis=0)


def mosaic(tiles: np.ndarray, columns: int, gap_px: int = 2) -> np.ndarray:
    """Tiles side by side on white.

    Args:
        tiles: uint8 (N, H, W, 3).
        columns: tiles in a row.
        gap_px: white space between tiles.

    Returns:
        uint8 (H', W', 3).
    """
    num, height, width, _ = tiles.shape
    rows = -(-num // columns)
    out = np.full((rows * (height + gap_px), columns * (width + gap_px), 3), 255, dtype=np.uint8)
    for k, tile in enumerate(tiles):
        top, left = (k // columns) * (height + gap_px), (k % columns) * (width + gap_px)
        out[top : top + height, left : left + width] = tile
    return out


def chips_with_land_cover(dataset: "LevirKR", num_chips: int, columns: int = 8, seed: int = 0) -> bytes:
    """A panel of chips drawn at random, under each a bar of its land-cover proportions.

    Returns:
        PNG bytes.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(dataset.catalogue), size=min(num_chips, len(dataset.catalogue)), replace=False))
    return panel(dataset.images(rows), dataset.proportions[rows], dataset.bands, dataset.class_colours, columns)


def panel(
    chips: np.ndarray, proportions: np.ndarray, bands: tuple[str, ...], colours: tuple[str, ...], columns: int = 8
) -> bytes:
    """Chips in rows, under each a bar of its proportions.

    Args:
        chips: uint8 (N, H, W, C).
        proportions: float (N, K); a row of zeros gives an empty (black) bar.
        bands: common band names in channel order.
        colours: ``#RRGGBB`` of each class.
        columns: chips in a row.

    Returns:
        PNG bytes.
    """
    rgb = as_rgb(chips, bands)
    bars = np.stack([proportion_bar(p, colours, rgb.shape[2]) for p in proportions])
    return png(mosaic(np.concatenate([rgb, bars], axis=1), columns))


def palette_of(colours: Sequence[str]) -> np.ndarray:
    """Colours as uint8 (K, 3) from ``#RRGGBB``."""
    return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], dtype=np.uint8)


def paint(slots: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """A map of classes in their colours.

    Args:
        slots: uint8 (H, W), class index; everything from K on is white.
        colours: ``#RRGGBB`` of each of K classes.

    Returns:
        uint8 (H, W, 3).
    """
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(colours)] = palette_of(colours)
    return np.asarray(table[slots])


def beside_legend(images: Sequence[np.ndarray], entries: Sequence[tuple[str, str, float]]) -> bytes:
    """Images of one size side by side, and below them a legend.

    Drawn by hand and not by a plotting library: this is made for every scene, and must take no time.

    Args:
        images: uint8 (H, W, 3) each; small ones are enlarged by whole numbers.
        entries: name, ``#RRGGBB`` and share of ground (0–1) of each class, in the order wanted.

    Returns:
        PNG bytes.
    """
    height, width = images[0].shape[:2]
    times = max(1, _SIDE_PX // max(height, width))
    large = np.stack(images).repeat(times, axis=1).repeat(times, axis=2)
    row = mosaic(large, columns=len(images), gap_px=6)
    columns = max(1, row.shape[1] // _ENTRY_PX)
    top = row.shape[0] + 4
    lines = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(row.shape[1], _ENTRY_PX), top + lines * _LINE_PX), "white")
    canvas.paste(Image.fromarray(row), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, (name, colour, share) in enumerate(entries):
        x, y = (number % columns) * _ENTRY_PX + 2, top + (number // columns) * _LINE_PX
        pen.rectangle((x, y + 3, x + 12, y + 13), fill=colour, outline="#888888")
        pen.text((x + 18, y + 1), f"{name.replace('_', ' ')} {share:.1%}", fill="black", font=font)
    return png(np.asarray(canvas))


def footprint_map(
    lon: np.ndarray, lat: np.ndarray, size_deg: float, proportions: np.ndarray, scenes: np.ndarray,
    classes: Sequence[str], colours: Sequence[str],
) -> bytes:  # fmt: skip
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
    figure = Figure(figsize=(7.6, float(np.clip(7.0 * shape[0] / shape[1], 2.2, 7.0)) + 0.9), dpi=_DPI)
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
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=5, fontsize=7.5, frameon=False,
        title=f"{len(lon):,} chips of {len(names):,} scenes, coloured by the class with most ground", title_fontsize=8,
    )  # fmt: skip
    return _drawn(figure)


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

    figure = Figure(figsize=(6.4, 0.42 * len(classes) + 0.9), dpi=_DPI)
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
    return _drawn(figure)


def shift_map(scores: np.ndarray, shifts_px: Sequence[int], peak_px: tuple[int, int]) -> bytes:
    """How well image and land cover fit at each shift, with the best one marked.

    Args:
        scores: float (S, S), rows by shift downwards, columns by shift to the right.
        shifts_px: the S shifts in pixels.
        peak_px: best shift (right, down).

    Returns:
        PNG bytes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), dpi=_DPI)
    axes = figure.subplots()
    half = (shifts_px[1] - shifts_px[0]) / 2 if len(shifts_px) > 1 else 0.5
    low, high = shifts_px[0] - half, shifts_px[-1] + half
    shown = axes.imshow(scores, extent=(low, high, high, low), cmap="viridis", interpolation="nearest")
    axes.plot(0, 0, "o", color="white", markersize=13, fillstyle="none", label="as georeferenced")
    axes.plot(*peak_px, "x", color="red", markersize=8, label="best fit")
    axes.set_xlabel("land cover moved right (px)", fontsize=8)
    axes.set_ylabel("moved down (px)", fontsize=8)
    axes.tick_params(labelsize=7.5)
    bar = figure.colorbar(shown, ax=axes)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("mutual information (nat)", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", framealpha=0.85)
    return _drawn(figure)


def _drawn(figure: "Figure") -> bytes:
    """A figure as PNG bytes, cut to what is on it; no date and no version inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    return png(np.asarray(Image.open(buffer).convert("RGB")))
