"""What an examination of an installation finds: one value a check, with the remedy where something is wrong."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from geokr_core.errors import GeoKRError

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Diagnosis:
    """What one check found.

    Attributes:
        check: its name.
        state: ``warning``: it works, but not for ever or not all of it; ``failure``: something that is asked for cannot work.
        found: what was found, in one line.
        remedy: what to do about it; empty where it is ``ok``.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Diagnosis:
    """A check with nothing to do about it."""
    return Diagnosis(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Diagnosis:
    """A check that found something that works, but not for ever or not all of it."""
    return Diagnosis(check, "warning", found, remedy)


def failure(check: str, found: str, remedy: str) -> Diagnosis:
    """A check that found something that cannot work."""
    return Diagnosis(check, "failure", found, remedy)


def examined(check: str, examine: Callable[[], Iterable[Diagnosis]]) -> Iterator[Diagnosis]:
    """What a check finds; that it could not be made is a finding too, so that the checks after it are made.

    Args:
        check: its name.
        examine: makes it.
    """
    try:
        yield from examine()
    except GeoKRError as error:
        yield failure(check, str(error), "Do what the message says.")
    except Exception as error:  # noqa: BLE001  # a broken installation breaks in any way: it is reported
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        yield failure(
            check, f"the check could not be made: {text}", "Mend what the message names, then run the check again."
        )
