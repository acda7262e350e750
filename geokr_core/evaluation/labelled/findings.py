"""What cannot be used of a labelled set: an error at once, or left out, counted and reported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from geokr_core.errors import EvaluationError

_SHOWN = 3
"""Items named in a note."""


@dataclass
class Findings:
    """Faults of the items of a set.

    Attributes:
        policy: ``fail`` raises at the first fault, ``skip`` counts.
        counted: kind of fault → the items it was found in.
    """

    policy: Literal["fail", "skip"]
    counted: dict[str, list[str]] = field(default_factory=dict)

    def found(self, kind: str, item: Path | str, message: str) -> None:
        """Raise or count a fault.

        Args:
            kind: how it is summed up in the notes, e.g. ``images left out: not readable``.
            item: what it was found in.
            message: found, expected, what to do.

        Raises:
            EvaluationError: the policy is ``fail``.
        """
        if self.policy == "fail":
            raise EvaluationError(
                f"{item}: {message} Set `bad_items: skip` of this task to leave it out, counted and reported."
            )
        self.noted(kind, item)

    def noted(self, kind: str, item: Path | str) -> None:
        """Count what is no fault, but worth a line in the report."""
        self.counted.setdefault(kind, []).append(str(Path(item).name))

    @property
    def notes(self) -> list[str]:
        """One line a kind of fault, with the number of items and the first of them."""
        return [
            f"{kind}: {len(items)} ({', '.join(items[:_SHOWN])}{', …' if len(items) > _SHOWN else ''})"
            for kind, items in self.counted.items()
        ]
