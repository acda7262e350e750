"""One pretraining run: a student learns land-cover proportions beside its averaged teacher.

Here are the network, one training step, the loop with its curves and its checkpoints. Which runs there are and what
is kept of them is in ``pretrain``; the numbers of a recipe in ``presets``.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geokr_core.augment import Normalisation, colour_view, orient
from geokr_core.backbone import build, feature_dim, load_weights, pooled
from geokr_core.batches import Batch, prefetched, reader
from geokr_core.checkpoint import load_checkpoint, save_checkpoint
from geokr_core.config import PretrainingConfig
from geokr_core.errors import TrainingError
from geokr_core.files import whole_file
from geokr_core.levir_kr import LevirKR
from geokr_core.losses import consistency_loss, label_kl, supervised_loss
from geokr_core.presets import Recipe
from geokr_core.reporter import Reporter
from geokr_core.teacher import Teacher, released_update_steps, warmed_up_momentum

EPOCH_DECAY: Final = 0.9
"""Factor of the learning rate each epoch under ``epoch_decay``, as first published."""

MAX_JUDGED_CHIPS: Final = 1000
"""Chips on which a KL is measured outside training: its standard error is then some 2 % of its value."""

_JUDGED_BATCH: Final = 256
_VALIDATION_FRACTIONS: Final = (0.25, 0.5, 0.75, 1.0)
"""Shares of the run after which the validation KL is measured."""

SUMMED: Final = ("loss", "supervised_loss", "consistency_loss", "train_kl")
"""What is averaged over the steps between two points of the curves, in this order."""


class Network(nn.Module):
    """A backbone and the linear layer that predicts proportions from its pooled last stage."""

    def __init__(self, architecture: str, in_channels: int, num_classes: int) -> None:
        """Build both, freshly initialised from torch's global generator."""
        super().__init__()
        self.backbone = build(architecture, in_channels)
        self.head = nn.Linear(feature_dim(architecture), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised float32 images (B, C, H, W)."""
        logits: Tensor = self.head(pooled(self.backbone, images))
        return logits


@dataclass(frozen=True)
class Runtime:
    """Where and how precisely tensors are computed."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        """Context in which networks run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


BF16_MIN_CHIP_SIZE_PX: Final = 17
"""Below it, a ResNet's last strided convolutions see maps of one pixel, for which torch 2.15 on the CPU returns
uninitialised memory as bf16 weight gradient (found by comparing with float32: 3x3 stride 2 on 1x1, and only that)."""


def runtime_of(config: PretrainingConfig, chip_size_px: int) -> Runtime:
    """The runtime that a configuration asks for.

    Args:
        config: asks for a device and a precision.
        chip_size_px: side of the chips; small ones are computed in float32 on the CPU, see `BF16_MIN_CHIP_SIZE_PX`.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "pretraining.device is `cuda`, but torch sees no GPU: check the driver, or set `auto` or `cpu`."
        )
    name = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    small = name == "cpu" and chip_size_px < BF16_MIN_CHIP_SIZE_PX and config.architecture.startswith("resnet")
    return Runtime(torch.device(name), config.precision == "bf16" and not small)


@dataclass(frozen=True)
class Run:
    """One run and all it learns from.

    Attributes:
        config: the section of the parameter file.
        recipe: ``config`` with nothing left open.
        runtime: device and precision.
        data: the chips.
        variant: ``geokr`` or ``shuffled``.
        seed: of initialisation, order and augmentation.
        labels: float32 (N, K) on the device: what each chip of the catalogue is held to, already
            shuffled where the variant says so.
        weights: float32 (N,) on the device: how much each label counts; None: all alike.
        train_rows: int64, rows to train on.
        validation_rows: int64, rows held out; may be none.
        fingerprint: digest of everything that the result depends on.
        folder: where checkpoints of this run go.
        is_first: the run whose curves bear plain names.
    """

    config: PretrainingConfig
    recipe: Recipe
    runtime: Runtime
    data: LevirKR
    variant: str
    seed: int
    labels: Tensor
    weights: Tensor | None
    train_rows: np.ndarray
    validation_rows: np.ndarray
    fingerprint: str
    folder: Path
    is_first: bool

    @property
    def name(self) -> str:
        """Folder name of the run."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file; only the newest is kept."""
        return self.folder / "checkpoint.safetensors"

    def normalisation(self) -> Normalisation:
        """Channel statistics on the device."""
        mean, std = (
            torch.from_numpy(v).to(self.runtime.device) for v in (self.data.channel_mean, self.data.channel_std)
        )
        return Normalisation(mean, std)


@dataclass
class State:
    """All that changes while a run trains; a checkpoint holds exactly this and the state of torch's generators.

    Attributes:
        student: the network that is trained.
        teacher: its average.
        optimiser: Adam or AdamW over the student.
        update_steps: steps at which the teacher moves; None: every step.
        sums: float32 (4,) on the device, sums of `SUMMED` since the last point of the curves.
        num_summed: steps in ``sums``.
        step: steps done.
        teacher_updates: times the teacher moved.
        teacher_momentum: momentum of its last move.
        teacher_initial_fraction: share of its starting weights that is left in it, the product of all momenta.
        history: points of the curves.
    """

    student: Network
    teacher: Teacher[Network]
    optimiser: torch.optim.Optimizer
    update_steps: frozenset[int] | None
    sums: Tensor
    num_summed: int = 0
    step: int = 0
    teacher_updates: int = 0
    teacher_momentum: float = 0.0
    teacher_initial_fraction: float = 1.0
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
    student = Network(config.architecture, len(run.data.bands), run.labels.shape[1])
    if config.initial_weights is not None:
        load_weights(student.backbone, config.initial_weights, drop_classifier=True)
    student = student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = None
    if recipe.teacher_schedule == "released":
        steps = frozenset(released_update_steps(config.batch_size, config.steps))
    teacher = Teacher(student, recipe.batchnorm)
    return State(student, teacher, make_optimiser(student, recipe), steps, torch.zeros(len(SUMMED), device=device))


def make_optimiser(student: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam or AdamW over a network; biases and normalisation weights (one-dimensional) are not decayed."""
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    # Fused: one kernel over all parameters, on the CPU and on CUDA.
    return kind(groups, lr=recipe.learning_rate, fused=True)


def learning_rate(step: int, run: Run) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then cosine to zero or decay by epoch."""
    recipe, num_steps = run.recipe, run.config.steps
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    if recipe.learning_rate_schedule == "epoch_decay":
        epoch = (step - 1) * run.config.batch_size // len(run.train_rows)
        return float(recipe.learning_rate * EPOCH_DECAY**epoch)
    done = (step - 1 - recipe.warmup_steps) / max(1, num_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def consistency_weight(step: int, recipe: Recipe) -> float:
    """Weight of the consistency loss at a step: ``exp(-5 (1 - t)²)`` of its full value while it ramps up.

    The shape is that of Tarvainen and Valpola 2017: next to nothing while the teacher knows next to nothing.
    """
    if recipe.ramp_steps == 0 or step >= recipe.ramp_steps:
        return recipe.consistency_weight
    return recipe.consistency_weight * math.exp(-5.0 * (1.0 - step / recipe.ramp_steps) ** 2)


def generator_of(seed: int, step: int) -> torch.Generator:
    """The generator of one step's augmentation: a pure function of seed and step, whatever came before."""
    digest = hashlib.sha256(f"augment/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class Views:
    """What student and teacher see of one batch: normalised float32 (B, C, H, W), channels_last; often the same."""

    student: Tensor
    teacher: Tensor


def views_of(run: Run, images: Tensor, step: int, normalisation: Normalisation) -> Views:
    """Augment one batch: one orientation of each chip, and one or two colour variants of it.

    Args:
        run: its recipe says how.
        images: uint8 (B, H, W, C) on the device.
        step: counted from 1; decides the draws.
        normalisation: channel statistics on the device.
    """
    recipe, draws = run.recipe, generator_of(run.seed, step)
    planes = orient(images, recipe.augmentation, draws)
    student = colour_view(planes, run.data.bands, normalisation, recipe.augmentation, draws)
    if not recipe.two_views or not teacher_predicts(recipe):
        return Views(student, student)
    return Views(student, colour_view(planes, run.data.bands, normalisation, recipe.augmentation, draws))


def teacher_predicts(recipe: Recipe) -> bool:
    """Whether the teacher must see the batch: for the consistency loss, or to gather its own BatchNorm statistics."""
    return (recipe.consistency != "none" and recipe.consistency_weight > 0) or recipe.batchnorm == "own"


def losses_of(run: Run, state: State, views: Views, labels: Tensor, weights: Tensor | None, step: int) -> Tensor:
    """Forward pass of both networks.

    Args:
        run: its recipe says which losses.
        state: the networks.
        views: what they see.
        labels: float32 (B, K).
        weights: float32 (B,) or None.
        step: counted from 1; decides how much the consistency loss weighs.

    Returns:
        float32 (4,) in the order of `SUMMED`; the first entry is the one to be minimised.
    """
    recipe = run.recipe
    with run.runtime.autocast():
        logits = state.student(views.student)
        targets = state.teacher(views.teacher) if teacher_predicts(recipe) else logits.detach()
    supervised = supervised_loss(logits, labels, recipe.reduction, weights)
    consistency = consistency_loss(logits, targets, recipe.consistency, recipe.reduction)
    loss = supervised + consistency_weight(step, recipe) * consistency
    return torch.stack([loss, supervised, consistency, label_kl(logits.detach(), labels).mean()])


def update(run: Run, state: State, losses: Tensor) -> None:
    """Apply the gradients of one step to the student, and move the teacher if it is its turn."""
    step = state.step + 1
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(step, run)
    state.optimiser.step()
    if state.update_steps is None or step in state.update_steps:
        momentum = run.recipe.teacher_momentum
        if run.recipe.teacher_schedule == "every_step":
            momentum = warmed_up_momentum(momentum, state.teacher_updates)
        state.teacher.update(state.student, momentum)
        state.teacher_updates += 1
        state.teacher_momentum = momentum
        state.teacher_initial_fraction *= momentum
    state.sums += losses.detach()
    state.num_summed += 1
    state.step = step


class LossWatch:
    """Stops a run whose loss is not finite, without making a GPU wait for it.

    On the CPU the loss is looked at before it does harm. On a GPU it is copied beside the work and looked at one step
    later, when it has long arrived; `settle` looks at once.
    """

    def __init__(self, run: Run) -> None:
        """Watch one run."""
        self._run = run
        self._pending: tuple[Batch, Tensor] | None = None
        self._arrived: torch.cuda.Event | None = None

    def watch(self, batch: Batch, loss: Tensor) -> None:
        """Look at the loss of the step before, and at this one as soon as it can be had for nothing.

        Raises:
            TrainingError: a loss is not finite; the batch is kept beside the checkpoints.
        """
        self.settle()
        self._pending = (batch, loss.detach().to("cpu", non_blocking=True))
        if loss.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self.settle()

    def settle(self) -> None:
        """Look at the last loss now.

        Raises:
            TrainingError: it is not finite; the batch is kept beside the checkpoints.
        """
        if self._pending is None:
            return
        batch, loss = self._pending
        if self._arrived is not None:
            self._arrived.synchronize()
        self._pending, self._arrived = None, None
        if not math.isfinite(value := float(loss)):
            path = self._keep(batch)
            raise TrainingError(
                f"{self._run.name}: the loss is {value} at step {batch.step}; a finite one was expected. Its "
                f"batch is kept in {path} (images, proportions, rows). Lower pretraining.learning_rate, lengthen "
                "warmup_steps, or try `precision: fp32`; then look for chips or labels that are not what they should be."
            )

    def _keep(self, batch: Batch) -> Path:
        path = self._run.folder / f"not_finite_step_{batch.step:06d}.safetensors"
        rows = torch.from_numpy(batch.rows)
        labels = self._run.labels[rows.to(self._run.labels.device)].cpu()
        with whole_file(path) as partial:
            save_file({"images": batch.images.contiguous(), "proportions": labels, "rows": rows}, partial)
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

    def count(self, batch: Batch) -> None:
        """Count one step."""
        self._images += len(batch.rows)
        self._waited += batch.wait_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do something that is no training without counting its time."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """``images_per_s`` and ``data_wait_fraction`` of the interval; adds it to the totals."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self.num_images += self._images
        self.trained_s += seconds
        self.waited_s += self._waited
        return {"images_per_s": self._images / seconds, "data_wait_fraction": self._waited / seconds}


def train(run: Run, reporter: Reporter) -> tuple[State, Clock]:
    """Train one run to its end, from its checkpoint if it has one.

    Args:
        run: what to train.
        reporter: hears the progress and the curves.

    Returns:
        The final state, and how fast it went since it was last started.

    Raises:
        BackboneError: ``initial_weights`` do not fit.
        TrainingError: a loss or a weight is not finite.
    """
    normalisation, config = run.normalisation(), run.config
    with _own_torch_settings(run):
        state = begin(run)
        resume(run, state, reporter)
        first, points = state.step + 1, log_points(config.steps, config.log_every)
        validation_points = _validation_points(points, config.steps)
        read = reader(run.data, run.train_rows, config.batch_size, run.seed, pinned=run.runtime.device.type == "cuda")
        watch, clock = LossWatch(run), Clock()
        with (
            reporter.progress(f"pretraining {run.name}", config.steps) as advance,
            prefetched(read, first, config.steps) as batches,
        ):
            advance(state.step)
            for batch in batches:
                losses = _gradients(run, state, batch, normalisation)
                watch.watch(batch, losses[0])
                norm = _gradient_norm(state.student) if batch.step in points else None
                update(run, state, losses)
                clock.count(batch)
                advance(1)
                if norm is not None:
                    watch.settle()
                    _log(run, state, norm, clock, reporter, validate=batch.step in validation_points)
                if batch.step % config.checkpoint_every == 0 and batch.step < config.steps:
                    watch.settle()
                    with clock.stopped():
                        save(run, state)
        watch.settle()
    return state, clock


def _gradients(run: Run, state: State, batch: Batch, normalisation: Normalisation) -> Tensor:
    device = run.runtime.device
    rows = torch.from_numpy(batch.rows).to(device, non_blocking=True)
    views = views_of(run, batch.images.to(device, non_blocking=True), batch.step, normalisation)
    weights = None if run.weights is None else run.weights[rows]
    losses = losses_of(run, state, views, run.labels[rows], weights, batch.step)
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(losses[0])
    return losses


def _gradient_norm(student: nn.Module) -> float:
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


@contextmanager
def _own_torch_settings(run: Run) -> Iterator[None]:
    """Seed torch for one run, and give the caller's generators and thread count back afterwards."""
    threads = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if run.runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(run.seed)
        torch.set_num_threads(run.config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def log_points(num_steps: int, log_every: int) -> frozenset[int]:
    """Steps after which a point of the curves is taken: each ``log_every``-th, and the last."""
    return frozenset(range(log_every, num_steps + 1, log_every)) | {num_steps}


def _validation_points(points: frozenset[int], num_steps: int) -> frozenset[int]:
    return frozenset(min(p for p in points if p >= share * num_steps) for share in _VALIDATION_FRACTIONS)


def _log(run: Run, state: State, norm: float, clock: Clock, reporter: Reporter, *, validate: bool) -> None:
    rates = clock.read()
    means = (state.sums / state.num_summed).tolist()
    point: dict[str, float | None] = {"step": state.step, **dict(zip(SUMMED, means, strict=True))}
    judged = validate and len(run.validation_rows) > 0
    network = state.transferred(run.recipe)
    point["validation_kl"] = mean_kl(run, network, run.validation_rows) if judged else None
    point["learning_rate"] = learning_rate(state.step, run)
    point["teacher_momentum"] = state.teacher_momentum
    point["gradient_norm"] = norm
    state.history.append(point)
    state.sums.zero_()
    state.num_summed = 0
    shown = {key: value for key, value in point.items() if value is not None and key != "step"} | rates
    # Several runs may speak to one listener: only the first one's curves bear plain names.
    reporter.metrics({key if run.is_first else f"{run.name}/{key}": v for key, v in shown.items()}, state.step)
    clock.reset()


@torch.no_grad()
def mean_kl(run: Run, network: nn.Module, rows: np.ndarray) -> float:
    """Mean KL(labels ‖ prediction) over chips as they are, in eval mode; the mode is given back.

    Args:
        run: its data, labels, runtime and channel statistics.
        network: gives logits.
        rows: int64, at least one; of more than `MAX_JUDGED_CHIPS` an even selection is judged.

    Returns:
        Nat a chip.
    """
    if len(rows) > MAX_JUDGED_CHIPS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_JUDGED_CHIPS).astype(np.int64)]
    normalisation, device, total = run.normalisation(), run.runtime.device, 0.0
    was_training = network.training
    network.eval()
    try:
        for part in np.array_split(rows, math.ceil(len(rows) / _JUDGED_BATCH)):
            images = torch.from_numpy(run.data.images(part)).to(device)
            with run.runtime.autocast():
                logits = network(normalisation(images))
            total += float(label_kl(logits, run.labels[torch.from_numpy(part).to(device)]).sum())
    finally:
        network.train(was_training)
    return total / len(rows)


def save(run: Run, state: State) -> None:
    """Write the checkpoint of a run, replacing the one before.

    Raises:
        OSError: the file system refused.
    """
    tensors: dict[str, Tensor] = {"sums": state.sums, "rng.cpu": torch.get_rng_state()}
    if run.runtime.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"student.{key}": value for key, value in state.student.state_dict().items()}
    tensors |= {f"teacher.{key}": value for key, value in state.teacher.network.state_dict().items()}
    for name, parameter in state.student.named_parameters():
        moments: Mapping[str, Tensor] = state.optimiser.state[parameter]
        tensors |= {f"optimiser.{name}.{key}": value for key, value in moments.items()}
    scalars: dict[str, Any] = {key: getattr(state, key) for key in _SCALARS}
    save_checkpoint(run.checkpoint, run.fingerprint, tensors, scalars)


_SCALARS: Final = ("step", "num_summed", "teacher_updates", "teacher_momentum", "teacher_initial_fraction", "history")


def resume(run: Run, state: State, reporter: Reporter) -> None:
    """Put the checkpoint of a run over its fresh state, if there is one that belongs to it.

    A checkpoint that cannot be used is reported and left alone; the run then starts afresh and replaces it.
    """
    if not run.checkpoint.exists():
        return
    try:
        checkpoint = load_checkpoint(run.checkpoint, run.fingerprint)
    except TrainingError as error:
        reporter.warning(f"{run.name}: starting afresh: {error}")
        return
    tensors = checkpoint.tensors
    state.student.load_state_dict(_below("student.", tensors))
    state.teacher.network.load_state_dict(_below("teacher.", tensors))
    for name, parameter in state.student.named_parameters():
        restored = {}
        for key, value in _below(f"optimiser.{name}.", tensors).items():
            # The fused kernels walk raw memory: moments must lie as their parameter lies (channels_last), whereas
            # the file holds them in plain order.
            like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
            restored[key] = like.detach().copy_(value)
        state.optimiser.state[parameter] = restored
    state.sums.copy_(tensors["sums"])
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    for key in _SCALARS:
        setattr(state, key, checkpoint.scalars[key])
    reporter.info(f"{run.name}: going on after step {state.step}")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
