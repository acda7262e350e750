"""One pretraining run: the loop that every method shares, with its curves and its checkpoints.

Not here: what a run is made of (``state``), its checkpoints (``resuming``), what the networks are shown (``inputs``), what a
method minimises (``pretraining.objectives``), which runs there are (``pretraining.runs``).
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from geokr_core.networks.batch_order import ShardWindows, WeightedChips, batch_rows
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.weights import load_weights, save_weights
from geokr_core.pretraining.network import Network, Outputs
from geokr_core.pretraining.objective import Inputs
from geokr_core.pretraining.training import schedules
from geokr_core.pretraining.training.batches import Batch, prefetched, reader
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.interruption import StopRequest, stop_requests
from geokr_core.pretraining.training.monitoring import Clock, LossGuard
from geokr_core.pretraining.training.regularisation import (
    distance,
    interpolate,
    last_stage_angle,
    last_stage_cells,
    maps_of,
    pooled,
    weight_distance,
)
from geokr_core.pretraining.training.resuming import best_path, resume, save
from geokr_core.pretraining.training.sampling import shares_of
from geokr_core.pretraining.training.state import Run, State, begin
from geokr_core.pretraining.training.teacher import warmed_up_momentum
from geokr_core.pretraining.training.threads import warn_of_slow_threads
from geokr_core.pretraining.training.validation import Judged, example_picture, judge
from geokr_core.step.reporter import Advance, Reporter

CHECKPOINT_SECONDS: Final = 300.0
"""A run of one process is saved after so much time, too, however few steps were made: what a kill can cost at most."""


def learning_rate(step: int, run: Run) -> float:
    """Learning rate of the head at a step, counted from 1."""
    return schedules.learning_rate(step, run.recipe, run.config.steps, run.config.batch_size, len(run.train_rows))


# --- one step ---------------------------------------------------------------------------------------------------------


def losses_of(run: Run, state: State, inputs: Inputs, step: int) -> Tensor:
    """Forward passes of both networks and all losses of some chips.

    Args:
        run: its recipe says which losses.
        state: the networks.
        inputs: the chips.
        step: counted from 1.

    Returns:
        float32 (T,) in the order of ``state.terms``; the first entry is the one to be minimised.
    """

    def teacher(images: Tensor) -> Outputs:
        with run.runtime.autocast():
            outputs: Outputs = state.teacher(images)
            return outputs

    losses = state.objective.losses(state.student, state.forward, teacher, inputs, step)
    if run.recipe.anchor_weight == 0:
        return losses
    anchor = _start_loss(run, state)
    losses = torch.cat([losses, anchor[None]])
    pull = torch.zeros_like(losses)
    pull[0] = run.recipe.anchor_weight
    return losses + pull * anchor


def _start_loss(run: Run, state: State) -> Tensor:
    """How far the backbone is from its start, in the measure that the recipe names; see ``regularisation``."""
    start, outputs, images = state.start, state.forward.outputs, state.forward.images
    if start is None or outputs is None or images is None:
        raise RuntimeError(
            f"{run.name}: the recipe keeps close to the start, but no start is kept or the student was shown nothing."
        )
    if run.recipe.anchor == "weights":
        return weight_distance(state.student.backbone, start)
    reference = maps_of(start, images, run.runtime.autocast(), run.recipe.anchor_zoom)
    if run.recipe.anchor == "features":
        return last_stage_angle(pooled(outputs.stages), pooled(reference))
    if run.recipe.anchor == "stages":
        return distance(pooled(outputs.stages), pooled(reference), state.variances)
    size = outputs.stages[-1].shape[2:]
    return distance(last_stage_cells(outputs.stages), last_stage_cells(reference, size), state.variances)


def gradients(run: Run, state: State, batch: Batch, normalisation: Normalisation) -> Tensor:
    """Forward and backward over one batch, part by part; the student's gradients are those of the mean loss.

    Returns:
        float32 (T,): losses of the batch, over all processes.
    """
    state.optimiser.zero_grad(set_to_none=True)
    parts = parts_of(len(batch.rows), run.config.accumulation_parts)
    total = torch.zeros_like(state.sums)
    for number, part in enumerate(parts, start=1):
        share = (part.stop - part.start) / len(batch.rows)
        with nullcontext() if number == len(parts) else state.forward.without_exchange():
            losses = losses_of(run, state, inputs_of(run, batch, part, normalisation), batch.step) * share
            torch.autograd.backward(losses[0])
        total += losses.detach()
    if batch.step <= run.recipe.head_warmup_steps:
        for parameter in state.student.backbone.parameters():
            parameter.grad = None
    return run.processes.mean(total)


def parts_of(num_chips: int, num_parts: int) -> list[slice]:
    """Slices of nearly the same length that follow each other."""
    bounds = [round(num_chips * k / num_parts) for k in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def gradient_norm(state: State, clip_norm: float) -> Tensor:
    """Norm of the gradients before they are clipped, where they are to be clipped."""
    parameters = [p for p in state.student.parameters() if p.grad is not None]
    if clip_norm > 0:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def update(run: Run, state: State, losses: Tensor) -> None:
    """Apply the gradients of one step to the student, and move the teacher if it is its turn."""
    step = state.step + 1
    rate = learning_rate(step, run)
    for group in state.optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]
    state.optimiser.step()
    if run.runtime.device.type == "cpu":  # on GPUs, BatchNorm itself is synchronised
        run.processes.share_buffers(state.student, state.teacher.network)
    if state.update_steps is None or step in state.update_steps:
        momentum = run.recipe.teacher_momentum
        if run.recipe.teacher_schedule == "every_step":
            momentum = warmed_up_momentum(momentum, state.teacher_updates)
        state.teacher.update(state.student, momentum)
        state.teacher_updates += 1
        state.teacher_momentum = momentum
        state.teacher_initial_fraction *= momentum
    state.sums += losses
    state.num_summed += 1
    state.step = step


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(run: Run, reporter: Reporter) -> tuple[State, Clock]:
    """Train one run to its end, from its newest usable checkpoint if it has one.

    Args:
        run: what to train.
        reporter: hears the progress and the curves.

    Returns:
        The final state, and how fast it went since it was last started.

    Raises:
        BackboneError: ``initial_weights`` do not fit.
        TrainingError: a loss or a weight is not finite.
        KeyboardInterrupt: Ctrl-C; the run is saved after its present step first.
        SystemExit: SIGTERM, likewise.
        OSError: a checkpoint could not be written; earlier ones are as they were.
    """
    config, distributed = run.config, run.processes.size > 1
    with _own_torch_settings(run), stop_requests(once=not distributed) as stop:
        state = begin(run)
        resume(run, state, reporter)
        warn_of_slow_threads(run, state, reporter)
        guard = LossGuard(run.name, run.folder, run.labels, f"_rank{run.processes.rank}" if distributed else "")
        clock = Clock()
        with (
            reporter.progress(f"pretraining {run.name}", config.steps) as advance,
            prefetched(reading(run), state.step + 1, config.steps) as batches,
        ):
            advance(state.step)
            _loop(run, state, batches, guard, clock, reporter, advance, stop)
        guard.settle()
        if float(run.processes.mean(state.sums.new_tensor(float(stop.signal is not None)))) > 0:
            _stop(run, state, stop, reporter)
    return state, clock


def _stop(run: Run, state: State, stop: StopRequest, reporter: Reporter) -> None:
    """Save a run that a process of it was asked to stop, say how it is resumed, and stop."""
    reporter.flush()
    save(run, state)
    run.processes.agree(None)  # torchrun ends all processes as soon as one has ended: the first one must have saved
    what = stop.signal.name if stop.signal else "a signal to another process"
    reporter.warning(
        f"{run.name}: stopped by {what} after step {state.step} of {run.config.steps}, which is kept in {run.folder}. "
        "Run the same command again to resume from there."
    )
    stop.obey()


def _loop(
    run: Run,
    state: State,
    batches: Iterator[Batch],
    guard: LossGuard,
    clock: Clock,
    reporter: Reporter,
    advance: Advance,
    stop: StopRequest,
) -> None:
    """Train step by step, to the end or until a stop is asked for."""
    config, normalisation = run.config, run.normalisation()
    alone, saved_at = run.processes.size == 1, time.monotonic()
    points = schedules.log_points(config.steps, config.log_every)
    validation_points = schedules.validation_points(points, config.steps, config.validate_every)
    for batch in batches:
        found: Judged | None = None
        losses = gradients(run, state, batch, normalisation)
        # All processes of a run must stop at one step: each hears the others' requests with the figures of a step.
        asked = None if alone else run.processes.mean(losses.new_tensor(float(stop.signal is not None)))
        stops = guard.stop_was_asked if not alone else stop.signal is not None
        late = alone and time.monotonic() - saved_at > CHECKPOINT_SECONDS
        keeps = (batch.step % config.checkpoint_every == 0 or late) and batch.step < config.steps
        norm = None
        if run.recipe.gradient_clip_norm or batch.step in points or keeps or stops:
            norm = gradient_norm(state, run.recipe.gradient_clip_norm)
        guard.check(batch, losses[0], norm, asked)
        update(run, state, losses)
        clock.count(config.batch_size, batch.wait_s)
        advance(1)
        if batch.step in points and norm is not None:
            guard.settle()
            found = _log(run, state, float(norm), clock, reporter, validate=batch.step in validation_points)
        if config.examples_every and batch.step % config.examples_every == 0:
            with clock.stopped():
                _show_examples(run, state, found, reporter)
        if keeps:
            guard.settle()
            with clock.stopped():
                reporter.flush()  # first: a run that is resumed after this step does not report it again
                save(run, state)
            saved_at = time.monotonic()
        if stops:
            return


def reading(run: Run) -> Callable[[int], Batch]:
    """The function that reads this process's chips of a step."""
    places, drawing = run.places().numpy(), _drawing(run)

    def rows_of(step: int) -> np.ndarray:
        mine: np.ndarray = batch_rows(run.train_rows, run.config.batch_size, run.seed, step, drawing)[places]
        return mine

    wanted = run.cells if run.recipe.needs_cells else None
    return reader(run.data, rows_of, pinned=run.runtime.device.type == "cuda", cells_of=wanted)


