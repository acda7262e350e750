"""Checkpoints of a run: which tensors and scalars they hold, and how a run is resumed from them.

Not here: the file itself (``checkpoint``); what a state is made of (``state``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from geokr_core.errors import TrainingError
from geokr_core.pretraining.training.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    newest_first,
    prune,
    save_checkpoint,
)
from geokr_core.pretraining.training.state import Run, State
from geokr_core.step.reporter import Reporter


def best_path(run: Run) -> Path:
    """Where the weights with the least validation KL so far are kept."""
    return run.folder / "best.safetensors"


def save(run: Run, state: State) -> None:
    """Write a checkpoint of a run and delete those that are too many; process 0 alone does.

    Raises:
        OSError: the file system refused.
    """
    if not run.processes.is_first:
        return
    tensors: dict[str, Tensor] = {"sums": state.sums, "rng.cpu": torch.get_rng_state()}
    if run.runtime.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"student.{key}": value for key, value in state.student.state_dict().items()}
    tensors |= {f"teacher.{key}": value for key, value in state.teacher.network.state_dict().items()}
    tensors |= {f"objective.{key}": value for key, value in state.objective.state().items()}
    for name, parameter in state.student.named_parameters():
        moments: Mapping[str, Tensor] = state.optimiser.state[parameter]
        tensors |= {f"optimiser.{name}.{key}": value for key, value in moments.items()}
    scalars: dict[str, Any] = {key: getattr(state, key) for key in _SCALARS}
    save_checkpoint(checkpoint_path(run.folder, state.step), run.fingerprint, tensors, scalars)
    prune(run.folder, run.config.keep_checkpoints, state.step)


_SCALARS: Final = (
    "step",
    "num_summed",
    "teacher_updates",
    "teacher_momentum",
    "teacher_initial_fraction",
    "best_kl",
    "best_step",
    "history",
)
"""Fields of the state that are no tensors."""


def drop_progress(run: Run) -> None:
    """Delete what a finished run needs no more; a batch that was kept because its loss was not finite stays."""
    for path in [*newest_first(run.folder), best_path(run)]:
        path.unlink(missing_ok=True)


def resume(run: Run, state: State, reporter: Reporter) -> None:
    """Put the newest checkpoint of a run that can be used over its fresh state, if there is one.

    One that cannot be used is reported and left alone; without any, the run starts afresh.

    Raises:
        TrainingError: the processes of the run do not resume after the same step.
    """
    _put_newest(run, state, reporter)
    steps = float(run.processes.mean(torch.tensor(float(state.step), device=run.runtime.device)))
    if steps != state.step:
        raise TrainingError(
            f"{run.name}: process {run.processes.rank} would resume after step {state.step}, others after another one "
            f"(mean {steps:g}). All processes must read the same checkpoints: keep {run.folder} on a disk that they share."
        )


def _put_newest(run: Run, state: State, reporter: Reporter) -> None:
    for path in newest_first(run.folder):
        try:
            checkpoint = load_checkpoint(path, run.fingerprint)
        except TrainingError as error:
            reporter.warning(f"{run.name}: passing over a checkpoint: {error}")
            continue
        _restore(state, checkpoint.tensors)
        for key in _SCALARS:
            setattr(state, key, checkpoint.scalars[key])
        reporter.info(f"{run.name}: resuming after step {state.step}")
        return


def _restore(state: State, tensors: Mapping[str, Tensor]) -> None:
    state.student.load_state_dict(_below("student.", tensors))
    state.teacher.network.load_state_dict(_below("teacher.", tensors))
    state.objective.restore(_below("objective.", tensors))
    for name, parameter in state.student.named_parameters():
        restored = {}
        for key, value in _below(f"optimiser.{name}.", tensors).items():
            # The fused kernels walk raw memory: moments must lie as their parameter lies (channels_last), whereas
            # the file holds them in plain order.
            like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
            restored[key] = like.detach().copy_(value)
        if restored:  # none yet where the head alone has learned
            state.optimiser.state[parameter] = restored
    state.sums.copy_(tensors["sums"])
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
