"""The order in which rows enter batches: seeded, whole epochs, the same on every machine."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

CODE: Final = {"windows": "filled"}
"""What windows do otherwise than they once did: part of the fingerprint of a training that uses them."""


@dataclass(frozen=True, eq=False)
class ShardWindows:
    """Chips shuffled within windows of whole shards, for data that memory cannot hold.

    A shuffle of all chips reads every shard of an archive in every batch, from all over the disk. Here the shards of an
    epoch are shuffled, filled one after the other into windows, and the chips of a window are shuffled: what is being
    read at a time is one window. Shards may be of any length: a window takes shards until it is full.

    Attributes:
        shards: int64 (N,), the shard of each training chip.
        window_chips: chips of a window; its last shard may exceed it.
    """

    shards: np.ndarray
    window_chips: int

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Places of each shard's chips among the training chips."""
        order = np.argsort(self.shards, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.shards[order])) + 1)

    @lru_cache(maxsize=2)  # noqa: B019  # two epochs at most, and a run has one such object
    def order(self, seed: int, epoch: int) -> np.ndarray:
        """int64 (N,): places of the training chips in the order of an epoch."""
        rng = np.random.default_rng([seed, epoch])
        shards = [self._places[k] for k in rng.permutation(len(self._places))]
        windows: list[list[np.ndarray]] = [[]]
        for places in shards:
            if sum(map(len, windows[-1])) >= self.window_chips:
                windows.append([])
            windows[-1].append(places)
        return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])


@dataclass(frozen=True, eq=False)
class WeightedChips:
    """Chips that come as often as they weigh, where some would otherwise crowd out the others.

    An epoch has as many chips as there are. It is drawn by systematic sampling (Madow 1949): of a chip that is expected c
    times, it holds floor(c) or floor(c) + 1, and every epoch draws anew, so that over many of them each comes as it weighs.

    Attributes:
        shares: float64 (N,), expected share of each training chip among those that are seen; sum 1.
    """

    shares: np.ndarray

    @lru_cache(maxsize=2)  # noqa: B019  # two epochs at most, and a run has one such object
    def order(self, seed: int, epoch: int) -> np.ndarray:
        """int64 (N,): places of the training chips in the order of an epoch."""
        rng = np.random.default_rng([seed, epoch])
        ends = np.cumsum(self.shares) * (len(self.shares) / self.shares.sum())
        ends[-1] = len(self.shares)  # whatever the sum's last digits
        counts = np.diff(np.floor(ends + rng.random()), prepend=0.0).astype(np.int64)
        drawn = np.repeat(np.arange(len(counts)), counts)
        return rng.permutation(drawn)[: len(counts)]


def batch_rows(
    train_rows: np.ndarray,
    batch_size: int,
    seed: int,
    step: int,
    drawing: ShardWindows | WeightedChips | None = None,
) -> np.ndarray:
    """Rows of one training step: epochs are seeded permutations, laid end to end and cut into batches.

    Without weights no chip is ever left out, and none comes an (n+1)-th time before all came n times.

    Args:
        train_rows: int64 (N,) rows to draw from.
        batch_size: rows wanted; may exceed N.
        seed: of the run.
        step: counted from 1.
        drawing: shuffle within windows of shards, or draw by weight; None: shuffle all chips.

    Returns:
        int64 (batch_size,).
    """
    positions = np.arange((step - 1) * batch_size, step * batch_size)
    epochs, places = np.divmod(positions, len(train_rows))
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        order = _permutation(len(train_rows), seed, int(epoch)) if drawing is None else drawing.order(seed, int(epoch))
        rows[mine] = train_rows[order[places[mine]]]
    return rows


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)
