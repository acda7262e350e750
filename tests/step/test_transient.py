"""What may be gone by itself is told by the kind of the error, and by those that it was raised from."""

import errno
import sqlite3
from pathlib import Path

import pytest
import requests
from sqlalchemy.exc import OperationalError

from geokr_core.errors import GeoKRError, MissingInputError, RegistryError, SceneRefusedError
from geokr_core.step.transient import is_transient


def refused_connection() -> requests.RequestException:
    try:
        requests.get("http://127.0.0.1:9", timeout=5)
    except requests.RequestException as error:
        return error
    raise AssertionError("something answers on port 9")


def raised_from(cause: BaseException) -> GeoKRError:
    """As `refusals` and `teaching` raise: a refusal in words, with the library's error behind it."""
    try:
        try:
            raise cause
        except type(cause) as error:
            raise RegistryError("MLflow cannot be reached.") from error
    except GeoKRError as error:
        return error


def answer(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    "error",
    [
        refused_connection(),
        TimeoutError("slow"),
        ConnectionResetError("gone"),
        OSError(errno.ESTALE, "Stale file handle"),
        answer(503),
        OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_network_or_a_server_that_is_away_is_gone_by_itself(error: BaseException) -> None:
    assert is_transient(error)
    assert is_transient(raised_from(error))


@pytest.mark.parametrize(
    "error",
    [
        MissingInputError("data/scenes: no such folder"),
        SceneRefusedError("no CRS"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "no"),
        answer(404),
        answer(403),
        OperationalError("SELECT 1", {}, sqlite3.OperationalError("no such table: runs")),
        ValueError("a fault of ours"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_a_file_or_a_right_that_is_wrong_is_not(error: BaseException) -> None:
    assert not is_transient(error)
    assert not is_transient(raised_from(error))


def test_errors_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_transient(first)
