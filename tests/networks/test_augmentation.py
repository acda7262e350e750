"""Augmentation keeps what it must keep, on numbers, and every draw comes from the generator."""

import colorsys

import pytest
import torch

from geokr_core.networks.augmentation import (
    Draws,
    Geometry,
    Strength,
    cells_under,
    colour_view,
    draw,
    geometry_of,
    orient,
    seen,
)
from geokr_core.networks.normalisation import Normalisation

RGB = ("red", "green", "blue")
PLAIN = Normalisation(torch.zeros(3), torch.ones(3))


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _chips(batch: int = 64, size: int = 4, bands: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (batch, size, size, bands), dtype=torch.uint8, generator=_seeded(9))


def _planes(batch: int = 64, bands: int = 3) -> torch.Tensor:
    return _chips(batch, bands=bands).permute(0, 3, 1, 2).contiguous()


def _view(
    planes: torch.Tensor, bands: tuple[str, ...], normalisation: Normalisation, strength: Strength, g: torch.Generator
) -> torch.Tensor:
    return colour_view(planes, bands, normalisation, strength, draw(len(planes), len(bands), g))


def test_normalisation_by_hand() -> None:
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    result = Normalisation(torch.tensor([0.5, 0.2, 0.0]), torch.tensor([0.5, 0.1, 2.0]))(images)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([-1.0, 0.0, 0.5]))


def test_results_lie_as_channels_last() -> None:
    assert PLAIN(_chips()).is_contiguous(memory_format=torch.channels_last)
    view = _view(_planes(), RGB, PLAIN, Strength(), _seeded())
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_no_strength_is_plain_normalisation() -> None:
    normalisation = Normalisation(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))
    view = _view(_planes(), RGB, normalisation, Strength(), _seeded())
    torch.testing.assert_close(view, normalisation(_chips()), atol=1e-5, rtol=1e-5)


def _orientations(square: torch.Tensor) -> list[torch.Tensor]:
    """All eight, by torch's own means; (H, W, C)."""
    turns = [torch.rot90(square, k, (0, 1)) for k in range(4)]
    return turns + [turn.flip(0) for turn in turns]


def _which(result: torch.Tensor, source: torch.Tensor) -> int:
    hits = [k for k, o in enumerate(_orientations(source)) if torch.equal(o, result.permute(1, 2, 0))]
    assert len(hits) == 1, "not an orientation of the very chip"
    return hits[0]


def test_all_eight_orientations_come_equally_often_and_bands_stay_together() -> None:
    chips = _chips(batch=1600)
    turned = orient(chips, Strength(), _seeded())
    counts = torch.bincount(torch.tensor([_which(t, c) for t, c in zip(turned, chips, strict=True)]), minlength=8)
    assert counts.min() > 150  # 200 expected, standard deviation 13
    assert counts.max() < 250


def test_published_share_of_quarter_turns() -> None:
    chips = _chips(batch=1600)
    turned = orient(chips, Strength(transpose_fraction=0.25), _seeded())
    which = torch.tensor([_which(t, c) for t, c in zip(turned, chips, strict=True)])
    quarter_turned = ((which % 2) == 1).float().mean()
    assert float(quarter_turned) == pytest.approx(0.25, abs=0.04)


def test_without_flips_and_turns_chips_stay_as_they_are() -> None:
    chips = _chips()
    still = orient(chips, Strength(flip_fraction=0.0, transpose_fraction=0.0), _seeded())
    assert torch.equal(still, chips.permute(0, 3, 1, 2))


@pytest.mark.parametrize("strength", [Strength(brightness=0.3, contrast=0.3, saturation=0.3, gain=0.1, hue_turns=0.2)])
def test_same_generator_same_result_and_another_differs(strength: Strength) -> None:
    torch.manual_seed(1)
    first = _view(orient(_chips(), strength, g := _seeded(5)), RGB, PLAIN, strength, g)
    torch.manual_seed(2)
    again = _view(orient(_chips(), strength, g := _seeded(5)), RGB, PLAIN, strength, g)
    other = _view(orient(_chips(), strength, g := _seeded(6)), RGB, PLAIN, strength, g)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_views_from_one_generator_differ() -> None:
    draws, planes, strength = _seeded(), _planes(), Strength(brightness=0.3)
    a, b = (_view(planes, RGB, PLAIN, strength, draws) for _ in range(2))
    assert not torch.equal(a, b)


def _grey_chips() -> torch.Tensor:
    levels = torch.randint(60, 180, (64, 1, 4, 4), dtype=torch.uint8, generator=_seeded(3))
    return levels.expand(64, 3, 4, 4).contiguous()


