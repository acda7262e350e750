"""A step that a server which is away has stopped is tried again; one that refused its input is not."""

import dagster as dg
import pytest

from geokr_assets import materialise
from geokr_assets.materialise import MAX_RETRIES, teaching
from geokr_core.errors import MissingInputError, RegistryError


def _run(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> tuple[bool, int]:
    """Run an op that ends as told at each attempt; whether the run succeeded, and how often the op was tried."""
    monkeypatch.setattr(materialise, "RETRY_AFTER_S", 0.01)
    left, tried = list(errors), []

    @dg.op
    def step() -> None:
        tried.append(1)
        error = left.pop(0) if len(left) > 1 else left[0]
        with teaching():
            if error is not None:
                raise error

    @dg.job
    def job() -> None:
        step()

    return job.execute_in_process(raise_on_error=False).success, len(tried)


def _away() -> Exception:
    error = RegistryError("MLflow cannot be reached.")
    error.__cause__ = ConnectionRefusedError("no one listens")
    return error


def test_a_server_that_comes_back_costs_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, _away(), _away(), None) == (True, 3)


def test_one_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, _away()) == (False, MAX_RETRIES + 1)


@pytest.mark.parametrize(
    "error", [MissingInputError("no such folder"), RegistryError("no such version"), OSError(28, "full")]
)
def test_what_is_wrong_is_tried_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert _run(monkeypatch, error) == (False, 1)
