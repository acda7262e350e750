"""Small pictures that let a person check at a glance: chips with their land cover, footprints, quick looks.

Everything returns PNG bytes that depend on the data alone (no dates inside), small enough for the Dagster event log.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

_MAX_BYTES = 200_000
_BAR_PX = 10
DPI = 100
_PALETTE = 128

_SIDE_PX = 300
"""Longer side of each image of a pair; smaller ones are enlarged up to it."""

_ENTRY_PX, _LINE_PX = 190, 18
"""Width and height of an entry of a legend."""

_TEXT_PX = 16
"""Height of a line of text."""


def png(pixels: np.ndarray, kept: Sequence[str] = ()) -> bytes:
    """Encode an image.

    Args:
        pixels: uint8 (H, W, 3) or (H, W).
        kept: ``#RRGGBB`` of colours that a palette must hold as they are, those of a legend; the first 128 count.

    Returns:
        PNG bytes; with a palette, and halved in size, as needed to stay below 200 kB.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    if buffer.tell() > _MAX_BYTES and image.mode == "RGB":
        # A palette is a third of the bytes and hardly to be seen; only then is size given up.
        buffer = io.BytesIO()
        _with_palette(image, kept).save(buffer, format="PNG", optimize=True)
    if buffer.tell() <= _MAX_BYTES:
        return buffer.getvalue()
    while True:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= _MAX_BYTES or min(image.size) < 64:
            return buffer.getvalue()
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def _with_palette(image: Image.Image, kept: Sequence[str]) -> Image.Image:
    """The image in colours chosen from it, and in those that are kept: few pixels of a class would lose theirs among photographs."""
    reduced = image.quantize(_PALETTE)
    if not kept:
        return reduced
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [*(reduced.getpalette() or [])[: 3 * _PALETTE], *palette_of(kept[: 256 - _PALETTE]).ravel().tolist()]
    )
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


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
    texts = [(f"{name.replace('_', ' ')} {share:.1%}", colour) for name, colour, share in entries]
    return png(above_legend(mosaic(large, columns=len(images), gap_px=6), texts), [colour for _, colour in texts])


def above_legend(picture: np.ndarray, entries: Sequence[tuple[str, str]]) -> np.ndarray:
    """A picture, and below it a legend in as many columns as there is room for.

    Args:
        picture: uint8 (H, W, 3).
        entries: text and ``#RRGGBB`` of each class, in the order wanted.

    Returns:
        uint8 (H', W', 3), at least as wide as one entry.
    """
    columns = max(1, picture.shape[1] // _ENTRY_PX)
    top = picture.shape[0] + 4
    lines = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(picture.shape[1], _ENTRY_PX), top + lines * _LINE_PX), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, (text, colour) in enumerate(entries):
        x, y = (number % columns) * _ENTRY_PX + 2, top + (number // columns) * _LINE_PX
        pen.rectangle((x, y + 3, x + 12, y + 13), fill=colour, outline="#888888")
        pen.text((x + 18, y + 1), text, fill="black", font=font)
    return np.asarray(canvas)


def below_caption(picture: np.ndarray, caption: str, least_width_px: int) -> np.ndarray:
    """A picture, enlarged by a whole number until it is wide enough, below a line of text.

    Args:
        picture: uint8 (H, W, 3).
        caption: what is written above it; what does not fit is cut off.
        least_width_px: width that the picture is enlarged to, or beyond.

    Returns:
        uint8 (H', W', 3).
    """
    times = -(-least_width_px // picture.shape[1])
    large = picture.repeat(times, axis=0).repeat(times, axis=1)
    return np.concatenate([line_of_text(caption, large.shape[1]), large])


def line_of_text(text: str, width_px: int) -> np.ndarray:
    """A line of black text on white, uint8 (16, width_px, 3)."""
    line = Image.new("RGB", (width_px, _TEXT_PX), "white")
    ImageDraw.Draw(line).text((0, 1), text, fill="black", font=ImageFont.load_default(12))
    return np.asarray(line)


def drawn(figure: "Figure") -> bytes:
    """A figure as PNG bytes, cut to what is on it; no date and no version inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    return png(np.asarray(Image.open(buffer).convert("RGB")))
