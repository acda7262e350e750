"""Augmentation of whole batches of chips, on the device they lie on.

uint8 (B, H, W, C) goes in as it lies in the shards, normalised float32 in channels_last layout comes out. Everything
random is drawn first, by a CPU generator, into a `Draws`: every device, and every process of a distributed run, sees
the same draws. What a crop does to the land cover of a chip is in `cells_under`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.strength import Strength

_LUMA: Final = {"red": 0.299, "green": 0.587, "blue": 0.114}
"""Weights of the grey value, ITU-R BT.601, as Pillow and torchvision use them."""

_RGB: Final = ("red", "green", "blue")

MAX_ASPECT: Final = 4.0 / 3.0
"""Sides of a crop differ by at most this factor, as in torchvision's RandomResizedCrop."""

_GEOMETRY_DRAWS: Final = 7
_COLOUR_DRAWS: Final = 5


@dataclass(frozen=True)
class Draws:
    """The random numbers of one view of a batch, uniform in 0-1: the same whatever the strengths.

    Attributes:
        geometry: float32 (7, B): two flips, transposition, area, aspect, row and column of the crop.
        colour: float32 (B, 5 + C): brightness, contrast, saturation, hue, grey, and the gain of each band.
    """

    geometry: Tensor
    colour: Tensor

    def of(self, places: Tensor) -> "Draws":
        """The draws of some chips of the batch, int64 (M,)."""
        return Draws(self.geometry[:, places], self.colour[places])


def draw(batch: int, num_bands: int, generator: torch.Generator) -> Draws:
    """Draw for one view of ``batch`` chips of ``num_bands`` bands."""
    geometry = torch.rand((_GEOMETRY_DRAWS, batch), generator=generator)
    return Draws(geometry, torch.rand((batch, _COLOUR_DRAWS + num_bands), generator=generator))


@dataclass(frozen=True)
class Geometry:
    """Which ground of each chip is seen, and how it is turned.

    Attributes:
        boxes: float32 (B, 4): top, left, bottom and right edge of the crop as shares of the chip's side; None: whole
            chips.
        orientation: int64 (B,), 0-7: bit 0 flips rows, bit 1 columns, and bit 2 then swaps rows and columns.
    """

    boxes: Tensor | None
    orientation: Tensor

    def beside(self, other: "Geometry") -> "Geometry":
        """This of some chips, and then ``other`` of the same or of others; both with crops or both without."""
        boxes = None if self.boxes is None or other.boxes is None else torch.cat([self.boxes, other.boxes])
        return Geometry(boxes, torch.cat([self.orientation, other.orientation]))


def geometry_of(draws: Draws, strength: Strength, device: torch.device) -> Geometry:
    """Crop and orientation of each chip.

    Area uniform in its range, aspect log-uniform, place uniform, as in torchvision's RandomResizedCrop; a side that
    would exceed the chip is cut to it.
    """
    u = draws.geometry
    wanted = torch.tensor([[strength.flip_fraction], [strength.flip_fraction], [strength.transpose_fraction]])
    flags = (u[:3] < wanted).long()
    orientation = (flags[0] + 2 * flags[1] + 4 * flags[2]).to(device, non_blocking=True)
    if not strength.crops:
        return Geometry(None, orientation)
    low, high = strength.crop_area_fraction
    area = low + (high - low) * u[3]
    aspect = torch.exp((2.0 * u[4] - 1.0) * math.log(MAX_ASPECT))
    height, width = (area / aspect).sqrt().clamp_(max=1.0), (area * aspect).sqrt().clamp_(max=1.0)
    top, left = u[5] * (1.0 - height), u[6] * (1.0 - width)
    boxes = torch.stack([top, left, top + height, left + width], dim=1)
    return Geometry(boxes.to(device, non_blocking=True), orientation)


