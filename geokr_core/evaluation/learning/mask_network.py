"""The network that predicts a mask, and its prediction window by window."""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.task_kinds import MaskConfig
from geokr_core.networks.pyramid import Pyramid
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.stopwatch import computing

WINDOW_BATCH: Final = 8
OVERLAP: Final = 4
"""Neighbouring windows overlap by one in this many parts of their side."""

_ATROUS_RATES: Final = (12, 24, 36)


class MaskNetwork(nn.Module):
    """A backbone, a decoder of segmentation-models-pytorch, and a convolution to the classes."""

    def __init__(self, network: nn.Module, task: MaskConfig, num_classes: int, seed: int) -> None:
        """Put a decoder drawn from ``seed`` on ``network``."""
        super().__init__()
        self.pyramid = Pyramid(network, dilated=task.decoder == "deeplabv3plus")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder, width = _decoder(task.decoder, self.pyramid, task.decoder_channels)
            self.head = nn.Conv2d(width, num_classes, kernel_size=3 if task.decoder == "unet" else 1, padding="same")

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, K, H, W) of normalised float32 images (B, C, H, W) of any size."""
        height, width = images.shape[2:]
        multiple = max(self.pyramid.strides)
        # Decoders double sizes: levels must be exact halves of each other.
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        padded = padded.contiguous(memory_format=torch.channels_last)
        decoded = self.decoder([padded, *self.pyramid(padded)])
        logits = self.head(decoded).float()
        full = F.interpolate(logits, size=padded.shape[2:], mode="bilinear", align_corners=False)
        return full[..., :height, :width]


def _decoder(name: str, pyramid: Pyramid, width: int) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    channels, depth = [0, *pyramid.channels], len(pyramid.channels)
    if name == "unet":
        widths = [max(16, (width >> 2) << level) for level in reversed(range(depth))]
        return UnetDecoder(channels, widths, n_blocks=depth), widths[-1]
    if name == "fpn":
        decoder = FPNDecoder(channels, depth, pyramid_channels=2 * width, segmentation_channels=width)
        return decoder, width
    rates = [max(1, rate // 4) for rate in _ATROUS_RATES]  # of 512 px crops; ours are about a quarter of that
    return DeepLabV3PlusDecoder(channels, depth, width, rates, 16, aspp_separable=True, aspp_dropout=0.1), width


def window_starts(length: int, window: int) -> list[int]:
    """First pixels of the windows along an axis: overlapping, the last one flush with the end.

    Args:
        length: of the axis, at least ``window``.
        window: side of a window.
    """
    step = window - window // OVERLAP
    return [*range(0, length - window, step), length - window]


def window_weight(window: int) -> np.ndarray:
    """Say of a pixel in its window, float32 (S, S): least at the border, where the network sees half of the ground."""
    ramp = np.minimum(np.arange(window) + 1, np.arange(window)[::-1] + 1).astype(np.float32)
    ramp = np.minimum(ramp / max(1, window // OVERLAP), 1.0)
    return np.asarray(ramp[:, None] * ramp[None, :])


def predict_mask(model: nn.Module, image: Tensor, window: int, runtime: Runtime) -> np.ndarray:
    """Classes of an image of any size by sliding windows whose logits are blended, so that no window leaves an edge.

    Args:
        model: logits of batches of images; in evaluation mode.
        image: float32 (C, H, W), normalised.
        window: side of the windows.
        runtime: where it runs.

    Returns:
        uint8 (H, W).

    Raises:
        EvaluationError: a prediction is not finite.
    """
    height, width = image.shape[1:]
    padded = F.pad(image[None], (0, max(0, window - width), 0, max(0, window - height)), mode="replicate")[0]
    corners = [(y, x) for y in window_starts(padded.shape[1], window) for x in window_starts(padded.shape[2], window)]
    weight = torch.from_numpy(window_weight(window)).to(image.device)
    total: Tensor | None = None
    with torch.inference_mode():
        for first in range(0, len(corners), WINDOW_BATCH):
            some = corners[first : first + WINDOW_BATCH]
            batch = torch.stack([padded[:, y : y + window, x : x + window] for y, x in some])
            with computing(), runtime.autocast():
                logits = model(batch.contiguous(memory_format=torch.channels_last)).float()
            if not torch.isfinite(logits).all():
                raise EvaluationError(
                    "The fine-tuned network predicts values that are not finite; expected finite logits. Lower the "
                    "learning rate."
                )
            if total is None:
                total = logits.new_zeros((logits.shape[1], *padded.shape[1:]))
            for (y, x), part in zip(some, logits, strict=True):
                total[:, y : y + window, x : x + window] += part * weight
    assert total is not None  # an image has at least one window  # noqa: S101
    classes: np.ndarray = total[:, :height, :width].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return classes
