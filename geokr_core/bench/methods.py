"""What the default method and land cover alone cost beside contrast alone, step by step on the same chips."""

import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch

from geokr_core.bench.measure import Measurement
from geokr_core.bench.pretrain import ON_CPU, ON_GPU, Scale, interleaved, steps_of
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training.batches import prefetched
from geokr_core.pretraining.training.loop import reading
from geokr_core.testing import make_levir_kr

_METHODS: Final = ("simclr", "geokr", "dense")


def bench_methods(folder: Path, scale: Scale | None = None) -> Measurement:
    """Time of a step of ``geokr`` in that of a step of ``simclr``; beside it that of ``dense``, land cover of cells alone.

    The methods take turns, each with its own batches, read while it trains. The ratio is the median over the rounds.

    Args:
        folder: for what is written meanwhile.
        scale: what to train; None: ResNet-50 at 256 px where there is a GPU, ResNet-18 at 64 px elsewhere.
    """
    scale = scale or (ON_GPU if torch.cuda.is_available() else ON_CPU)
    data = make_levir_kr(folder, num_chips=8 * scale.batch_size, chip_size_px=scale.size_px)
    threads = torch.get_num_threads()
    config = PretrainingConfig(
        architecture=scale.architecture,
        steps=10_000,
        batch_size=scale.batch_size,
        threads=threads,
        examples_every=0,
        variants=_METHODS,
    )
    runs = list(runs_of(config, data, folder / "checkpoints"))
    with ExitStack() as readers:
        ways = {
            run.variant: steps_of(
                run, readers.enter_context(prefetched(reading(run), 1, scale.steps * (scale.rounds + 1))), scale
            )
            for run in runs
        }
        rounds = interleaved(ways, scale)
    geokr, dense = (
        [ours / contrast for ours, contrast in zip(rounds[name], rounds["simclr"], strict=True)]
        for name in ("geokr", "dense")
    )
    return Measurement(
        "methods",
        statistics.median(geokr),
        1.05,
        scale.batch_size * scale.steps * scale.rounds,
        f"{scale.architecture}, {scale.size_px} px, batch {scale.batch_size}, "
        f"{'bf16' if runs[0].runtime.bf16 else 'fp32'}, {threads} thread(s)",
        {
            "lowest_round": min(geokr),
            "highest_round": max(geokr),
            "dense": statistics.median(dense),
            "budget_dense": 0.5,
            **{f"{name}_step_s": statistics.median(rounds[name]) / scale.steps for name in _METHODS},
        },
    )
