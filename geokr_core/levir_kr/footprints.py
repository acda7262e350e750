"""The map of where chips lie, in the colours of their land cover, with the shores around them.

Where chips would be specks on one map, as in an archive of a few places far apart, each place gets a map at a scale that
shows it, and one map above shows where the places are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pictures.images import DPI, drawn, paint
from geokr_core.pictures.land import land_outlines
from geokr_core.rasters.grid import METRES_PER_DEGREE

_MAP_CELLS: Final = 360
"""Cells across a map of footprints: finer ones than a picture shows are of no use."""

_MAX_BOXES: Final = 200
"""Scenes up to which each gets a box on the map; more would hide it."""

_MAX_PLACES: Final = 9
"""Places that get maps of their own scale: those with most chips."""

_COLUMNS: Final = 3
_WIDE: Final = 2.2
"""Width by height of the map of all places, at least."""
_GROUND, _LAND, _EDGE = "#eef3f6", "#f7f5ee", "#b9b4a5"
_SHORE_FROM_DEG: Final = 2.0
"""Narrower maps show no shore: at 1:110 million it lies some kilometres off."""


@dataclass(frozen=True)
class _Chips:
    """Chips of one map: where they lie, what covers them, and which scene they are of."""

    lon: np.ndarray
    lat: np.ndarray
    size_deg: float
    proportions: np.ndarray
    scenes: np.ndarray

    def part(self, rows: np.ndarray) -> "_Chips":
        return _Chips(self.lon[rows], self.lat[rows], self.size_deg, self.proportions[rows], self.scenes[rows])

    @property
    def stretch(self) -> float:
        """Length of a degree of longitude by one of latitude."""
        return float(np.cos(np.radians(np.clip(np.abs(self.lat).mean(), 0, 80))))

    @property
    def width_deg(self) -> float:
        """Width of a map of them in degrees of longitude."""
        return max(float(np.ptp(self.lon)), float(np.ptp(self.lat)) / self.stretch, 2 * self.size_deg / self.stretch)


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
    chips = _Chips(_side_by_side(lon), lat, size_deg, proportions, scenes)
    places = _places(chips)
    if len(places) == 1:
        figure = Figure(figsize=(7.6, float(np.clip(7.0 * _height_by_width(chips), 2.2, 7.0)) + 0.9), dpi=DPI)
        seen = _draw_chips(figure.subplots(), chips, colours)
    else:
        figure, seen = _draw_places(chips, places, colours)
    _draw_legend(figure, chips, seen, classes, colours)
    return drawn(figure)


def map_of(dataset: LevirKR) -> bytes:
    """The map of a data set's chips, see `footprint_map`."""
    catalogue = dataset.catalogue
    return footprint_map(
        catalogue["lon"].to_numpy(),
        catalogue["lat"].to_numpy(),
        float(catalogue["gsd_m"].median()) * dataset.chip_size_px / METRES_PER_DEGREE,
        dataset.proportions,
        catalogue["scene_id"].to_numpy(),
        dataset.classes,
        dataset.class_colours,
    )