def seen(images: Tensor, geometry: Geometry) -> Tensor:
    """Crop, scale back to the chip's size, flip and turn.

    Args:
        images: uint8 (B, S, S, C), square.
        geometry: on the images' device.

    Returns:
        (B, C, S, S), contiguous, 0-255: uint8 where chips stay whole (their very pixels), else float32 (bilinear).
        Arithmetic on whole planes is several times faster than on pixels of three.
    """
    if geometry.boxes is None:
        return _turned(images.permute(0, 3, 1, 2), geometry.orientation)
    planes = images.permute(0, 3, 1, 2).float().contiguous()
    top, left, bottom, right = geometry.boxes.unbind(dim=1)
    flip_rows, flip_columns, swap = (((geometry.orientation >> bit) & 1).float() for bit in (0, 1, 2))
    # From the output's coordinates (-1 to 1) to the input's; a swap exchanges what row and column of it follow. Written
    # out because `affine_grid` takes longer than the sampling itself.
    size = planes.shape[2]
    centres = (2.0 * torch.arange(size, device=planes.device) + 1.0) / size - 1.0
    across, down = centres[None, None, :], centres[None, :, None]
    along_x, along_y = (right - left) * (1 - 2 * flip_columns), (bottom - top) * (1 - 2 * flip_rows)
    x = _each(along_x * (1 - swap)) * across + _each(along_x * swap) * down + _each(left + right - 1.0)
    y = _each(along_y * swap) * across + _each(along_y * (1 - swap)) * down + _each(top + bottom - 1.0)
    grid = torch.stack([x, y], dim=3)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _each(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1)."""
    return values[:, None, None]


def orient(images: Tensor, strength: Strength, generator: torch.Generator) -> Tensor:
    """Flip and turn each chip by itself.

    Args:
        images: uint8 (B, S, S, C), square.
        strength: uses ``flip_fraction`` and ``transpose_fraction``.
        generator: CPU generator.

    Returns:
        uint8 (B, C, S, S), contiguous.
    """
    draws = draw(len(images), images.shape[-1], generator)
    whole = replace(strength, crop_area_fraction=(1.0, 1.0))
    return seen(images, geometry_of(draws, whole, images.device))


def _turned(planes: Tensor, orientation: Tensor) -> Tensor:
    """Turn each square of (B, C, S, S) by itself."""
    batch, channels, size, _ = planes.shape
    source = _orientations(size, planes.device)[orientation]
    flat = planes.reshape(batch, channels, size * size)
    turned = flat.gather(2, source[:, None, :].expand(batch, channels, size * size))
    return turned.view(batch, channels, size, size)


@lru_cache(maxsize=32)
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


def cells_under(cells: Tensor, geometry: Geometry, size: int) -> Tensor:
    """Land cover of the ground that is seen, in ``size`` x ``size`` parts, turned as the chip is turned.

    Args:
        cells: uint8 (B, n, n, K): share of each class in each sub-cell of the whole chip, x 255.
        geometry: what is seen of each chip.
        size: parts a side; 1 gives the proportions of the whole crop.

    Returns:
        float32 (B, size, size, K): area-weighted mean of the sub-cells under each part, fractional at its borders. A
        part's sum is the share of its ground whose land cover is known.
    """
    batch, side = cells.shape[:2]
    boxes = geometry.boxes
    if boxes is None:
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0], device=cells.device).expand(batch, 4)
    rows = _overlap(boxes[:, 0], boxes[:, 2], size, side)
    columns = _overlap(boxes[:, 1], boxes[:, 3], size, side)
    parts = torch.einsum("bri,bcj,bijk->brck", rows, columns, cells.float() / 255.0)
    if size == 1:
        return parts
    return _turned(parts.permute(0, 3, 1, 2), geometry.orientation).permute(0, 2, 3, 1)


def _overlap(start: Tensor, end: Tensor, parts: int, side: int) -> Tensor:
    """float32 (B, parts, side): share of each part of the intervals that lies in each of ``side`` equal cells of 0-1."""
    step = (end - start)[:, None] / parts
    low = start[:, None] + step * torch.arange(parts, device=start.device)
    edges = torch.arange(side + 1, device=start.device) / side
    shared = torch.minimum((low + step)[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
    shared = shared.clamp_(min=0.0)
    return shared / shared.sum(dim=2, keepdim=True)


def colour_view(
    planes: Tensor, bands: Sequence[str], normalisation: Normalisation, strength: Strength, draws: Draws
) -> Tensor:
    """One normalised colour variant of each chip.

    Band gain, brightness, contrast, saturation and hue are each linear in the pixel, so all five are one C × C matrix
    and one offset a chip. Values that leave 0-1 are clipped once, at the end.

    Args:
        planes: uint8 or float32 (B, C, H, W), contiguous, 0-255, as `seen` gives them.
        bands: common names of the C bands.
        normalisation: statistics on the images' device.
        strength: see `Strength`; saturation, hue and grey are skipped unless the bands are exactly red, green and blue.
        draws: of the same chips.

    Returns:
        float32 (B, C, H, W) in channels_last layout.
    """
    batch, channels, height, width = planes.shape
    pixels = planes.view(batch, channels, height * width).float()
    matrix, shift = _colour_change(pixels.mean(dim=2) / 255.0, bands, strength, draws.colour)
    changed = torch.baddbmm(shift[:, :, None], matrix / 255.0, pixels).clamp_(0.0, 1.0)
    return normalisation.of_planes(changed.view(batch, channels, height, width))


def _colour_change(means: Tensor, bands: Sequence[str], strength: Strength, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (B, C, C) and offset (B, C) on values 0-1, for chips whose band means are ``means`` (B, C)."""
    batch, channels = means.shape
    uniform = draws.to(means.device, non_blocking=True)
    drawn = uniform * 2.0 - 1.0
    factors = drawn[:, _COLOUR_DRAWS:] * strength.gain + 1.0
    factors = factors * (drawn[:, :1] * strength.brightness + 1.0)
    contrast = drawn[:, 1:2] * strength.contrast + 1.0
    pivot = (means * factors).mean(dim=1, keepdim=True)
    matrix = torch.diag_embed(factors * contrast)
    # Rows of the saturation and hue matrices sum to 1, so a grey offset passes through both unchanged.
    shift = ((1.0 - contrast) * pivot).expand(batch, channels)
    if sorted(bands) == sorted(_RGB):
        saturation = drawn[:, 2] * strength.saturation + 1.0
        matrix = _saturation(saturation * (uniform[:, 4] >= strength.grey_fraction), bands) @ matrix
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
