"""One pretraining run: what it is given (`Run`), and all that changes while it trains (`State`).

Not here: how it is trained (``loop``), how it is resumed (``resuming``), which runs there are (``pretraining.runs``).
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.distributed import ProcessGroup
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.weights import load_initial_weights
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.geographic_types import GeographicTypes
from geokr_core.pretraining.network import Network, Outputs
from geokr_core.pretraining.objective import Objective
from geokr_core.pretraining.recipe import Recipe, objective_class
from geokr_core.pretraining.training import schedules
from geokr_core.pretraining.training.regularisation import (
    VARIANCE_CHIPS,
    channel_variance,
    frozen_copy,
    last_stage_cells,
    maps_of,
    pooled,
)
from geokr_core.pretraining.training.teacher import Teacher, released_update_steps, scaled_update_steps
from geokr_core.step.selection import even_selection


@dataclass(frozen=True)
class Run:
    """One run and all it learns from.

    Attributes:
        config: the section of the parameter file, as the variant has it.
        recipe: ``config`` and the method with nothing left open.
        runtime: device and precision.
        processes: the processes that train it together.
        data: the chips.
        variant: name of the variant.
        method: name of the method.
        seed: of initialisation, order and augmentation.
        labels: float32 (N, K) on the device: label of each chip of the catalogue, already
            permuted where the method says so.
        weights: float32 (N,) on the device: how much each chip's proportions count; None: all alike.
        audit_weights: float32 (N,) on the device: how much its cells and its type count; None: all alike.
        num_cells: float32 (N,) on the device: land-cover cells that voted for each label.
        label_rows: int64 (N,): the chip of the catalogue that each chip has its label from.
        label_cells: uint8 (N, n, n, K), land cover within chips; None: as the data set has it.
        types: int64 (N,) on the device: type of ground of each chip, as it is labelled; None: not asked for.
        type_centres: what they are made of; None likewise.
        train_rows: int64, rows to train on.
        validation_rows: int64, rows held out; may be none.
        fingerprint: digest of everything that the result depends on.
        folder: where checkpoints of this run go.
        is_first: the run whose curves have plain names.
    """

    config: PretrainingConfig
    recipe: Recipe
    runtime: Runtime
    processes: ProcessGroup
    data: LevirKR
    variant: str
    method: str
    seed: int
    labels: Tensor
    weights: Tensor | None
    audit_weights: Tensor | None
    num_cells: Tensor
    label_rows: np.ndarray
    label_cells: np.ndarray | None
    types: Tensor | None
    type_centres: GeographicTypes | None
    train_rows: np.ndarray
    validation_rows: np.ndarray
    fingerprint: str
    folder: Path
    is_first: bool

    @property
    def name(self) -> str:
        """Folder name of the run."""
        return f"{self.variant}-seed{self.seed}"

    def normalisation(self) -> Normalisation:
        """Channel statistics on the device."""
        mean, std = (
            torch.from_numpy(v).to(self.runtime.device) for v in (self.data.channel_mean, self.data.channel_std)
        )
        return Normalisation(mean, std)

    def cells(self, rows: np.ndarray) -> np.ndarray | None:
        """Land cover within chips as they are labelled, uint8 (B, n, n, K); None where the data set knows whole chips only."""
        labelled = self.label_rows[rows]
        return self.data.cells(labelled) if self.label_cells is None else self.label_cells[labelled]

    def places(self) -> Tensor:
        """int64: places within a batch of the chips that this process learns from."""
        return torch.arange(self.processes.rank, self.config.batch_size, self.processes.size)


class StudentPass:
    """The student's forward pass in the run's precision, and its last inputs and outputs, for the distance from its start.

    Attributes:
        images: the last inputs.
        outputs: of these.
    """

    def __init__(self, student: Network, run: Run) -> None:
        """Distribute and compile where that is asked for; the network itself stays as it is, for judging and saving."""
        self._runtime = run.runtime
        self._distributed: DistributedDataParallel | None = None
        if run.processes.size > 1:
            devices = [run.runtime.device] if run.runtime.device.type == "cuda" else None
            self._distributed = DistributedDataParallel(student, device_ids=devices)
        module = self._distributed or student
        self._module: Callable[[Tensor], Outputs] = torch.compile(module) if run.runtime.compiled else module
        self.images: Tensor | None = None
        self.outputs: Outputs | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs of normalised float32 images (B, C, H, W)."""
        with self._runtime.autocast():
            outputs = self._module(images)
        self.images, self.outputs = images, outputs
        return outputs

    def without_exchange(self) -> AbstractContextManager[None]:
        """Context in which gradients stay with this process, for all but the last part of a batch."""
        return nullcontext() if self._distributed is None else self._distributed.no_sync()


