"""The size of places that `geokr init` writes: the data set's own split, tried before anything is cut."""

import numpy as np
import pytest

from geokr_core.draft.places import choose_place_size
from geokr_core.levir_kr.config import LevirKRConfig


def boxes(num_scenes: int, side_deg: float, seed: int = 0) -> list[tuple[float, float, float, float]]:
    corners = np.random.default_rng(seed).uniform((-170, -60), (170, 60), size=(num_scenes, 2))
    return [(lon, lat, lon + side_deg, lat + side_deg) for lon, lat in corners.tolist()]


@pytest.mark.parametrize(("num_scenes", "side_deg"), [(12, 0.08), (1, 3.0), (300, 1.0), (4, 0.5)])
def test_some_tenth_of_the_ground_in_several_places_is_held_out(num_scenes: int, side_deg: float) -> None:
    size = choose_place_size(boxes(num_scenes, side_deg))
    assert size is not None
    assert size.serves
    assert size.num_held_out >= 3
    assert abs(size.fraction - LevirKRConfig().validation_fraction) <= 0.1


def test_larger_places_are_taken_where_there_is_more_ground() -> None:
    few, many = choose_place_size(boxes(2, 0.1)), choose_place_size(boxes(300, 1.0))
    assert few is not None
    assert many is not None
    assert few.deg < many.deg


def test_one_tiny_scene_has_no_place_to_hold_out_or_says_that_it_serves_badly() -> None:
    size = choose_place_size([(10.001, 50.001, 10.002, 50.002)])
    assert size is None or not size.serves
    assert choose_place_size([]) is None