def _drawing(run: Run) -> ShardWindows | WeightedChips | None:
    window_chips = run.config.shuffle_window_chips
    if window_chips is not None:
        return ShardWindows(run.data.shard_of_row[run.train_rows], window_chips)
    chips = run.data.catalogue.iloc[run.train_rows]
    shares = shares_of(chips, run.data.proportions[run.train_rows], run.recipe)
    return None if shares is None else WeightedChips(shares)


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


# --- curves -----------------------------------------------------------------------------------------------------------


def judged(run: Run, network: Network, rows: np.ndarray) -> Judged:
    """Predict chips of a run's data as they are, see `validation.judge`."""
    return judge(run.data, network, run.runtime, run.normalisation(), run.labels, rows)


def _log(run: Run, state: State, norm: float, clock: Clock, reporter: Reporter, *, validate: bool) -> Judged | None:
    """Add a point to the curves; what was judged for it, if anything was."""
    rates, found = clock.read(), None
    means = (state.sums / state.num_summed).tolist()
    point: dict[str, float | None] = {"step": state.step, **dict(zip(state.terms, means, strict=True))}
    point["learning_rate"] = learning_rate(state.step, run)
    point["teacher_momentum"] = state.teacher_momentum
    point["gradient_norm"] = norm
    biases: dict[str, float] = {}
    if validate and len(run.validation_rows) > 0 and run.recipe.predicts_land_cover:
        found = judged(run, state.transferred(run.recipe), run.validation_rows)
        point["validation_kl"] = found.kl
        point["mean_bias"] = float(np.abs(found.bias).mean())
        biases = {f"bias/{name}": float(value) for name, value in zip(run.data.classes, found.bias, strict=True)}
        if found.kl < state.best_kl:
            state.best_kl, state.best_step = found.kl, state.step
            if run.processes.is_first and run.config.deliver == "best":
                save_weights(state.transferred(run.recipe), best_path(run))
    state.history.append(point)
    state.sums.zero_()
    state.num_summed = 0
    shown = {key: value for key, value in point.items() if value is not None and key != "step"} | biases | rates
    # Several runs may speak to one listener: only the curves of the first one have plain names.
    reporter.metrics({_curve(run, key): value for key, value in shown.items()}, state.step)
    clock.reset()
    return found


def _curve(run: Run, key: str) -> str:
    return key if run.is_first else f"{run.name}/{key}"


def _show_examples(run: Run, state: State, found: Judged | None, reporter: Reporter) -> None:
    """Show chips that are held out, as they were just judged, or are judged now."""
    if not run.processes.is_first or not run.recipe.predicts_land_cover:
        return
    if found is None:
        rows = run.validation_rows if len(run.validation_rows) > 0 else run.train_rows
        found = judged(run, state.transferred(run.recipe), rows)
    reporter.picture(f"examples/{run.name}_step_{state.step:06d}.png", example_picture(run.data, found))


# --- what is delivered ------------------------------------------------------------------------------------------------


def delivered(run: Run, state: State) -> tuple[Network, int]:
    """The network that a finished run hands over, and the step it is from.

    The last one, or the one with the least validation KL; interpolated with its start where the recipe says so.
    """
    network, step = state.transferred(run.recipe), state.step
    if run.config.deliver == "best" and state.best_step:
        network, step = copy.deepcopy(network), state.best_step
        load_weights(network, best_path(run))
    if run.recipe.interpolation < 1 and state.start is not None:
        network = copy.deepcopy(network)
        interpolate(network.backbone, state.start, run.recipe.interpolation)
    return network, step