@dataclass
class State:
    """All that changes while a run trains; a checkpoint holds exactly this and the state of torch's generators.

    Attributes:
        student: the network that is trained.
        forward: its forward pass.
        teacher: its average.
        objective: what is minimised.
        optimiser: Adam or AdamW over the student.
        start: the backbone before the first step, where the recipe refers to it; never in a checkpoint.
        variances: of each channel of its features, where the recipe measures in these; never in a checkpoint.
        update_steps: steps at which the teacher moves; None: every step.
        terms: names of what is averaged between two points of the curves.
        sums: float32 (T,) on the device, sums of ``terms`` since the last point of the curves.
        num_summed: steps in ``sums``.
        step: steps done.
        teacher_updates: times the teacher moved.
        teacher_momentum: momentum of its last move.
        teacher_initial_fraction: share of its starting weights that is left in it, the product of all momenta.
        best_kl: least validation KL that was measured; infinite before the first.
        best_step: the step it was measured at.
        history: points of the curves.
    """

    student: Network
    forward: StudentPass
    teacher: Teacher[Network]
    objective: Objective
    optimiser: torch.optim.Optimizer
    start: nn.Module | None
    variances: list[Tensor]
    update_steps: frozenset[int] | None
    terms: tuple[str, ...]
    sums: Tensor
    num_summed: int = 0
    step: int = 0
    teacher_updates: int = 0
    teacher_momentum: float = 0.0
    teacher_initial_fraction: float = 1.0
    best_kl: float = float("inf")
    best_step: int = 0
    history: list[dict[str, float | None]] = field(default_factory=list)

    def transferred(self, recipe: Recipe) -> Network:
        """The network that becomes the backbone."""
        return self.teacher.network if recipe.transfer == "teacher" else self.student


def begin(run: Run) -> State:
    """The state before the first step.

    Raises:
        BackboneError: ``initial_weights`` do not fit.
    """
    config, recipe, device = run.config, run.recipe, run.runtime.device
    student = Network(config.architecture, len(run.data.bands), run.labels.shape[1], recipe, run.data.cells_per_side)
    if config.initial_weights is not None:
        load_initial_weights(student.backbone, config.initial_weights, config.architecture, run.data.bands)
    if run.processes.size > 1 and device.type == "cuda":
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
    student = student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    keeps_start = recipe.anchor_weight > 0 or recipe.interpolation < 1
    start = frozen_copy(student.backbone) if keeps_start else None
    in_own_units = recipe.anchor in ("stages", "cells") and recipe.anchor_weight > 0
    variances = _variances_of(run, start) if start is not None and in_own_units else []
    steps = None
    if recipe.teacher_schedule == "released":
        steps = frozenset(released_update_steps(config.batch_size, config.steps))
    elif recipe.teacher_schedule == "released_scaled":
        steps = frozenset(scaled_update_steps(config.steps))
    objective: Objective = objective_class(recipe.objective)(recipe, device, distributed=run.processes.size > 1)
    terms = objective.terms + (("anchor_loss",) if recipe.anchor_weight > 0 else ())
    teacher = Teacher(student, recipe.batchnorm, compiled=run.runtime.compiled)
    forward = StudentPass(student, run)
    sums = torch.zeros(len(terms), device=device)
    optimiser = make_optimiser(student, recipe)
    return State(student, forward, teacher, objective, optimiser, start, variances, steps, terms, sums)


def make_optimiser(student: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam or AdamW over a network, see `schedules.parameter_groups`."""
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    # Fused: one kernel over all parameters, on the CPU and on CUDA.
    return kind(schedules.parameter_groups(student, recipe), lr=recipe.learning_rate, fused=True)


def _variances_of(run: Run, start: nn.Module) -> list[Tensor]:
    """Variances of the start's features of training chips without augmentation, enlarged as it sees them."""
    normalisation = run.normalisation()
    rows = even_selection(run.train_rows, VARIANCE_CHIPS)
    parts = np.array_split(rows, math.ceil(len(rows) / run.config.batch_size))
    images = (torch.from_numpy(run.data.images(part)).to(run.runtime.device) for part in parts)
    zoom, features = run.recipe.anchor_zoom, pooled if run.recipe.anchor == "stages" else last_stage_cells
    return channel_variance(
        features(maps_of(start, normalisation(part), run.runtime.autocast(), zoom)) for part in images
    )
