"""Several processes that train one network together, as ``torchrun`` starts them.

    torchrun --standalone --nproc-per-node=2 -m geokr_core.cli pretrain

Each process learns from its part of every batch; gradients are averaged (DistributedDataParallel). Process 0 alone
writes, speaks and keeps checkpoints. Without ``torchrun`` there is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network together.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes there are.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """What process 0 says, of any plain value."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        if self.size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size

    def share_buffers(self, *modules: nn.Module) -> None:
        """Give every process the buffers of process 0: BatchNorm statistics gathered from parts of a batch differ."""
        if self.size == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)


def processes_of_environment() -> ProcessGroup:
    """The processes that ``torchrun`` announces in the environment; one process without it."""
    number = {name: int(os.environ.get(name, default)) for name, default in _VARIABLES.items()}
    return ProcessGroup(number["RANK"], number["WORLD_SIZE"], number["LOCAL_RANK"])


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@contextmanager
def joined(device: str) -> Iterator[ProcessGroup]:
    """Join the other processes for the block: over NCCL on GPUs, over gloo on CPUs.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as configured.

    Yields:
        The processes that train together.
    """
    processes = processes_of_environment()
    if processes.size == 1:
        yield processes
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(processes.local_rank)
    already = distributed.is_initialized()
    if not already:
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield processes
    finally:
        if not already:
            distributed.destroy_process_group()
