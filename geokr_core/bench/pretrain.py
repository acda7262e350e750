"""Training as it is against the same step without data, and against the loop that one would write first."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from geokr_core import training
from geokr_core.augment import Geometry
from geokr_core.batches import Batch, prefetched
from geokr_core.bench.measure import Measurement
from geokr_core.config import PretrainingConfig
from geokr_core.levir_kr import LevirKR
from geokr_core.methods.network import Network
from geokr_core.methods.objective import Seen
from geokr_core.pretrain import _runs
from geokr_core.testing import make_levir_kr

_SIZE_PX: Final = 64
_BATCH: Final = 128
_STEPS: Final = 2
_ROUNDS: Final = 9


def bench_pretrain(folder: Path) -> Measurement:
    """Share of the speed that the same step reaches on one prepared batch that stays where it is.

    Beside it: the factor over the loop that one would write first (transforms chip by chip in DataLoader workers, float32,
    NCHW), with the same networks, losses and threads; and the share of the machine's matrix-product speed (MFU).
    """
    data = make_levir_kr(folder, num_chips=1024, chip_size_px=_SIZE_PX)
    threads = torch.get_num_threads()
    config = PretrainingConfig(steps=1000, batch_size=_BATCH, threads=threads, examples_every=0)
    (run,) = _runs(config, data, folder / "checkpoints")
    (plain,) = _runs(config.model_copy(update={"precision": "fp32"}), data, folder / "checkpoints")
    with prefetched(training.reading(run), 1, 1 + 2 * _STEPS * (_ROUNDS + 1)) as batches:
        ours = _ours(run, batches)
        rounds = _interleaved({"ours": ours, "resident": _resident(run)})
        # Only now: its workers go on filling their queue while others are measured.
        rivals = _interleaved({"ours": ours, "first_loop": _first_loop(plain, workers=1)})
    times = {name: statistics.median(seconds) for name, seconds in rounds.items()}

    images = _BATCH * _STEPS
    flops = _flops(run) * _STEPS
    peak = _matrix_product_speed(run)
    return Measurement(
        "pretrain",
        _ratio(rounds, "resident"),
        0.97 if run.runtime.device.type == "cuda" else 0.95,
        images * _ROUNDS,
        f"ResNet-18 with teacher, {_SIZE_PX} px, batch {_BATCH}, {'bf16' if run.runtime.bf16 else 'fp32'}, {threads} thread(s)",
        {
            "images_per_s": images / times["ours"],
            "resident_images_per_s": images / times["resident"],
            "first_loop_images_per_s": images / statistics.median(rivals["first_loop"]),
            "factor_over_first_loop": _ratio(rivals, "first_loop"),
            "budget_factor_over_first_loop": 1.5,
            "mfu": flops / times["ours"] / peak,
            "matrix_product_tflops": peak / 1e12,
        },
    )


def _ratio(rounds: dict[str, list[float]], other: str) -> float:
    """Median over the rounds of how many times longer the other way took: the two of a pair met the same machine."""
    return statistics.median(b / a for a, b in zip(rounds["ours"], rounds[other], strict=True))


def _interleaved(ways: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each way in each round, taking turns, so that what else runs meets all of them; first a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_ROUNDS + 1):
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


def _ours(run: training.Run, batches: Iterator[Batch]) -> Callable[[], None]:
    state, normalisation = training.begin(run), run.normalisation()

    def work() -> None:
        for _ in range(_STEPS):
            losses = training.gradients(run, state, next(batches), normalisation)
            training.update(run, state, losses)

    return work


def _resident(run: training.Run) -> Callable[[], None]:
    """The same networks, losses and optimiser on one batch that is normalised and on the device already."""
    state, device = training.begin(run), run.runtime.device
    shape = (_BATCH, len(run.data.bands), _SIZE_PX, _SIZE_PX)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    whole = Geometry(None, torch.zeros(_BATCH, dtype=torch.int64, device=device))
    labels = run.labels[torch.from_numpy(run.train_rows[:_BATCH]).to(device)]
    seen = Seen(images, images, whole, labels, None, None)

    def work() -> None:
        for _ in range(_STEPS):
            state.optimiser.zero_grad(set_to_none=True)
            losses = training.losses_of(run, state, seen, state.step + 1)
            torch.autograd.backward(losses[0])
            training.update(run, state, losses.detach())

    return work


class _ChipByChip(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Two augmented views of a chip and its label, made by torchvision, one chip at a time."""

    def __init__(self, data: LevirKR, num_chips: int) -> None:
        self._data, self._rows = data, data.rows_of("train")
        self._num = num_chips
        mean, std = data.channel_mean.tolist(), data.channel_std.tolist()
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(data.chip_size_px, scale=(0.35, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        row = self._rows[index % len(self._rows)]
        image = torch.from_numpy(self._data.images(row[None])[0]).permute(2, 0, 1)
        return self._transform(image), self._transform(image), torch.tensor(self._data.proportions[row])


def _first_loop(run: training.Run, workers: int) -> Callable[[], None]:
    device = run.runtime.device
    student = Network("resnet18", len(run.data.bands), len(run.data.classes)).to(device)
    teacher = Network("resnet18", len(run.data.bands), len(run.data.classes)).to(device).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    chips = _ChipByChip(run.data, _BATCH * _STEPS * (_ROUNDS + 2))
    batches = iter(DataLoader(chips, _BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0))

    def work() -> None:
        for _ in range(_STEPS):
            one, other, labels = (part.to(device) for part in next(batches))
            logits = student(one).logits
            with torch.no_grad():
                targets = teacher(other).logits.softmax(dim=1)
            loss = F.cross_entropy(logits, labels) + F.kl_div(logits.log_softmax(dim=1), targets, reduction="batchmean")
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            _move(teacher, student)

    return work


@torch.no_grad()
def _move(teacher: nn.Module, student: nn.Module) -> None:
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.mul_(0.99).add_(theirs, alpha=0.01)


def _flops(run: training.Run) -> float:
    """Floating-point operations of one step, counted by torch: student forward and backward, teacher forward."""
    quiet = replace(run, runtime=replace(run.runtime, bf16=False))
    work = _resident(quiet)
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / _STEPS


def _matrix_product_speed(run: training.Run) -> float:
    """Floating-point operations a second of a large matrix product in the run's precision: what the machine can do."""
    size, kind = 1536, torch.bfloat16 if run.runtime.bf16 else torch.float32
    a: Any = torch.randn(size, size, device=run.runtime.device, dtype=kind)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        _settle()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)
