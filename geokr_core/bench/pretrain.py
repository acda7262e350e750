"""Training as it is against the same step without data, and against the loop that one would write first."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from geokr_core.bench.measure import Measurement
from geokr_core.errors import DatasetError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.architectures import Architecture
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.contrast import NTXent
from geokr_core.pretraining.losses import dense_loss
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.batches import Batch, prefetched
from geokr_core.pretraining.training.inputs import inputs_of
from geokr_core.pretraining.training.loop import gradients, losses_of, reading, update
from geokr_core.pretraining.training.state import Run, begin
from geokr_core.testing import make_levir_kr

_PUBLISHED_IMAGES: Final = 1_431_950 * 10
"""Chips of Levir-KR as published, times ten epochs: what the projection is for."""


@dataclass(frozen=True)
class Scale:
    """What is trained to measure the speed of training.

    Attributes:
        architecture: of the backbone.
        size_px: side of a chip.
        batch_size: chips a step.
        steps: of a turn.
        rounds: turns of each way, after one to warm up.
        matrix_size: side of the square matrices whose product is the machine's speed.
        matrix_products: that are timed at once.
        workers: processes that read for the loop that one would write first.
    """

    architecture: Architecture
    size_px: int
    batch_size: int
    steps: int
    rounds: int
    matrix_size: int
    matrix_products: int
    workers: int


ON_CPU: Final = Scale("resnet18", 64, 128, 2, 9, 1536, 1, workers=1)
ON_GPU: Final = Scale("resnet50", 256, 256, 10, 5, 8192, 20, workers=8)


def bench_pretrain(folder: Path, scale: Scale | None = None) -> Measurement:
    """Share of the speed that a step of the default recipe reaches on one prepared batch that stays where it is.

    Beside it: the factor over the loop that one would write first (transforms chip by chip in DataLoader workers, float32,
    NCHW), with the same network, heads, losses and threads; the share of the machine's matrix-product speed (MFU); where the
    time of a step goes; and, for chips of 256 px, the hours that ten epochs of Levir-KR as published would take.

    Args:
        folder: for what is written meanwhile.
        scale: what to train; None: ResNet-50 at 256 px where there is a GPU, ResNet-18 at 64 px elsewhere.
    """
    on_gpu = torch.cuda.is_available()
    scale = scale or (ON_GPU if on_gpu else ON_CPU)
    data = make_levir_kr(folder, num_chips=8 * scale.batch_size, chip_size_px=scale.size_px)
    threads = torch.get_num_threads()
    config = PretrainingConfig(
        architecture=scale.architecture, steps=10_000, batch_size=scale.batch_size, threads=threads, examples_every=0
    )
    (run,) = runs_of(config, data, folder / "checkpoints")
    (plain,) = runs_of(config.model_copy(update={"precision": "fp32"}), data, folder / "checkpoints")
    with prefetched(reading(run), 1, 2 + 2 * scale.steps * (scale.rounds + 1)) as batches:
        ours = steps_of(run, batches, scale)
        rounds = interleaved({"ours": ours, "resident": _resident(run, next(batches), scale)}, scale)
        batch = next(batches)
        shares = _shares(run, batch)
        # Only now: its workers go on filling their queue while others are measured.
        rivals = interleaved({"ours": ours, "first_loop": _first_loop(plain, scale)}, scale)
    times = {name: statistics.median(seconds) for name, seconds in rounds.items()}

    images = scale.batch_size * scale.steps
    flops = _flops(run, batch, scale) * scale.steps
    peak = _matrix_product_speed(run, scale)
    precision = "bf16" if run.runtime.bf16 else "fp32"
    return Measurement(
        "pretrain",
        _ratio(rounds, "resident"),
        0.97 if on_gpu else 0.95,
        images * scale.rounds,
        f"{scale.architecture}, default recipe, {scale.size_px} px, batch {scale.batch_size}, {precision}, "
        + (torch.cuda.get_device_name() if on_gpu else f"{threads} thread(s)"),
        {
            "images_per_s": images / times["ours"],
            "resident_images_per_s": images / times["resident"],
            "first_loop_images_per_s": images / statistics.median(rivals["first_loop"]),
            "factor_over_first_loop": _ratio(rivals, "first_loop"),
            "budget_factor_over_first_loop": 1.5,
            "mfu": flops / times["ours"] / peak,
            "matrix_product_tflops": peak / 1e12,
            **shares,
            **({"projected_hours": _PUBLISHED_IMAGES * times["ours"] / images / 3600} if scale.size_px == 256 else {}),
        },
    )


def _shares(run: Run, batch: Batch) -> dict[str, float]:
    """Where the time of a step goes: each part timed by itself, the student's passes being what is left of the whole."""
    state, normalisation = begin(run), run.normalisation()
    everything = slice(0, len(batch.rows))
    losses = gradients(run, state, batch, normalisation)

    def step() -> None:
        update(run, state, gradients(run, state, batch, normalisation))

    parts: dict[str, Callable[[], object]] = {
        "augmenting": lambda: inputs_of(run, batch, everything, normalisation),
        "updating": lambda: update(run, state, losses),
    }
    whole = _median_seconds(step)
    shares = {f"share_{name}": _median_seconds(work) / whole for name, work in parts.items()}
    return shares | {"share_student": 1.0 - sum(shares.values())}


