"""Frozen features of the start at hand, computed once for all cells that need them, and of several starts side by side.

Not here: how a network gives features of a set (the tasks say so).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geokr_core.evaluation.cells import Features, Start
from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.runtime import Runtime
from geokr_core.step.digests import text_digest

Computed = tuple[np.ndarray, ...]
"""Arrays of features float32 (N, D), e.g. of the items to learn from and of those to judge."""


@dataclass(frozen=True)
class _Kept:
    features: Features
    values: Computed


class KeptFeatures:
    """Keeps the features of a start until one is asked for that has no part in it."""

    def __init__(self, compute: Callable[[Features, Start, Runtime], Computed]) -> None:
        """``compute`` gives the features of one start alone; of ``colour_histogram`` it gives colours, whatever is asked for."""
        self._compute = compute
        self._kept: dict[str, _Kept] = {}

    def of(self, features: Features, start: Start, runtime: Runtime) -> Computed:
        """Features of a start; those of starts beside it lie side by side with its own, in their order.

        Raises:
            EvaluationError: features are not finite.
            BackboneError: weights and architecture do not fit together.
        """
        named = [(text_digest(dict(part.identity())), part) for part in start.alone]
        self._kept = {name: self._kept[name] for name, _ in named if name in self._kept}
        parts = [self._of_one(name, features, part, runtime) for name, part in named]
        return parts[0] if len(parts) == 1 else tuple(np.hstack(arrays) for arrays in zip(*parts, strict=True))

    def _of_one(self, name: str, features: Features, start: Start, runtime: Runtime) -> Computed:
        kept = self._kept.get(name)
        if kept is not None:
            if kept.features == features or start.initialisation == "colour_histogram":
                return kept.values
            if (kept.features, features) == ("multi", "last"):
                # Stages lie side by side in order, the last one at the end.
                return tuple(values[:, -feature_dim(start.architecture) :] for values in kept.values)
        values = self._compute(features, start, runtime)
        self._kept[name] = _Kept(features, values)
        return values
