"""Where and how precisely tensors are computed. Nothing here knows what is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from geokr_core.errors import GeoKRError
from geokr_core.networks.distributed import ProcessGroup


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


def device_of(
    wanted: str, setting: str, refusal: type[GeoKRError], processes: ProcessGroup | None = None
) -> torch.device:
    """The device that a setting asks for.

    Args:
        wanted: ``cpu``, ``cuda`` or ``auto``.
        setting: full name of the setting, for the message.
        refusal: error to raise.
        processes: of a distributed run: each process of a machine takes the GPU of the same number.

    Raises:
        GeoKRError: as ``refusal``, where a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise refusal(f"{setting} is `cuda`, but torch sees no GPU: check the driver, or set `auto` or `cpu`.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{processes.local_rank}" if processes is not None and processes.size > 1 else "cuda")


_BF16_OF_CPUS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What `torch.cpu.get_capabilities` calls arithmetic in bfloat16: of x86 the first two, of ARM the others."""


def precision_of(wanted: Literal["auto", "bf16", "fp32"], device: str) -> Literal["bf16", "fp32"]:
    """The precision that a setting comes to on this machine.

    A CPU without arithmetic in bfloat16 computes it by way of float32, slower than float32 itself.

    Args:
        wanted: ``auto`` is bfloat16 where the device computes in it, float32 elsewhere.
        device: kind of device, ``cpu``, ``cuda`` or ``auto``: a GPU if there is one.
    """
    if wanted != "auto":
        return wanted
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in _BF16_OF_CPUS)
    return "bf16" if native else "fp32"


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for the time of the block, so that sums have one order on every machine."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)
