"""One pretraining run: the loop that every method shares, with its curves and its checkpoints.

What a run is made of is in ``run``, its checkpoints in ``resuming``; what a method minimises in ``methods``; which runs there
are and what is kept of them in ``pretrain``; the numbers of a recipe in ``presets``.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from geokr_core.networks.augmentation import Geometry, cells_under, colour_view, draw, geometry_of, seen
from geokr_core.networks.batch_order import Windows, batch_rows
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.weights import load_weights, save_weights
from geokr_core.pretraining.labels import CELLS_HALF_WEIGHT
from geokr_core.pretraining.objectives.land_cover import teacher_predicts
from geokr_core.pretraining.objectives.network import Network, Outputs
from geokr_core.pretraining.objectives.objective import Seen
from geokr_core.pretraining.training import schedules
from geokr_core.pretraining.training.anchor import (
    distance,
    interpolate,
    last_stage_angle,
    last_stage_cells,
    maps_of,
    pooled,
    weight_distance,
)
from geokr_core.pretraining.training.batches import Batch, prefetched, reader
from geokr_core.pretraining.training.monitoring import Clock, LossWatch
from geokr_core.pretraining.training.resuming import best_path, resume, save
from geokr_core.pretraining.training.state import Run, State, begin
from geokr_core.pretraining.training.teacher import warmed_up_momentum
from geokr_core.pretraining.training.validation import Judged, example_picture, judge
from geokr_core.step.reporter import Advance, Reporter


def learning_rate(step: int, run: Run) -> float:
    """Learning rate of the head at a step, counted from 1."""
    return schedules.learning_rate(step, run.recipe, run.config.steps, run.config.batch_size, len(run.train_rows))


# --- one step ---------------------------------------------------------------------------------------------------------


def generator_of(seed: int, step: int) -> torch.Generator:
    """The generator of one step's augmentation: a pure function of seed and step, whatever came before."""
    digest = hashlib.sha256(f"augment/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def seen_of(run: Run, batch: Batch, part: slice, normalisation: Normalisation) -> Seen:
    """Augment chips of a batch and look up what is known of the ground that is seen.

    Land-cover methods show student and teacher the same crop in two colour variants, so that the label holds for both;
    contrastive methods crop both views by themselves. Where both are learned, the student sees both crops, each with the
    land cover of its own ground.

    Args:
        run: its recipe says how.
        batch: chips of this process.
        part: which of them, counted within this process; a slice, so that pinned memory stays pinned.
        normalisation: channel statistics on the device.
    """
    recipe, device, strength = run.recipe, run.runtime.device, run.recipe.augmentation
    generator, size, bands = generator_of(run.seed, batch.step), run.config.batch_size, run.data.bands
    places = run.places()[part]
    # Always both views, for the whole batch: neither the number of processes nor of parts changes a draw.
    first, second = (draw(size, len(bands), generator).of(places) for _ in range(2))
    images = batch.images[part].to(device, non_blocking=True)
    geometry = geometry_of(first, strength, device)
    planes = seen(images, geometry)
    student = teacher = colour_view(planes, bands, normalisation, strength, first)
    cells = None if batch.cells is None else batch.cells[part].to(device, non_blocking=True)
    rows = torch.from_numpy(batch.rows)[part].to(device, non_blocking=True)
    if recipe.contrast_weight > 0 or recipe.is_contrastive:
        other = geometry_of(second, strength, device)
        teacher = colour_view(seen(images, other), bands, normalisation, strength, second)
        if recipe.contrast_weight > 0:
            student = teacher = torch.cat([student, teacher])
            geometry, rows = geometry.beside(other), rows.repeat(2)
            cells = None if cells is None else cells.repeat(2, 1, 1, 1)
    elif recipe.two_views and teacher_predicts(recipe):
        teacher = colour_view(planes, bands, normalisation, strength, second)
    labels, weights = labels_of(run, rows, cells, geometry)
    return Seen(student, teacher, geometry, labels, weights, cells)


def labels_of(run: Run, rows: Tensor, cells: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """Land cover of what is seen of chips, and how much it counts.

    A crop has the proportions of its own known ground. Its weight falls, as that of a chip does, with the share of
    ground whose land cover is known and with the number of land-cover cells that voted.

    Args:
        run: labels and weights of whole chips.
        rows: int64 (B,) on the device.
        cells: uint8 (B, n, n, K) on the device, or None.
        geometry: what is seen.

    Returns:
        float32 (B, K), rows of zeros where nothing is known; float32 (B,), or None where all count alike.
    """
    weights = None if run.weights is None else run.weights[rows]
    if not run.recipe.label_follows_crop or cells is None or geometry.boxes is None:
        return run.labels[rows], weights
    shares = cells_under(cells, geometry, 1)[:, 0, 0]
    known = shares.sum(dim=1)
    labels = shares / known.clamp_min(1e-6)[:, None]
    if weights is not None:
        known_of_chip = cells.float().sum(dim=3).mean(dim=(1, 2)).clamp_min(1e-6) / 255.0
        box = geometry.boxes
        area, voted = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), run.num_cells[rows]
        saturation = area * (voted + CELLS_HALF_WEIGHT) / (area * voted + CELLS_HALF_WEIGHT)
        weights = weights * (known / known_of_chip) * saturation
    return labels, weights


def losses_of(run: Run, state: State, seen: Seen, step: int) -> Tensor:
    """Forward passes of both networks and all losses of some chips.

    Args:
        run: its recipe says which losses.
        state: the networks.
        seen: the chips.
        step: counted from 1.

    Returns:
        float32 (T,) in the order of ``state.terms``; the first entry is the one to be minimised.
    """

    def teacher(images: Tensor) -> Outputs:
        with run.runtime.autocast():
            said: Outputs = state.teacher(images)
            return said

    losses = state.objective.losses(state.student, state.forward, teacher, seen, step)
    if run.recipe.anchor_weight == 0:
        return losses
    anchor = _anchor_loss(run, state)
    losses = torch.cat([losses, anchor[None]])
    pull = torch.zeros_like(losses)
    pull[0] = run.recipe.anchor_weight
    return losses + pull * anchor


def _anchor_loss(run: Run, state: State) -> Tensor:
    """How far the backbone is from its start, in the measure that the recipe names; see ``anchor``."""
    start, said, images = state.start, state.forward.said, state.forward.images
    if start is None or said is None or images is None:
        raise RuntimeError(f"{run.name}: held to its start, but no start is kept or the student has seen nothing.")
    if run.recipe.anchor == "weights":
        return weight_distance(state.student.backbone, start)
    reference = maps_of(start, images, run.runtime.autocast(), run.recipe.anchor_zoom)
    if run.recipe.anchor == "features":
        return last_stage_angle(pooled(said.stages), pooled(reference))
    if run.recipe.anchor == "stages":
        return distance(pooled(said.stages), pooled(reference), state.spread)
    size = said.stages[-1].shape[2:]
    return distance(last_stage_cells(said.stages), last_stage_cells(reference, size), state.spread)


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
            losses = losses_of(run, state, seen_of(run, batch, part, normalisation), batch.step) * share
            torch.autograd.backward(losses[0])
        total += losses.detach()
    if batch.step <= run.recipe.head_warmup_steps:
        for parameter in state.student.backbone.parameters():
            parameter.grad = None
    return run.world.mean(total)


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
        run.world.share_buffers(state.student, state.teacher.network)
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
    """
    config = run.config
    with _own_torch_settings(run):
        state = begin(run)
        resume(run, state, reporter)
        watch = LossWatch(run.name, run.folder, run.labels, f"_rank{run.world.rank}" if run.world.size > 1 else "")
        clock = Clock()
        with (
            reporter.progress(f"pretraining {run.name}", config.steps) as advance,
            prefetched(reading(run), state.step + 1, config.steps) as batches,
        ):
            advance(state.step)
            _loop(run, state, batches, watch, clock, reporter, advance)
        watch.settle()
    return state, clock


def _loop(
    run: Run,
    state: State,
    batches: Iterator[Batch],
    watch: LossWatch,
    clock: Clock,
    reporter: Reporter,
    advance: Advance,
) -> None:
    config, normalisation = run.config, run.normalisation()
    points = schedules.log_points(config.steps, config.log_every)
    validation_points = schedules.validation_points(points, config.steps, config.validate_every)
    for batch in batches:
        losses = gradients(run, state, batch, normalisation)
        keeps = batch.step % config.checkpoint_every == 0 and batch.step < config.steps
        norm = None
        if run.recipe.gradient_clip_norm or batch.step in points or keeps:
            norm = gradient_norm(state, run.recipe.gradient_clip_norm)
        watch.watch(batch, losses[0], norm)
        update(run, state, losses)
        clock.count(config.batch_size, batch.wait_s)
        advance(1)
        if batch.step in points and norm is not None:
            watch.settle()
            _log(run, state, float(norm), clock, reporter, validate=batch.step in validation_points)
        if config.examples_every and batch.step % config.examples_every == 0:
            with clock.stopped():
                _show_examples(run, state, reporter)
        if keeps:
            watch.settle()
            with clock.stopped():
                reporter.flush()  # first: a run that goes on after this step tells nothing of it again
                save(run, state)


def reading(run: Run) -> Callable[[int], Batch]:
    """The function that reads this process's chips of a step."""
    places, window_chips = run.places().numpy(), run.config.shuffle_window_chips
    windows = None if window_chips is None else Windows(run.data.shard_of_row[run.train_rows], window_chips)

    def rows_of(step: int) -> np.ndarray:
        mine: np.ndarray = batch_rows(run.train_rows, run.config.batch_size, run.seed, step, windows)[places]
        return mine

    wanted = run.label_rows if run.recipe.needs_cells else None
    return reader(run.data, rows_of, pinned=run.runtime.device.type == "cuda", label_rows=wanted)


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
    """Predict chips of a run's data as they are, see `signs.judge`."""
    return judge(run.data, network, run.runtime, run.normalisation(), run.labels, rows)


def mean_kl(run: Run, network: Network, rows: np.ndarray) -> float:
    """Mean KL(labels ‖ prediction) over chips as they are, nat a chip."""
    return judged(run, network, rows).kl


def _log(run: Run, state: State, norm: float, clock: Clock, reporter: Reporter, *, validate: bool) -> None:
    rates = clock.read()
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
            if run.world.is_first and run.config.deliver == "best":
                save_weights(state.transferred(run.recipe), best_path(run))
    state.history.append(point)
    state.sums.zero_()
    state.num_summed = 0
    shown = {key: value for key, value in point.items() if value is not None and key != "step"} | biases | rates
    # Several runs may speak to one listener: only the first one's curves bear plain names.
    reporter.metrics({_curve(run, key): value for key, value in shown.items()}, state.step)
    clock.reset()


def _curve(run: Run, key: str) -> str:
    return key if run.is_first else f"{run.name}/{key}"


def _show_examples(run: Run, state: State, reporter: Reporter) -> None:
    if not run.world.is_first or not run.recipe.predicts_land_cover:
        return
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
