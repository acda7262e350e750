"""Several processes that train one network together, as ``torchrun`` starts them (the command: docs/pretraining.md).

Each process learns from its part of every batch; gradients are averaged (DistributedDataParallel). Process 0 alone
writes, speaks and keeps checkpoints. Without ``torchrun`` there is one process, and nothing here does anything.
"""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is in its documentation

LOOPBACK: Final = "127.0.0.1"
_PATIENCE: Final = timedelta(minutes=30)
"""As torch has for other ways to meet: the first process may have much to look at before it comes."""


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
        backend, store = "nccl" if on_gpu else "gloo", _meeting_on_this_machine(processes)
        if store is None:
            distributed.init_process_group(backend)
        else:
            distributed.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.size)
    try:
        yield processes
    finally:
        if not already:
            distributed.destroy_process_group()


def _meeting_on_this_machine(processes: ProcessGroup) -> TCPStore | None:
    """Where processes meet whose address (``$MASTER_ADDR``) is of the loopback: at that address alone, which torch would not keep to.

    Torch listens at every interface, whatever the address. None for any other address, and where torchrun listens itself.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    if host != LOOPBACK or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    if not processes.is_first:
        return TCPStore(host, port, processes.size, is_master=False, timeout=_PATIENCE)
    listening = socket.create_server((host, port))
    return TCPStore(
        host,
        port,
        processes.size,
        is_master=True,
        timeout=_PATIENCE,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def of_this_machine_alone(folder: Path) -> tuple[dict[str, str], list[str]]:
    """How torchrun starts processes that no other machine can reach.

    Args:
        folder: which no one else can enter; torchrun's own processes meet in a file there.

    Returns:
        Environment, and options of torchrun, instead of ``--standalone``.
    """
    interface = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))  # lo of Linux, lo0 elsewhere
    environment = {
        # Else they meet, after a restart, where they met before (torch 2.15), and the first to arrive waits for one that is dead.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
    }
    meeting = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / 'meeting'}"]
    return environment, ["--nnodes=1", f"--rdzv-id={uuid.uuid4()}", f"--local-addr={LOOPBACK}", *meeting]