def _draw_places(chips: _Chips, places: Sequence[_Chips], colours: Sequence[str]) -> tuple[Figure, set[int]]:
    """One map of all places, and below it a map of each."""
    columns = min(_COLUMNS, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(7.6, 3.4 + 2.3 * rows), dpi=DPI, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.0, 2.3 * rows])[:, 0]
    overview = above.subplots()
    _draw_land(overview)
    south, north = chips.lat.min() - 4.0, chips.lat.max() + 4.0
    width = max(1.15 * float(np.ptp(chips.lon)), _WIDE * (north - south), 20.0)
    centre = (chips.lon.min() + chips.lon.max()) / 2
    overview.set_xlim(centre - width / 2, centre + width / 2)
    height = max(north - south, width / _WIDE / 1.4)
    middle = float(np.clip((south + north) / 2, -90 + height / 2, 90 - height / 2)) if height < 180 else 0.0
    overview.set_ylim(middle - height / 2, middle + height / 2)
    overview.set_aspect("equal")
    _mark_degrees(overview)
    seen: set[int] = set()
    panels = below.subplots(rows, columns, squeeze=False).ravel()
    for number, (axes, place) in enumerate(zip(panels, places, strict=False), 1):
        at = float(np.median(place.lon)), float(np.median(place.lat))
        overview.plot(*at, marker="o", markersize=9, color="#1c2227")
        overview.annotate(str(number), at, color="white", fontsize=6.5, ha="center", va="center")
        seen |= _draw_chips(axes, place, colours)
        axes.set_title(f"{number}: {len(place.lon):,} chips", fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        axes.locator_params(nbins=3)
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    return figure, seen


def _places(chips: _Chips) -> list[_Chips]:
    """Chips by place, those with most chips first, where one map would show them as specks; else all together."""
    names, index = np.unique(chips.scenes, return_inverse=True)
    if chips.width_deg / _MAP_CELLS <= 3 * chips.size_deg / chips.stretch or len(names) < 2:
        return [chips]
    low, high = np.full((len(names), 2), np.inf), np.full((len(names), 2), -np.inf)
    points = np.stack([chips.lon, chips.lat], axis=1)
    np.minimum.at(low, index, points)
    np.maximum.at(high, index, points)
    reach = float((high - low).max()) / 2 + chips.size_deg
    boxes = shapely.box(*(low - reach).T, *(high + reach).T)
    joined = shapely.get_parts(shapely.union_all(boxes))
    place_of_scene = shapely.STRtree(joined).query(shapely.centroid(boxes), predicate="intersects")[1]
    place = place_of_scene[index]
    order = np.argsort(-np.bincount(place, minlength=len(joined)), kind="stable")
    found = [chips.part(np.flatnonzero(place == number)) for number in order[:_MAX_PLACES]]
    return found if len(found) > 1 else [chips]


def _height_by_width(chips: _Chips) -> float:
    step_lon = max(chips.width_deg / _MAP_CELLS, chips.size_deg / chips.stretch)
    step_lat = step_lon * chips.stretch
    return (float(np.ptp(chips.lat)) / step_lat + 1) / (float(np.ptp(chips.lon)) / step_lon + 1)


def _draw_chips(axes: Axes, chips: _Chips, colours: Sequence[str]) -> set[int]:
    """Chips summed into cells, each in the colour of its class with most ground; returns the classes that are seen."""
    lon, lat, wide, stretch = chips.lon, chips.lat, chips.width_deg, chips.stretch
    step_lon = max(wide / _MAP_CELLS, chips.size_deg / stretch)
    step_lat = step_lon * stretch
    left, top = lon.min() - step_lon / 2, lat.max() + step_lat / 2
    col, row = ((lon - left) / step_lon).astype(int), ((top - lat) / step_lat).astype(int)
    shape = (int(row.max()) + 1, int(col.max()) + 1)
    cell = row * shape[1] + col
    num_cells = shape[0] * shape[1]
    mass = [np.bincount(cell, weights=shares, minlength=num_cells) for shares in chips.proportions.T]
    most = np.where(np.bincount(cell, minlength=num_cells) > 0, np.argmax(mass, axis=0), 255)
    image = np.concatenate(
        [paint(most.reshape(shape).astype(np.uint8), colours), np.full((*shape, 1), 255, np.uint8)], 2
    )
    image[(most == 255).reshape(shape)] = 0
    extent = (left, left + shape[1] * step_lon, top - shape[0] * step_lat, top)
    if wide >= _SHORE_FROM_DEG:
        _draw_land(axes)
    else:
        axes.set_facecolor(_LAND)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect=1 / stretch, zorder=1)
    axes.set_xlim(extent[0] - 0.02 * wide, extent[1] + 0.02 * wide)
    axes.set_ylim(extent[2] - 0.02 * wide * stretch, extent[3] + 0.02 * wide * stretch)
    _mark_degrees(axes)
    names, index = np.unique(chips.scenes, return_inverse=True)
    if len(names) <= _MAX_BOXES:
        _draw_boxes(axes, lon, lat, index, len(names), step_lon, step_lat)
    return set(most[most != 255].tolist())


def _draw_land(axes: Axes) -> None:
    """Land and sea, three times side by side: longitudes may run on beyond 180°."""
    from matplotlib.collections import PolyCollection

    outlines = [outline + np.array([turn, 0.0]) for turn in (-360.0, 0.0, 360.0) for outline in land_outlines()]
    axes.set_facecolor(_GROUND)
    axes.add_collection(
        PolyCollection(outlines, facecolor=_LAND, edgecolor=_EDGE, linewidth=0.5, zorder=0), autolim=False
    )


def _mark_degrees(axes: Axes) -> None:
    axes.grid(color="#555555", linewidth=0.4, alpha=0.4, zorder=2)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "EW"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    axes.tick_params(labelsize=7.5)


def _draw_legend(figure: Figure, chips: _Chips, seen: set[int], classes: Sequence[str], colours: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    shown = [k for k in np.argsort(-chips.proportions.mean(axis=0), kind="stable") if k in seen]
    handles: list[Any] = [
        Patch(facecolor=colours[k], edgecolor="#888888", label=classes[k].replace("_", " ")) for k in shown
    ]
    num_scenes = len(np.unique(chips.scenes))
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=5,
        fontsize=7.5,
        frameon=False,
        title=f"{len(chips.lon):,} chips of {num_scenes:,} scenes, coloured by the class with most ground",
        title_fontsize=8,
    )


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
