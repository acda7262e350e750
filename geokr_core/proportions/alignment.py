"""Is a scene aligned with its land cover? Mutual information between the two, at a range of shifts.

Where image and map show the same ground, knowing a pixel's brightness tells most about its class when nothing is
shifted; each pixel of misregistration costs information. So the shift at which mutual information peaks says how far
the two are apart, without any label and whatever the colours mean (Maes et al. 1997, "Multimodality image registration
by maximization of mutual information"). Only this judgement lives here; nothing is moved or mended.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from geokr_core.errors import SceneRefusedError
from geokr_core.land_cover.product import Product, open_land_cover
from geokr_core.pictures.images import DPI, drawn
from geokr_core.proportions.config import AlignmentConfig
from geokr_core.proportions.quicklook import QuickLook, look
from geokr_core.rasters.grid import METRES_PER_DEGREE
from geokr_core.scenes.inventory import usable_scenes
from geokr_core.scenes.scene import Scene
from geokr_core.step.reporter import Reporter
from geokr_core.step.summary import Number

BINS = 32
"""Grey levels of a band, equally full: enough for a dozen classes, few enough to be counted well."""

BLOCKS_A_SIDE = 4
"""The ground is judged in 16 blocks as well, to know how sure the whole is."""

MIN_BLOCK_PIXELS = 400
"""A block with fewer pixels of known class says nothing by itself."""

SURE_T = 3.0
"""Student's t over the blocks from which another shift counts as better than none. The best of 49 shifts is chosen
before it is tested, so 2 would cry wolf."""

MIN_CONTRAST = 0.02
"""Share by which the peak must stand out of the outermost shifts; below it there is nothing to see."""

_STRIPS = 4


@dataclass(frozen=True)
class Alignment:
    """How well a scene and its land cover are aligned. Shifts are (right, down), of the land cover, in image pixels.

    Attributes:
        scene_id: the scene.
        product: the land-cover product.
        shifts_px: shifts tried in each direction.
        scores: float64 (S, S), mutual information in nat, mean over bands; rows by shift downwards.
        peak_px: the best of the shifts tried; no shift where nothing could be compared.
        refined_px: the top of a parabola through the best shift and its neighbours.
        contrast: share by which the peak stands above the mean of the outermost shifts.
        t_against_zero: Student's t, over blocks of ground, of the gain of the peak over no shift; NaN with too few.
        num_pixels: pixels of known class that were counted, at no shift.
    """

    scene_id: str
    product: str
    shifts_px: tuple[int, ...]
    scores: np.ndarray
    peak_px: tuple[int, int]
    refined_px: tuple[float, float]
    contrast: float
    t_against_zero: float
    num_pixels: int

    @property
    def step_px(self) -> int:
        """Pixels between two shifts: a land-cover cell, where that is larger than a pixel."""
        return self.shifts_px[1] - self.shifts_px[0]

    def verdict(self, tolerance_px: float) -> str:
        """``aligned``, ``shifted``, or ``unclear`` where the ground does not tell.

        Args:
            tolerance_px: shifts up to this count as none; half a land-cover cell is always allowed.
        """
        if self.contrast < MIN_CONTRAST or self.num_pixels < MIN_BLOCK_PIXELS:
            return "unclear"
        if max(abs(shift) for shift in self.peak_px) <= max(tolerance_px, self.step_px / 2):
            return "aligned"
        return "shifted" if self.t_against_zero >= SURE_T else "unclear"

    def row(self, tolerance_px: float) -> Mapping[str, Number]:
        """One row of a table."""
        return {
            "scene": self.scene_id,
            "product": self.product,
            "verdict": self.verdict(tolerance_px),
            "right_px": self.peak_px[0],
            "down_px": self.peak_px[1],
            "refined_right_px": round(self.refined_px[0], 2),
            "refined_down_px": round(self.refined_px[1], 2),
            "step_px": self.step_px,
            "mi_peak_nat": round(float(self.scores.max()), 4),
            "mi_unshifted_nat": round(float(self.scores[len(self.shifts_px) // 2, len(self.shifts_px) // 2]), 4),
            "contrast": round(self.contrast, 3),
            "t_against_zero": round(self.t_against_zero, 1),
            "num_pixels": self.num_pixels,
        }


def align_scene(
    config: AlignmentConfig,
    folder: Path,
    scene: Scene,
    bands: tuple[str, ...],
    source: Path,
    product: Product,
    num_classes: int,
) -> Alignment:
    """Measure how well a scene and its land cover are aligned.

    About ``config.max_pixels`` pixels are read at full resolution, as lines spread over the scene; of wide scenes more,
    because a strip must be some times higher than the shifts.

    Args:
        config: shifts and number of pixels.
        folder: the scene folder.
        scene: from the inventory.
        bands: common names of the bands to use.
        source: the land-cover folder.
        product: the scene's product.
        num_classes: classes of the common legend.

    Raises:
        SceneRefusedError: the scene cannot be read.
        LandCoverError: a tile cannot be read.
        UnknownLegendCodeError: a tile holds a code that its legend does not list.
    """
    shifts = shifts_of(config.max_shift, product, scene)
    parts = [
        look(folder, scene, bands, source, product, row=row, height=height)
        for row, height in _strips(scene.grid.height, scene.grid.width, config.max_pixels, 64 + 2 * shifts[-1])
    ]
    return alignment_of(scene.scene_id, product.config.name, parts, num_classes, shifts)


def shifts_of(most: int, product: Product, scene: Scene) -> tuple[int, ...]:
    """Shifts to try in each direction: ``most`` image pixels, or land-cover cells where these are larger."""
    step = max(1, round(_cell_m(product, scene) / scene.gsd_m))
    return tuple(step * k for k in range(-most, most + 1))


def alignment_of(
    scene_id: str, product: str, parts: Sequence[QuickLook], num_classes: int, shifts: tuple[int, ...]
) -> Alignment:
    """Measure how well pieces of a scene and their land cover are aligned.

    Args:
        scene_id: the scene.
        product: name of the land-cover product.
        parts: pieces of the scene.
        num_classes: classes of the common legend.
        shifts: in image pixels, evenly spaced and symmetric about 0.
    """
    step = shifts[1] - shifts[0]
    scores, by_block, num_pixels = mutual_information_shifts(parts, num_classes, shifts)
    middle = len(shifts) // 2
    # Where nothing was compared all scores are 0, and the first of them says nothing of a shift.
    best = (
        np.unravel_index(int(np.nanargmax(scores)), scores.shape) if np.nan_to_num(scores).any() else (middle, middle)
    )
    ring = np.ones_like(scores, dtype=bool)
    ring[1:-1, 1:-1] = False
    around = float(scores[ring].mean())
    gains = by_block[:, best[0], best[1]] - by_block[:, middle, middle]
    return Alignment(
        scene_id=scene_id,
        product=product,
        shifts_px=shifts,
        scores=scores,
        peak_px=(shifts[best[1]], shifts[best[0]]),
        refined_px=(
            float(shifts[best[1]] + step * _top(scores[best[0]], int(best[1]))),
            float(shifts[best[0]] + step * _top(scores[:, best[1]], int(best[0]))),
        ),
        contrast=float(scores[best] / around - 1.0) if around > 0 else 0.0,
        t_against_zero=_students_t(gains),
        num_pixels=num_pixels,
    )


def _cell_m(product: Product, scene: Scene) -> float:
    """Side of a land-cover cell in metres: the square root of its area, at the scene's latitude."""
    grid = product.tiles[0].grid
    if not grid.crs.is_geographic:
        return grid.gsd_m
    latitude = min(abs(scene.grid.footprint().centroid.y), 89.0)
    return float(abs(grid.transform.e) * METRES_PER_DEGREE * math.sqrt(math.cos(math.radians(latitude))))


