"""Whether several threads help on this machine, now: beside a busy process they can be many times slower than one.

The threads of a convolution wait for each other at its end. Where another process holds a core, all wait for the one that
got none. Nothing here changes the number of threads: sums over several threads are added up in another order, and a
result must not depend on what else the machine does.
"""

import copy
import time
from typing import Final

import torch

from geokr_core.pretraining.training.state import Run, State
from geokr_core.step.reporter import Reporter

_NUM_CHIPS: Final = 8
_ROUNDS: Final = 3
_WORTH_A_WORD: Final = 1.5
"""Several threads are called slow where they take this many times what one takes."""


def warn_of_slow_threads(run: Run, state: State, reporter: Reporter) -> None:
    """Time a few chips with one thread and with as many as are asked for, and say so where one is faster.

    Random numbers, weights and statistics stay as they are. Costs less than a step of usual size.

    Args:
        run: asks for ``threads``; nothing is done for one, or on a GPU.
        state: its student is copied and timed.
        reporter: hears the warning.
    """
    threads = run.config.threads
    if threads == 1 or run.runtime.device.type != "cpu":
        return
    with torch.random.fork_rng(devices=[]):
        slower = _seconds(run, state, threads) / _seconds(run, state, 1)
    torch.set_num_threads(threads)
    if slower > _WORTH_A_WORD:
        reporter.warning(
            f"{run.name}: {threads} threads are {slower:.1f} times slower than one on this machine now; most likely another "
            f"process keeps its cores busy. End that process, or set `pretraining.threads: 1` (and `runs_at_once: {threads}`)."
        )


def _seconds(run: Run, state: State, threads: int) -> float:
    """Least time of a forward and backward pass over a few chips."""
    torch.set_num_threads(threads)
    network = copy.deepcopy(state.student.backbone).train()
    images = run.normalisation()(torch.from_numpy(run.data.images(run.train_rows[:_NUM_CHIPS])))
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        with run.runtime.autocast():
            loss = network(images).float().square().mean()
        loss.backward()
        times.append(time.perf_counter() - began)
    return min(times[1:])
