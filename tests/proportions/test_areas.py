"""Class areas under polygons: hand tables, and equality with an independent exact method."""

import numpy as np
import pytest
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr_core.proportions.areas import (
    Edges,
    RunningCounts,
    edges_of_polygons,
    edges_of_rings,
    polygon_areas,
    signed_areas,
)

SLOTS = np.array([[0, 1, 1], [0, 2, 1], [2, 2, 0]], dtype=np.uint8)


def class_areas(slots: np.ndarray, edges: Edges, num_slots: int, row_weights: np.ndarray) -> np.ndarray:
    counts = RunningCounts(slots, num_slots, slots.shape[1])
    return polygon_areas(counts, edges, row_weights[:, None])[0]


def square(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], dtype=float)


@pytest.mark.parametrize(
    ("ring", "expected"),
    [
        (square(0, 0, 3, 3), [3, 3, 3]),
        (square(0, 0, 1, 1), [1, 0, 0]),
        (square(0.5, 0.5, 1.5, 1.5), [0.5, 0.25, 0.25]),
        (square(1.25, 0.25, 1.75, 0.75), [0, 0.25, 0]),  # within one cell
        (square(-5, -5, 1, 1), [1, 0, 0]),  # beyond the upper left corner
        (square(2.5, 2.5, 9, 9), [0.25, 0, 0]),  # beyond the lower right corner
        (square(5, 5, 6, 6), [0, 0, 0]),  # elsewhere
        (np.array([[0, 0], [2, 0], [0, 2], [0, 0]], float), [1.5, 0.5, 0]),  # a triangle along cell diagonals
    ],
)
def test_areas_by_hand(ring: np.ndarray, expected: list[float]) -> None:
    clockwise_or_not = [ring, ring[::-1]]
    for outline in clockwise_or_not:
        areas = class_areas(SLOTS, edges_of_rings(outline[None]), 3, np.ones(3))
        np.testing.assert_allclose(areas[0], expected, atol=1e-12)


def test_rows_weigh_by_their_cell_area() -> None:
    areas = class_areas(SLOTS, edges_of_rings(square(0, 0, 1, 3)[None]), 3, np.array([1.0, 10.0, 100.0]))
    np.testing.assert_allclose(areas[0], [11.0, 0.0, 100.0])


def test_holes_are_left_out() -> None:
    ring = shapely.Polygon(square(0, 0, 3, 3), [square(1, 1, 2, 2)])
    areas = class_areas(SLOTS, edges_of_polygons([ring, shapely.Polygon()]), 3, np.ones(3))
    np.testing.assert_allclose(areas, [[3, 3, 2], [0, 0, 0]], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    angle=st.floats(0, 6.3),
    size=st.floats(0.05, 25),
    shear=st.floats(-0.6, 0.6),
)
def test_equals_an_independent_exact_method(seed: int, angle: float, size: float, shear: float) -> None:
    rng = np.random.default_rng(seed)
    height, width, num = 23, 31, 40
    slots = rng.integers(0, 5, (height, width), dtype=np.uint8)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, shear], [0, 1]])
    centres = rng.uniform((-4, -4), (width + 4, height + 4), (num, 1, 2))
    rings = centres + (square(-0.5, -0.5, 0.5, 0.5) * size) @ turn.T
    ours = class_areas(slots, edges_of_rings(rings), 5, np.ones(height))
    np.testing.assert_allclose(ours, _reference(slots, rings, 5), atol=2e-6 * max(1.0, size**2))
    assert (ours.sum(axis=1) <= np.abs(signed_areas(rings)) + 1e-9).all()


def _reference(slots: np.ndarray, rings: np.ndarray, num_slots: int) -> np.ndarray:
    height, width = slots.shape
    source = NumPyRasterSource(slots.astype(np.int32), 0, 0, width, height)
    shapes = [shapely.Polygon(np.stack([r[:, 0], height - r[:, 1]], axis=-1)) for r in rings]
    features = [{"type": "Feature", "id": i, "geometry": shapely.geometry.mapping(s)} for i, s in enumerate(shapes)]
    out = np.zeros((len(rings), num_slots))
    for index, feature in enumerate(exact_extract(source, features, ["unique", "frac", "count"])):
        found = feature["properties"]
        for value, fraction in zip(found["unique"], found["frac"], strict=True):
            out[index, int(value)] = fraction * found["count"]
    return out
