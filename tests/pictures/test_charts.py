"""Charts share one look that colour-blind readers can read."""

import itertools

import numpy as np

from geokr_core.pictures.charts import INITIALISATION_COLOURS, initialisation_styles
from geokr_core.pictures.images import palette_of
from geokr_core.pictures.land import land_outlines

# Machado, Oliveira and Fernandes (2009), severity 1.0, applied to linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
LAB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(linear: np.ndarray) -> np.ndarray:
    xyz = linear @ LAB.T / [0.9505, 1.0, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)


def test_the_colours_of_the_known_starts_differ_for_the_colour_blind_too() -> None:
    colours = palette_of(list(INITIALISATION_COLOURS.values())) / 255.0
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), *map(np.array, BLINDNESS.values())):
        seen = lab((linear @ matrix.T).clip(0, 1))
        distances = [float(np.linalg.norm(one - two)) for one, two in itertools.combinations(seen, 2)]
        assert min(distances) > 12  # 2.3 is just noticeable side by side


def test_the_known_starts_have_markers_of_their_own() -> None:
    styles = initialisation_styles(INITIALISATION_COLOURS)
    assert len({style.marker for style in styles.values()}) == len(styles)


def test_there_is_land_where_there_is_land() -> None:
    import shapely

    land = shapely.union_all([shapely.Polygon(outline).buffer(0) for outline in land_outlines()])
    inside, outside = [(20, 0), (-100, 40), (134, -25), (0, -80)], [(-30, 30), (150, 20), (80, -30)]
    assert [land.contains(shapely.Point(at)) for at in inside] == [True] * len(inside)
    assert not any(land.contains(shapely.Point(at)) for at in outside)
    assert 115 < land.area / 180 < 125
