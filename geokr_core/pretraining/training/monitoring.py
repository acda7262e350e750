"""Monitoring of a training while it runs: losses that must stay finite (`LossGuard`), and its speed (`Clock`)."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from geokr_core.errors import TrainingError
from geokr_core.networks.weights import write_tensors
from geokr_core.pretraining.training.batches import Batch


class LossGuard:
    """Stops a run whose loss or gradient is not finite, without making a GPU wait for it.

    On the CPU what is given is looked at before it does harm. On a GPU it is copied beside the work and looked at one
    step later, when it has long arrived; `settle` looks at once, as it must before anything is saved. A gradient that is
    not looked at shows in the loss of the next step.

    Attributes:
        stop_was_asked: whether a process of the run was asked to stop, as far as the figures have arrived: all processes
            hear of it at the same step.
    """

    def __init__(self, name: str, folder: Path, labels: Tensor, suffix: str = "") -> None:
        """Guard one run.

        Args:
            name: of the run.
            folder: where an offending batch is kept.
            labels: float32 (N, K), label of each chip of the catalogue.
            suffix: of the kept file's name, where several processes each keep their part.
        """
        self._name, self._folder, self._labels, self._suffix = name, folder, labels, suffix
        self._pending: tuple[Batch, Tensor] | None = None
        self._arrived: torch.cuda.Event | None = None
        self.stop_was_asked = False

    def check(
        self, batch: Batch, loss: Tensor, gradient_norm: Tensor | None = None, stop_asked: Tensor | None = None
    ) -> None:
        """Look at the figures of the step before, and at these as soon as they can be had for nothing.

        Args:
            batch: the chips of the step.
            loss: its loss, a scalar.
            gradient_norm: of its gradients, where it was taken: it can be infinite though the loss is not.
            stop_asked: above 0 where a process of the run was asked to stop; None: only this one trains.

        Raises:
            TrainingError: a figure is not finite; the batch is kept beside the checkpoints.
        """
        self.settle()
        norm = (loss if gradient_norm is None else gradient_norm).detach().to(loss)
        asked = loss.new_zeros(()) if stop_asked is None else stop_asked.to(loss)
        figures = torch.stack([loss.detach(), norm, asked])
        self._pending = (batch, figures.to("cpu", non_blocking=True))
        if loss.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self.settle()

    def settle(self) -> None:
        """Look at the last figures now.

        Raises:
            TrainingError: one is not finite; the batch is kept beside the checkpoints.
        """
        if self._pending is None:
            return
        batch, figures = self._pending
        if self._arrived is not None:
            self._arrived.synchronize()
        self._pending, self._arrived = None, None
        *finite, asked = figures.tolist()
        self.stop_was_asked |= asked > 0
        for what, value in zip(("loss", "norm of the gradients"), finite, strict=True):
            if math.isfinite(value):
                continue
            path = self._keep(batch)
            raise TrainingError(
                f"{self._name}: the {what} is {value} at step {batch.step}; a finite one was expected. Its "
                f"batch is kept in {path} (images, proportions, rows). Lower pretraining.learning_rate, lengthen "
                "warmup_steps, or try `precision: fp32`; then look for chips or labels that are not what they should be."
            )

    def _keep(self, batch: Batch) -> Path:
        path = self._folder / f"not_finite_step_{batch.step:06d}{self._suffix}.safetensors"
        rows = torch.from_numpy(batch.rows)
        content: Mapping[str, Tensor] = {
            "images": batch.images.contiguous(),
            "proportions": self._labels[rows.to(self._labels.device)].cpu(),
            "rows": rows,
        }
        write_tensors(path, content)
        return path


class Clock:
    """How fast training goes, and how much of the time it stands still for data."""

    def __init__(self) -> None:
        """Start an interval."""
        self.reset()
        self.num_images, self.trained_s, self.waited_s = 0, 0.0, 0.0

    def reset(self) -> None:
        """Start the next interval; what happened since the last one ended is not counted."""
        self._started = time.perf_counter()
        self._images, self._waited = 0, 0.0

    def count(self, num_images: int, waited_s: float) -> None:
        """Count one step."""
        self._images += num_images
        self._waited += waited_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do something that is no training without counting its time."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """``images_per_s`` and ``data_wait_fraction`` of the interval, and the GPU memory; adds to the totals."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self.num_images += self._images
        self.trained_s += seconds
        self.waited_s += self._waited
        rates = {"images_per_s": self._images / seconds, "data_wait_fraction": self._waited / seconds}
        if torch.cuda.is_available():
            rates["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return rates
