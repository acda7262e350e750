"""Checkpoints of half-done training: one safetensors file, with everything that is no tensor as JSON in its header.

One file and not two, so that tensors and scalars can never come from different steps; no pickle. The newest few are
kept, so that a damaged one costs some steps and not the run.

Not here: which tensors and scalars a checkpoint holds (``resuming``).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from geokr_core.errors import TrainingError
from geokr_core.networks.weights import write_tensors

_FORMAT: Final = 2
"""2: with a digest of all that it holds, so that damage within a tensor is found."""

_READABLE: Final = ("1", "2")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors by name, on the CPU, and scalars as JSON holds them."""

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def save_checkpoint(path: Path, fingerprint: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; an earlier one of that name is replaced.

    Args:
        path: the file.
        fingerprint: digest of the configuration and data that the state belongs to.
        tensors: state by name, on any device and in any memory layout.
        scalars: anything JSON can hold; floats come back bit for bit.

    Raises:
        OSError: the file system refused; the earlier checkpoint is left as it was.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps(dict(scalars), sort_keys=True)
    header = {"format": str(_FORMAT), "fingerprint": fingerprint, "scalars": told, "digest": _digest(state, told)}
    write_tensors(path, state, header)


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Read a checkpoint of the very same configuration and data.

    Args:
        path: the file.
        fingerprint: digest of what is being trained now.

    Returns:
        The state.

    Raises:
        TrainingError: the file is unreadable or damaged, or belongs to another configuration, data set or format.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({error}); delete it to start afresh.") from error
    found = (header.get("format"), header.get("fingerprint"))
    if found[0] not in _READABLE or found[1] != fingerprint:
        raise TrainingError(
            f"{path}: a checkpoint of format {found[0]} and run {found[1]}, but the run now is {fingerprint} in format "
            f"{_FORMAT}: its parameters or its data differ. Restore them to resume it, or delete it."
        )
    if found[0] != "1" and header.get("digest") != _digest(tensors, header.get("scalars", "")):
        raise TrainingError(f"{path}: not what was written (another digest than its header names); delete it.")
    return Checkpoint(tensors, json.loads(header["scalars"]))


def _digest(tensors: Mapping[str, Tensor], scalars: str) -> str:
    digest = hashlib.sha256(scalars.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint after a step."""
    return folder / f"checkpoint_{step:08d}.safetensors"


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a run, the newest first."""
    return sorted(folder.glob("checkpoint_*.safetensors"), reverse=True)


def prune(folder: Path, keep: int, step: int) -> None:
    """Delete all checkpoints of a run up to a step but the newest ``keep``.

    Those after that step could not be used, or the run would not be at it again; they do not count.
    """
    newest = checkpoint_path(folder, step).name
    for path in [path for path in newest_first(folder) if path.name <= newest][keep:]:
        path.unlink(missing_ok=True)