def alignments(
    config: AlignmentConfig,
    bands: tuple[str, ...],
    folder: Path,
    scenes: Path,
    source: Path,
    land_cover: Path,
    reporter: Reporter,
) -> Iterator[Alignment]:
    """`align_scene` for every usable scene, in order; a scene that cannot be read is skipped with a warning.

    Args:
        config: shifts and number of pixels.
        bands: common names of the bands to use.
        folder: the scene folder.
        scenes: folder of the inventory.
        source: the land-cover folder.
        land_cover: folder of its index.
        reporter: hears of each scene that cannot be read.

    Raises:
        MissingInputError: the inventory or the index is missing.
        LandCoverError: a tile cannot be read.
        UnknownLegendCodeError: a tile holds a code that its legend does not list.
    """
    index, usable = open_land_cover(land_cover), usable_scenes(scenes)
    with reporter.progress("alignment", len(usable)) as advance:
        for scene in usable.values():
            product = index.products[scene.land_cover]
            try:
                yield align_scene(config, folder, scene, bands, source, product, len(index.legend.classes))
            except SceneRefusedError as error:
                reporter.warning(f"scene {scene.scene_id}: {error}")
            advance(1)


def _strips(height: int, width: int, max_pixels: int, min_height: int) -> list[tuple[int, int]]:
    """First line and number of lines of what is read: everything, or lines spread evenly."""
    if height * width <= max_pixels:
        return [(0, height)]
    lines = min(height // _STRIPS, max(min_height, max_pixels // width // _STRIPS))
    return [(int(row), lines) for row in np.linspace(0, height - lines, _STRIPS)]


def mutual_information_shifts(
    parts: Sequence[QuickLook], num_classes: int, shifts_px: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mutual information between brightness and class, with the land cover moved by every pair of shifts.

    The same pixels of the image are asked at every shift; those at the rim, whose class would move out of sight, never.
    Information is measured block by block and averaged, weighted by pixels: over a whole scene or the globe, what goes with
    place (haze, season, the poles) tells of a class too, and that hardly changes with a shift.

    Args:
        parts: pieces of one scene.
        num_classes: class indices below it count, all other slots do not.
        shifts_px: S shifts, symmetric about 0, ascending.

    Returns:
        float64 (S, S) in nat, mean over bands, rows by shift downwards; the same for each block of ground with enough
        pixels, (B, S, S); and the number of pixels counted at no shift. Without such a block, all are taken as one.
    """
    margin = max(shifts_px)
    edges = _bin_edges(parts)
    joint = [
        _joint_counts(bins, part.slots, num_classes, shifts_px, rows, cols)
        for part in parts
        for bins in [_binned(part, edges)]
        for rows, cols in _blocks(part.slots.shape, margin, BLOCKS_A_SIDE if len(parts) == 1 else 1)
    ]
    if not joint:
        return np.zeros((len(shifts_px),) * 2), np.zeros((0, len(shifts_px), len(shifts_px))), 0
    middle = len(shifts_px) // 2
    enough = [counts for counts in joint if counts[middle, middle, 0].sum() >= MIN_BLOCK_PIXELS]
    by_block = np.array([_information(counts) for counts in enough]).reshape(-1, len(shifts_px), len(shifts_px))
    num_pixels = int(sum(counts[middle, middle, 0].sum() for counts in joint))
    if not enough:
        return _information(np.sum(joint, axis=0)), by_block, num_pixels
    weights = [counts[middle, middle, 0].sum() for counts in enough]
    return np.average(by_block, axis=0, weights=weights), by_block, num_pixels


def _bin_edges(parts: Sequence[QuickLook]) -> np.ndarray:
    """float64 (C, BINS − 1), between which each band's valid pixels are equally many."""
    values = np.concatenate([part.pixels[:, part.valid] for part in parts], axis=1)
    if not values.size:
        return np.zeros((len(values), BINS - 1))
    return np.quantile(values.astype(np.float64), np.arange(1, BINS) / BINS, axis=1).T


def _binned(part: QuickLook, edges: np.ndarray) -> np.ndarray:
    """uint8 (C, H, W): bin of each pixel, BINS where there is no data."""
    bins = np.stack([np.searchsorted(edge, band, side="right") for edge, band in zip(edges, part.pixels, strict=True)])
    bins[:, ~part.valid] = BINS
    return bins.astype(np.uint8)


def _blocks(shape: tuple[int, ...], margin: int, rows: int) -> list[tuple[slice, slice]]:
    """Blocks of pixels that stay inside at every shift; none where the piece is too small for that."""
    height, width = shape
    if height <= 2 * margin or width <= 2 * margin:
        return []
    top = np.linspace(margin, height - margin, rows + 1).astype(int)
    left = np.linspace(margin, width - margin, BLOCKS_A_SIDE + 1).astype(int)
    return [(slice(a, b), slice(c, d)) for a, b in pairwise(top) for c, d in pairwise(left) if b > a and d > c]


def _joint_counts(
    bins: np.ndarray, slots: np.ndarray, num_classes: int, shifts_px: Sequence[int], rows: slice, cols: slice
) -> np.ndarray:
    """int64 (S, S, C, BINS, K): pixels of one block by bin and class, at every shift."""
    here = bins[:, rows, cols].astype(np.int64)
    out = np.zeros((len(shifts_px), len(shifts_px), len(bins), BINS, num_classes), dtype=np.int64)
    valid = here[0] < BINS
    for y, down in enumerate(shifts_px):
        for x, right in enumerate(shifts_px):
            moved = slots[rows.start - down : rows.stop - down, cols.start - right : cols.stop - right]
            known = valid & (moved < num_classes)
            classes = moved[known]
            for band, values in enumerate(here):
                key = values[known] * num_classes + classes
                out[y, x, band] = np.bincount(key, minlength=BINS * num_classes).reshape(BINS, num_classes)
    return out


def _information(counts: np.ndarray) -> np.ndarray:
    """Mutual information in nat, mean over bands, from counts (..., C, BINS, K): H(bin) + H(class) − H(bin, class)."""
    from scipy.special import entr

    share = counts / np.maximum(counts.sum(axis=(-2, -1), keepdims=True), 1)
    of_bins, of_classes = entr(share.sum(axis=-1)).sum(axis=-1), entr(share.sum(axis=-2)).sum(axis=-1)
    return np.asarray((of_bins + of_classes - entr(share).sum(axis=(-2, -1))).mean(axis=-1))


def _top(values: np.ndarray, best: int) -> float:
    """Where a parabola through a maximum and its neighbours has its top, in steps from the maximum."""
    if not 0 < best < len(values) - 1:
        return 0.0
    before, at, after = values[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0


def _students_t(gains: np.ndarray) -> float:
    if len(gains) < 3:
        return math.nan
    spread = float(gains.std(ddof=1))
    return float(gains.mean() / (spread / math.sqrt(len(gains)))) if spread > 0 else 0.0


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

    figure = Figure(figsize=(4.2, 3.6), dpi=DPI)
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
    return drawn(figure)
