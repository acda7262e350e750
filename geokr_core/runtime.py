"""Where and how precisely tensors are computed. Nothing here knows what is computed."""

from dataclasses import dataclass
from typing import Final

import torch

from geokr_core.config import PretrainingConfig
from geokr_core.distributed import World
from geokr_core.errors import TrainingError

BF16_MIN_CHIP_SIZE_PX: Final = 17
"""Below it, a ResNet's last strided convolutions see maps of one pixel, for which torch 2.15 on the CPU returns
uninitialised memory as bf16 weight gradient (found by comparing with float32: 3x3 stride 2 on 1x1, and only that)."""


@dataclass(frozen=True)
class Runtime:
    """Where and how precisely tensors are computed.

    Attributes:
        device: where.
        bf16: whether networks run in bfloat16 where torch deems it safe; float32 otherwise.
        compiled: whether the networks of a training step go through ``torch.compile``.
    """

    device: torch.device
    bf16: bool
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        """Context in which networks run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def runtime_of(config: PretrainingConfig, chip_size_px: int, world: World | None = None) -> Runtime:
    """The runtime that a configuration asks for.

    Args:
        config: asks for a device and a precision.
        chip_size_px: side of the chips; small ones are computed in float32 on the CPU, see `BF16_MIN_CHIP_SIZE_PX`.
        world: of a distributed run: each process of a machine takes the GPU of its own number.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "pretraining.device is `cuda`, but torch sees no GPU: check the driver, or set `auto` or `cpu`."
        )
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    name = "cpu" if on_cpu else f"cuda:{world.local_rank}" if world is not None and world.size > 1 else "cuda"
    small = on_cpu and chip_size_px < BF16_MIN_CHIP_SIZE_PX and config.architecture.startswith("resnet")
    compiled = config.compile == "on" or (config.compile == "auto" and not on_cpu)
    return Runtime(torch.device(name), config.precision == "bf16" and not small, compiled)
