"""Errors planted into a map, and how well an audit finds them: what the audit says of itself in each run.

What it misses of planted errors it misses of real ones, too. The precision that is measured so is a lower bound: real errors of
the map sit among the chips that were left alone, and finding one of them counts as a mistake here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Kind = Literal["gross", "gentle"]
KINDS: Final[tuple[Kind, ...]] = ("gross", "gentle")

LEAST_DISTANCE: Final = 1.0
"""Sum of absolute differences from which another chip's shares are a gross error: half of the ground is another class."""

MOVED: Final = (0.25, 0.5)
"""Share of a chip's ground that a gentle error moves from one class to another."""


@dataclass(frozen=True)
class Found:
    """What an audit found of planted errors.

    Attributes:
        kind: of error.
        num_chips: chips that were audited, or cells.
        num_planted: those with a planted error.
        average_precision: area below the curve of precision over recall; a blind audit reaches the planted share.
        precision_at_100: share of planted errors among the first hundred.
        recall_at_planted: share of the planted errors among as many flags as were planted.
    """

    kind: Kind
    num_chips: int
    num_planted: int
    average_precision: float
    precision_at_100: float
    recall_at_planted: float


def plant(shares: np.ndarray, kind: Kind, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Plant errors.

    Args:
        shares: float64 (N, K), the map's.
        kind: ``gross``: the shares of another chip that is at least 1 away (sum of absolute differences); ``gentle``: a
            quarter to a half of the ground moved from one class to another.
        fraction: of the chips.
        rng: draws.

    Returns:
        The map with errors, and bool (N,), where they are. Of a map in which nothing is far apart, fewer than asked for.
    """
    changed, planted = shares.copy(), np.zeros(len(shares), dtype=bool)
    for row in rng.permutation(len(shares))[: max(1, round(fraction * len(shares)))]:
        error = _gross(shares, row, rng) if kind == "gross" else _gentle(shares[row], rng)
        if error is not None:
            changed[row], planted[row] = error, True
    return changed, planted


def _gross(shares: np.ndarray, row: int, rng: np.random.Generator) -> np.ndarray | None:
    far = np.flatnonzero(np.abs(shares - shares[row]).sum(axis=1) >= LEAST_DISTANCE)
    return shares[rng.choice(far)] if len(far) else None


def _gentle(own: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    wanted = rng.uniform(*MOVED)
    source = int(own.argmax())
    if own[source] < wanted or len(own) < 2:
        return None
    target = rng.choice(np.delete(np.arange(len(own)), source))
    moved = own.copy()
    moved[source] -= wanted
    moved[target] += wanted
    return moved


def average_precision(ranked: np.ndarray) -> float:
    """Mean, over what is looked for, of the precision at its rank.

    Args:
        ranked: bool (N,), whether each item is looked for, the best ranked first; one at least is.
    """
    places = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(places) + 1) / places).mean())


def measure(
    shares: np.ndarray,
    scores_of: Callable[[np.ndarray], np.ndarray],
    kind: Kind,
    fraction: float,
    rng: np.random.Generator,
) -> Found | None:
    """Plant errors, audit, and count.

    Args:
        shares: float64 (N, K), the map's.
        scores_of: the audit: shares to scores, float (N,).
        kind: of error.
        fraction: of the chips.
        rng: draws.

    Returns:
        What was found; None where no error of this kind can be planted.
    """
    changed, planted = plant(shares, kind, fraction, rng)
    return found_of(scores_of(changed), planted, kind) if planted.any() else None


def found_of(scores: np.ndarray, planted: np.ndarray, kind: Kind) -> Found:
    """What a ranking found.

    Args:
        scores: float (N,).
        planted: bool (N,), where errors are; one at least.
        kind: of error.
    """
    order, number = np.argsort(-scores, kind="stable"), int(planted.sum())
    return Found(
        kind=kind,
        num_chips=len(scores),
        num_planted=number,
        average_precision=average_precision(planted[order]),
        precision_at_100=float(planted[order[:100]].mean()),
        recall_at_planted=float(planted[order[:number]].mean()),
    )
