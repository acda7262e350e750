"""Augmentation of whole batches of chips, on the device they lie on.

uint8 (B, H, W, C) goes in as it lies in the shards, normalised float32 in channels_last layout comes out. Proportions
belong to whole chips, so nothing here crops. All draws come from a CPU generator that is handed in, so that every
device sees the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

_LUMA: Final = {"red": 0.299, "green": 0.587, "blue": 0.114}
"""Weights of the grey value, ITU-R BT.601, as Pillow and torchvision use them."""

_RGB: Final = ("red", "green", "blue")


@dataclass(frozen=True)
class Strength:
    """How strongly chips are varied.

    Attributes:
        flip_fraction: probability of a flip, for each axis by itself.
        transpose_fraction: probability that rows and columns are swapped. With both flips at 0.5, 0.5 makes all
            eight orientations of the square equally likely; 0.25 is a quarter turn in every second of the
            rotations that are drawn for every second chip.
        brightness: factor drawn from 1 ± this.
        contrast: factor drawn from 1 ± this, about the chip's mean.
        saturation: factor drawn from 1 ± this, about the grey value; red, green and blue only.
        hue_turns: rotation about the grey axis drawn from ± this, in turns; red, green and blue only.
        gain: factor of each band by itself, drawn from 1 ± this.
    """

    flip_fraction: float = 0.5
    transpose_fraction: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue_turns: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True)
class Normalisation:
    """Channel statistics of Levir-KR's training chips scaled to 0-1: ``mean`` and ``std``, float32 (C,)."""

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """``(x / 255 - mean) / std``.

        Args:
            images: uint8 (B, H, W, C), as they lie in the shards.

        Returns:
            float32 (B, C, H, W) in channels_last layout.
        """
        return self.of_planes(images.permute(0, 3, 1, 2).contiguous().float() / 255.0)

    def of_planes(self, scaled: Tensor) -> Tensor:
        """``(x - mean) / std``.

        Args:
            scaled: float32 (B, C, H, W), 0-1, contiguous; overwritten.

        Returns:
            float32 (B, C, H, W) in channels_last layout.
        """
        centred = scaled.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return centred.contiguous(memory_format=torch.channels_last)


def orient(images: Tensor, strength: Strength, generator: torch.Generator) -> Tensor:
    """Flip and turn each chip by itself.

    Args:
        images: uint8 (B, S, S, C), square.
        strength: uses ``flip_fraction`` and ``transpose_fraction``.
        generator: CPU generator.

    Returns:
        uint8 (B, C, S, S), contiguous: arithmetic on whole planes is several times faster than on pixels of three.
    """
    batch, size, _, channels = images.shape
    wanted = torch.tensor([[strength.flip_fraction], [strength.flip_fraction], [strength.transpose_fraction]])
    drawn = (torch.rand((3, batch), generator=generator) < wanted).long()
    choice = (drawn[0] + 2 * drawn[1] + 4 * drawn[2]).to(images.device, non_blocking=True)
    source = _orientations(size, images.device)[choice]
    planes = images.permute(0, 3, 1, 2).reshape(batch, channels, size * size)
    turned = planes.gather(2, source[:, None, :].expand(batch, channels, size * size))
    return turned.view(batch, channels, size, size)


@lru_cache(maxsize=8)
def _orientations(size: int, device: torch.device) -> Tensor:
    """int64 (8, size * size): where each pixel of the eight orientations of a square comes from."""
    square = torch.arange(size * size).view(size, size)
    sources = []
    for choice in range(8):
        turned = square
        for bit, dim in ((1, 0), (2, 1)):
            turned = turned.flip(dim) if choice & bit else turned
        sources.append((turned.T if choice & 4 else turned).flatten())
    return torch.stack(sources).to(device)


def colour_view(
    planes: Tensor, bands: Sequence[str], normalisation: Normalisation, strength: Strength, generator: torch.Generator
) -> Tensor:
    """One normalised colour variant of each chip.

    Band gain, brightness, contrast, saturation and hue are each linear in the pixel, so all five are one C × C matrix
    and one offset a chip. Values that leave 0-1 are clipped once, at the end.

    Args:
        planes: uint8 (B, C, H, W), contiguous, as `orient` gives them.
        bands: common names of the C bands.
        normalisation: statistics on the images' device.
        strength: see `Strength`; saturation and hue are skipped unless the bands are exactly red, green and blue.
        generator: CPU generator.

    Returns:
        float32 (B, C, H, W) in channels_last layout.
    """
    batch, channels, height, width = planes.shape
    pixels = planes.view(batch, channels, height * width).float()
    matrix, shift = _colour_change(pixels.mean(dim=2) / 255.0, bands, strength, generator)
    changed = torch.baddbmm(shift[:, :, None], matrix / 255.0, pixels).clamp_(0.0, 1.0)
    return normalisation.of_planes(changed.view(batch, channels, height, width))


def _colour_change(
    means: Tensor, bands: Sequence[str], strength: Strength, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Matrix (B, C, C) and offset (B, C) on values 0-1, for chips whose band means are ``means`` (B, C)."""
    batch, channels = means.shape
    # Always as many draws whatever the strengths and bands: one setting changed leaves the others' draws alone.
    drawn = (torch.rand((batch, 4 + channels), generator=generator) * 2.0 - 1.0).to(means.device, non_blocking=True)
    factors = drawn[:, 4:] * strength.gain + 1.0
    factors = factors * (drawn[:, :1] * strength.brightness + 1.0)
    contrast = drawn[:, 1:2] * strength.contrast + 1.0
    pivot = (means * factors).mean(dim=1, keepdim=True)
    matrix = torch.diag_embed(factors * contrast)
    # Rows of the saturation and hue matrices sum to 1, so a grey offset passes through both unchanged.
    shift = ((1.0 - contrast) * pivot).expand(batch, channels)
    if sorted(bands) == sorted(_RGB):
        matrix = _saturation(drawn[:, 2] * strength.saturation + 1.0, bands) @ matrix
        if strength.hue_turns:
            matrix = _hue(drawn[:, 3] * strength.hue_turns * 2.0 * math.pi) @ matrix
    return matrix, shift


def _saturation(factors: Tensor, bands: Sequence[str]) -> Tensor:
    luma = factors.new_tensor([_LUMA[band] for band in bands])
    grey = luma.expand(3, 3)
    colour = torch.eye(3, device=factors.device) - grey
    return grey + factors[:, None, None] * colour


def _hue(angles: Tensor) -> Tensor:
    """Rotation about the axis (1, 1, 1) by each angle in radians (Rodrigues' formula): grey stays grey."""
    axis = torch.full((3, 3), 1.0 / 3.0, device=angles.device)
    cross = angles.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    return axis + cosine * (torch.eye(3, device=angles.device) - axis) + sine * cross