def _median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        _settle()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _ratio(rounds: dict[str, list[float]], other: str) -> float:
    """Median over the rounds of how many times longer the other way took: the two of a pair met the same machine."""
    return statistics.median(b / a for a, b in zip(rounds["ours"], rounds[other], strict=True))


def interleaved(ways: dict[str, Callable[[], None]], scale: Scale) -> dict[str, list[float]]:
    """Seconds of each way in each round, taking turns, so that what else runs meets all of them; first a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(scale.rounds + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            _settle()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steps_of(run: Run, batches: Iterator[Batch], scale: Scale) -> Callable[[], None]:
    """The steps of a turn, as training takes them."""
    state, normalisation = begin(run), run.normalisation()

    def work() -> None:
        for _ in range(scale.steps):
            losses = gradients(run, state, next(batches), normalisation)
            update(run, state, losses)

    return work


def _resident(run: Run, batch: Batch, scale: Scale) -> Callable[[], None]:
    """The same networks, losses and optimiser on one batch that is augmented, normalised and on the device already."""
    state = begin(run)
    inputs = inputs_of(run, batch, slice(0, len(batch.rows)), run.normalisation())

    def work() -> None:
        for _ in range(scale.steps):
            state.optimiser.zero_grad(set_to_none=True)
            losses = losses_of(run, state, inputs, state.step + 1)
            torch.autograd.backward(losses[0])
            update(run, state, losses.detach())

    return work


class _ChipByChip(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Two augmented views of a chip and the land cover of its cells, made by torchvision, one chip at a time."""

    def __init__(self, data: LevirKR, num_chips: int) -> None:
        self._data, self._rows = data, data.rows_of("train")
        self._num = num_chips
        mean, std = data.channel_mean.tolist(), data.channel_std.tolist()
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(data.chip_size_px, scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4),
                v2.RandomGrayscale(0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        row = self._rows[index % len(self._rows)]
        image = torch.from_numpy(self._data.images(row[None])[0]).permute(2, 0, 1)
        cells = self._data.cells(row[None])
        if cells is None:
            raise DatasetError(f"{self._data.folder}: no land cover within chips; expected the generated data set's.")
        return self._transform(image), self._transform(image), torch.from_numpy(cells[0]).float() / 255.0


def _first_loop(run: Run, scale: Scale) -> Callable[[], None]:
    """Contrast and the land cover of whole chips' cells, with the network and heads of the recipe; no label follows a crop."""
    device, recipe = run.runtime.device, run.recipe
    network = Network(scale.architecture, len(run.data.bands), len(run.data.classes), recipe, run.data.cells_per_side)
    network = network.to(device)
    optimiser, contrast = (
        torch.optim.AdamW(network.parameters(), lr=1e-3),
        NTXent(recipe.temperature, distributed=False),
    )
    chips = _ChipByChip(run.data, scale.batch_size * scale.steps * (scale.rounds + 2))
    # One batch ahead a worker: each is 400 MB of shared memory at the GPU's scale.
    ahead = 1 if scale.workers else None
    batches = iter(DataLoader(chips, scale.batch_size, shuffle=True, num_workers=scale.workers, prefetch_factor=ahead))

    def work() -> None:
        for _ in range(scale.steps):
            one, other, cells = (part.to(device) for part in next(batches))
            outputs = network(torch.cat([one, other]))
            loss = contrast(*outputs.projected.chunk(2))
            logits = outputs.maps.permute(0, 2, 3, 1)
            loss = loss + recipe.dense_weight * dense_loss(logits, torch.cat([cells, cells]), recipe.reduction)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()

    return work


def _flops(run: Run, batch: Batch, scale: Scale) -> float:
    """Floating-point operations of one step, counted by torch: forward and backward of all crops."""
    # The counter sees single operations, not what a compiler made of them.
    plain = replace(run, runtime=replace(run.runtime, bf16=False, compiled=False))
    work = _resident(plain, batch, replace(scale, steps=1))
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _matrix_product_speed(run: Run, scale: Scale) -> float:
    """Floating-point operations a second of a large matrix product in the run's precision: what the machine can do."""
    size, kind = scale.matrix_size, torch.bfloat16 if run.runtime.bf16 else torch.float32
    a: Any = torch.randn(size, size, device=run.runtime.device, dtype=kind)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(scale.matrix_products):
            a @ a
        _settle()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 * scale.matrix_products / best)