def test_brightness_multiplies_all_bands_alike_within_its_range() -> None:
    planes = _planes() // 2 + 20
    ratio = _view(planes, RGB, PLAIN, Strength(brightness=0.3), _seeded()) / (planes / 255.0)
    low, high = ratio.amin(dim=(1, 2, 3)), ratio.amax(dim=(1, 2, 3))
    torch.testing.assert_close(low, high, rtol=1e-4, atol=1e-4)
    assert 0.7 <= float(low.min()) < 0.75
    assert 1.25 < float(high.max()) <= 1.3


def test_contrast_keeps_the_mean_and_changes_the_spread() -> None:
    planes = _planes() // 4 + 96
    view = _view(planes, RGB, PLAIN, Strength(contrast=0.5), _seeded())
    plain = planes / 255.0
    torch.testing.assert_close(view.mean(dim=(1, 2, 3)), plain.mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)
    ratio = view.std(dim=(1, 2, 3)) / plain.std(dim=(1, 2, 3))
    assert float(ratio.min()) < 0.6
    assert float(ratio.max()) > 1.4


def test_gain_changes_bands_by_themselves() -> None:
    planes = _planes() // 2 + 20
    ratio = _view(planes, RGB, PLAIN, Strength(gain=0.08), _seeded()) / (planes / 255.0)
    of_bands = ratio.mean(dim=(2, 3))
    assert float((of_bands.amax(dim=1) - of_bands.amin(dim=1)).median()) > 0.03
    assert float((of_bands - 1).abs().max()) <= 0.0801


@pytest.mark.parametrize("strength", [Strength(saturation=0.5), Strength(hue_turns=0.5)])
def test_saturation_and_hue_leave_grey_alone_and_change_colour(strength: Strength) -> None:
    grey = _grey_chips()
    torch.testing.assert_close(_view(grey, RGB, PLAIN, strength, _seeded()), grey / 255.0, rtol=1e-4, atol=1e-4)
    coloured = _planes() // 2 + 60
    assert float((_view(coloured, RGB, PLAIN, strength, _seeded()) - coloured / 255.0).abs().mean()) > 0.02


@pytest.mark.parametrize("bands", [("red", "green", "nir"), ("nir", "swir1", "swir2"), ("red", "green", "blue", "nir")])
def test_saturation_and_hue_touch_nothing_but_red_green_blue(bands: tuple[str, ...]) -> None:
    planes = _planes(bands=len(bands))
    plain = Normalisation(torch.zeros(len(bands)), torch.ones(len(bands)))
    view = _view(planes, bands, plain, Strength(saturation=0.5, hue_turns=0.5), _seeded())
    torch.testing.assert_close(view, planes / 255.0, rtol=1e-4, atol=1e-4)


