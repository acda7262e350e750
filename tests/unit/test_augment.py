"""Augmentation keeps what it must keep, on numbers, and every draw comes from the generator."""

import colorsys

import pytest
import torch

from geokr_core.augment import Normalisation, Strength, colour_view, orient

RGB = ("red", "green", "blue")
PLAIN = Normalisation(torch.zeros(3), torch.ones(3))


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _chips(batch: int = 64, size: int = 4, bands: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (batch, size, size, bands), dtype=torch.uint8, generator=_seeded(9))


def _planes(batch: int = 64, bands: int = 3) -> torch.Tensor:
    return _chips(batch, bands=bands).permute(0, 3, 1, 2).contiguous()


def test_normalisation_by_hand() -> None:
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    result = Normalisation(torch.tensor([0.5, 0.2, 0.0]), torch.tensor([0.5, 0.1, 2.0]))(images)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([-1.0, 0.0, 0.5]))


def test_results_lie_as_channels_last() -> None:
    assert PLAIN(_chips()).is_contiguous(memory_format=torch.channels_last)
    view = colour_view(_planes(), RGB, PLAIN, Strength(), _seeded())
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_no_strength_is_plain_normalisation() -> None:
    normalisation = Normalisation(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))
    view = colour_view(_planes(), RGB, normalisation, Strength(), _seeded())
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
    first = colour_view(orient(_chips(), strength, g := _seeded(5)), RGB, PLAIN, strength, g)
    torch.manual_seed(2)
    again = colour_view(orient(_chips(), strength, g := _seeded(5)), RGB, PLAIN, strength, g)
    other = colour_view(orient(_chips(), strength, g := _seeded(6)), RGB, PLAIN, strength, g)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_views_from_one_generator_differ() -> None:
    draws, planes, strength = _seeded(), _planes(), Strength(brightness=0.3)
    a, b = (colour_view(planes, RGB, PLAIN, strength, draws) for _ in range(2))
    assert not torch.equal(a, b)


def _grey_chips() -> torch.Tensor:
    levels = torch.randint(60, 180, (64, 1, 4, 4), dtype=torch.uint8, generator=_seeded(3))
    return levels.expand(64, 3, 4, 4).contiguous()


def test_brightness_multiplies_all_bands_alike_within_its_range() -> None:
    planes = _planes() // 2 + 20
    ratio = colour_view(planes, RGB, PLAIN, Strength(brightness=0.3), _seeded()) / (planes / 255.0)
    low, high = ratio.amin(dim=(1, 2, 3)), ratio.amax(dim=(1, 2, 3))
    torch.testing.assert_close(low, high, rtol=1e-4, atol=1e-4)
    assert 0.7 <= float(low.min()) < 0.75
    assert 1.25 < float(high.max()) <= 1.3


def test_contrast_keeps_the_mean_and_changes_the_spread() -> None:
    planes = _planes() // 4 + 96
    view = colour_view(planes, RGB, PLAIN, Strength(contrast=0.5), _seeded())
    plain = planes / 255.0
    torch.testing.assert_close(view.mean(dim=(1, 2, 3)), plain.mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)
    ratio = view.std(dim=(1, 2, 3)) / plain.std(dim=(1, 2, 3))
    assert float(ratio.min()) < 0.6
    assert float(ratio.max()) > 1.4


def test_gain_changes_bands_by_themselves() -> None:
    planes = _planes() // 2 + 20
    ratio = colour_view(planes, RGB, PLAIN, Strength(gain=0.08), _seeded()) / (planes / 255.0)
    of_bands = ratio.mean(dim=(2, 3))
    assert float((of_bands.amax(dim=1) - of_bands.amin(dim=1)).median()) > 0.03
    assert float((of_bands - 1).abs().max()) <= 0.0801


@pytest.mark.parametrize("strength", [Strength(saturation=0.5), Strength(hue_turns=0.5)])
def test_saturation_and_hue_leave_grey_alone_and_change_colour(strength: Strength) -> None:
    grey = _grey_chips()
    torch.testing.assert_close(colour_view(grey, RGB, PLAIN, strength, _seeded()), grey / 255.0, rtol=1e-4, atol=1e-4)
    coloured = _planes() // 2 + 60
    assert float((colour_view(coloured, RGB, PLAIN, strength, _seeded()) - coloured / 255.0).abs().mean()) > 0.02


@pytest.mark.parametrize("bands", [("red", "green", "nir"), ("nir", "swir1", "swir2"), ("red", "green", "blue", "nir")])
def test_saturation_and_hue_touch_nothing_but_red_green_blue(bands: tuple[str, ...]) -> None:
    planes = _planes(bands=len(bands))
    plain = Normalisation(torch.zeros(len(bands)), torch.ones(len(bands)))
    view = colour_view(planes, bands, plain, Strength(saturation=0.5, hue_turns=0.5), _seeded())
    torch.testing.assert_close(view, planes / 255.0, rtol=1e-4, atol=1e-4)


def test_saturation_keeps_the_grey_value_whatever_the_order_of_bands() -> None:
    planes, luma = _planes() // 2 + 60, {"red": 0.299, "green": 0.587, "blue": 0.114}
    for bands in (RGB, ("blue", "green", "red")):
        weights = torch.tensor([luma[band] for band in bands])[:, None, None]
        view = colour_view(planes, bands, PLAIN, Strength(saturation=0.3), _seeded())
        before, after = (planes / 255.0 * weights).sum(dim=1), (view * weights).sum(dim=1)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_hue_turns_red_towards_green_or_blue_by_no_more_than_asked() -> None:
    pixel = torch.tensor([150, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1).expand(500, 3, 1, 1).contiguous()
    view = colour_view(pixel, RGB, PLAIN, Strength(hue_turns=0.1), _seeded())[:, :, 0, 0]
    hues = torch.tensor([(colorsys.rgb_to_hsv(*p)[0] + 0.5) % 1.0 - 0.5 for p in view.tolist()])
    assert 0.08 < float(hues.max()) < 0.11
    assert -0.11 < float(hues.min()) < -0.08


def test_values_are_clipped_where_a_sensor_would_saturate() -> None:
    normalisation = Normalisation(torch.full((3,), 0.5), torch.full((3,), 0.25))
    view = colour_view(_planes(), RGB, normalisation, Strength(brightness=0.9, contrast=0.9), _seeded())
    assert float(view.min()) == pytest.approx(-2.0)
    assert float(view.max()) == pytest.approx(2.0)
