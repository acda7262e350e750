"""Features are computed once a start, cut for the last stage, and laid side by side for starts that stand beside each other."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from geokr_core.evaluation.cells import Features, Start
from geokr_core.evaluation.learning.kept_features import KeptFeatures
from geokr_core.networks.architectures import feature_dim
from geokr_core.networks.runtime import Runtime

LAST = feature_dim("squeezenet1_1")


def _start(seed: int, *beside: Start, initialisation: str = "random") -> Start:
    return Start(initialisation, seed, "squeezenet1_1", None, (0.5,) * 3, (0.2,) * 3, beside=beside)


class _Counting:
    """Features that tell whose they are: all stages are ten numbers more than the last one."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []

    def __call__(self, features: Features, start: Start, runtime: Runtime) -> tuple[np.ndarray, ...]:
        self.calls.append((start.seed, features))
        size = LAST + 10 * (features == "multi")
        every = start.seed * 10_000 + np.arange(LAST + 10, dtype=np.float32)
        return tuple(np.tile(every[-size:], (count, 1)) for count in (3, 2))


def _of(kept: KeptFeatures, features: Features, start: Start) -> tuple[np.ndarray, ...]:
    return kept.of(features, start, Runtime(torch.device("cpu"), bf16=False))


def test_starts_beside_each_other_share_what_is_kept_and_lie_in_order() -> None:
    compute = _Counting()
    kept = KeptFeatures(compute)
    both = _start(1, _start(2))
    train, test = _of(kept, "multi", both)
    assert (train.shape, test.shape) == ((3, 2 * LAST + 20), (2, 2 * LAST + 20))
    last, _ = _of(kept, "last", both)
    assert compute.calls == [(1, "multi"), (2, "multi")]
    np.testing.assert_array_equal(last, np.hstack([train[:, 10 : LAST + 10], train[:, LAST + 20 :]]))
    np.testing.assert_array_equal(_of(kept, "last", _start(2))[0], last[:, LAST:])
    assert len(compute.calls) == 2
    _of(kept, "multi", both)  # the first one was given up when the second was asked for alone
    assert compute.calls[2:] == [(1, "multi")]


def test_the_same_start_twice_is_computed_once_and_given_twice() -> None:
    compute = _Counting()
    train, _ = _of(KeptFeatures(compute), "last", _start(3, _start(3)))
    assert compute.calls == [(3, "last")]
    np.testing.assert_array_equal(train[:, :LAST], train[:, LAST:])


def test_colours_are_the_same_whichever_features_are_asked_for() -> None:
    compute = _Counting()
    kept = KeptFeatures(compute)
    colours = _start(5, initialisation="colour_histogram")
    first = _of(kept, "multi", colours)[0]
    np.testing.assert_array_equal(_of(kept, "last", colours)[0], first)
    assert len(compute.calls) == 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_identities_tell_starts_apart_by_what_lies_beside_them(seeds: list[int]) -> None:
    first, *others = (_start(seed) for seed in seeds)
    fused = Start(**{**first.__dict__, "beside": tuple(others)})
    assert [part.identity() for part in fused.alone] == [_start(seed).identity() for seed in seeds]
    assert (fused.identity() == first.identity()) == (len(seeds) == 1)