def test_saturation_keeps_the_grey_value_whatever_the_order_of_bands() -> None:
    planes, luma = _planes() // 2 + 60, {"red": 0.299, "green": 0.587, "blue": 0.114}
    for bands in (RGB, ("blue", "green", "red")):
        weights = torch.tensor([luma[band] for band in bands])[:, None, None]
        view = _view(planes, bands, PLAIN, Strength(saturation=0.3), _seeded())
        before, after = (planes / 255.0 * weights).sum(dim=1), (view * weights).sum(dim=1)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_hue_turns_red_towards_green_or_blue_by_no_more_than_asked() -> None:
    pixel = torch.tensor([150, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1).expand(500, 3, 1, 1).contiguous()
    view = _view(pixel, RGB, PLAIN, Strength(hue_turns=0.1), _seeded())[:, :, 0, 0]
    hues = torch.tensor([(colorsys.rgb_to_hsv(*p)[0] + 0.5) % 1.0 - 0.5 for p in view.tolist()])
    assert 0.08 < float(hues.max()) < 0.11
    assert -0.11 < float(hues.min()) < -0.08


def test_values_are_clipped_where_a_sensor_would_saturate() -> None:
    normalisation = Normalisation(torch.full((3,), 0.5), torch.full((3,), 0.25))
    view = _view(_planes(), RGB, normalisation, Strength(brightness=0.9, contrast=0.9), _seeded())
    assert float(view.min()) == pytest.approx(-2.0)
    assert float(view.max()) == pytest.approx(2.0)


# --- crops, and the land cover that follows them ------------------------------------------------------------------------


def _box(top: float, left: float, bottom: float, right: float, orientation: int = 0) -> Geometry:
    return Geometry(torch.tensor([[top, left, bottom, right]]), torch.tensor([orientation]))


def test_a_crop_shows_its_own_ground_scaled_to_the_chip() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)[None, :, :, None]  # value = column
    shown = seen(ramp, _box(0.0, 0.25, 0.5, 0.75))[0, 0]
    assert shown.shape == (64, 64)
    # Output column j shows the ground at 0.25 + 0.5 (j + 0.5) / 64 of the chip's side, i.e. pixel 16 + (j + 0.5) / 2.
    expected = 16.0 + (torch.arange(64) + 0.5) / 2 - 0.5
    torch.testing.assert_close(shown, expected.expand(64, 64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("orientation", range(8))
def test_a_crop_of_everything_is_the_oriented_chip(orientation: int) -> None:
    chips = _chips(batch=1, size=8)
    cropped = seen(chips, _box(0.0, 0.0, 1.0, 1.0, orientation))
    whole = seen(chips, Geometry(None, torch.tensor([orientation])))
    torch.testing.assert_close(cropped, whole.float(), atol=1e-2, rtol=0)


def test_crops_keep_to_their_range_of_area_and_aspect_and_inside_the_chip() -> None:
    strength = Strength(crop_area_fraction=(0.25, 0.5))
    boxes = geometry_of(draw(4000, 3, _seeded()), strength, torch.device("cpu")).boxes
    assert boxes is not None
    assert float(boxes.min()) >= 0.0
    assert float(boxes.max()) <= 1.0 + 1e-6
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = height * width
    assert 0.249 < float(area.min()) < 0.26
    assert 0.49 < float(area.max()) < 0.501
    assert float((height / width).max()) < 1.334
    assert float(area.mean()) == pytest.approx(0.375, abs=0.01)


def _cells(labels: list[list[int]], num_classes: int = 3) -> torch.Tensor:
    """One chip whose sub-cells are each of one class; -1 is unknown."""
    grid = torch.tensor(labels)
    one = torch.nn.functional.one_hot(grid.clamp_min(0), num_classes) * (grid >= 0)[..., None]
    return (one * 255).to(torch.uint8)[None]


def test_proportions_of_a_crop_are_area_weighted_with_fractions_at_the_border() -> None:
    cells = _cells([[0, 1], [2, 2]])
    # Rows 0 to 0.75, columns 0.25 to 1: a quarter of cell (0, 0)'s side is cut off, and half of the lower row.
    found = cells_under(cells, _box(0.0, 0.25, 0.75, 1.0), 1)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.25, 0.5 * 0.5, 0.25 * 0.75]) / (0.75 * 0.75))


def test_unknown_ground_is_missing_from_the_sum() -> None:
    found = cells_under(_cells([[-1, 1], [-1, 2]]), _box(0.0, 0.25, 1.0, 1.0), 1)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 1 / 3, 1 / 3]))


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.25, 0.0, 1.0, 0.75), (0.125, 0.5, 0.625, 1.0)])
def test_labels_turn_and_move_exactly_with_the_pixels(orientation: int, box: tuple[float, ...]) -> None:
    # A chip whose pixels name their class: what is seen, counted, must be what the label says.
    labels = torch.randint(0, 3, (8, 8), generator=_seeded(4))
    chip = labels.repeat_interleave(16, 0).repeat_interleave(16, 1).to(torch.uint8)
    images = torch.stack([(chip == k) * 255 for k in range(3)], dim=-1).to(torch.uint8)[None]
    geometry = _box(*box, orientation)
    shown = seen(images, geometry) / 255.0
    counted = torch.nn.functional.adaptive_avg_pool2d(shown, 4).permute(0, 2, 3, 1)
    said = cells_under(_cells(labels.tolist()), geometry, 4)
    torch.testing.assert_close(said, counted, atol=0.06, rtol=0)
    torch.testing.assert_close(
        cells_under(_cells(labels.tolist()), geometry, 1)[0, 0, 0], said.mean(dim=(0, 1, 2)), atol=1e-5, rtol=0
    )


def test_grey_chips_have_equal_bands_and_come_as_often_as_asked() -> None:
    planes = _planes(batch=1000) // 2 + 60
    view = _view(planes, RGB, PLAIN, Strength(grey_fraction=0.2), _seeded())
    grey = (view.amax(dim=1) - view.amin(dim=1)).amax(dim=(1, 2)) < 1e-4
    assert float(grey.float().mean()) == pytest.approx(0.2, abs=0.04)


def test_draws_of_a_part_are_those_of_the_whole_batch() -> None:
    whole = draw(8, 3, _seeded())
    part = whole.of(torch.tensor([1, 5]))
    strength = Strength(crop_area_fraction=(0.3, 1.0), brightness=0.3)
    chips = _chips(batch=8)

    def view(chips: torch.Tensor, draws: Draws) -> torch.Tensor:
        planes = seen(chips, geometry_of(draws, strength, torch.device("cpu")))
        return colour_view(planes, RGB, PLAIN, strength, draws)

    torch.testing.assert_close(view(chips[[1, 5]], part), view(chips, whole)[[1, 5]])
