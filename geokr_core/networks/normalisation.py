"""Scaling 8-bit images for a network: channel statistics, and a network's input size."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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


def channel_statistics(images: np.ndarray) -> Normalisation:
    """Mean and standard deviation of each channel over all pixels, scaled to 0–1.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        The statistics, on the CPU; a constant channel gets half a grey level as deviation, so that one can divide by it.
    """
    num_channels = images.shape[-1]
    flat = images.reshape(-1, num_channels)
    levels = np.arange(256) / 255.0
    shares = np.stack([np.bincount(flat[:, k], minlength=256) / len(flat) for k in range(num_channels)])
    mean = shares @ levels
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(axis=1)).clip(min=0.5 / 255.0)
    return Normalisation(torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def placed(normalisation: Normalisation, device: torch.device) -> Normalisation:
    """The same statistics on a device."""
    return Normalisation(normalisation.mean.to(device), normalisation.std.to(device))
