"""Tables of the page: their parts, their layout, and how figures are written.

Not here: what the tables hold (``report.tasks``, ``report.sections``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from geokr_core.evaluation.charts import MANY_INITIALISATIONS
from geokr_core.evaluation.statistics import Estimate
from geokr_core.pictures.charts import Style

Styles = Mapping[str, Style]

_COLUMNS_IN_ONE_LINE: Final = 5
"""With more columns the interval stands below its mean."""


@dataclass(frozen=True)
class Head:
    """What stands at the edge of a table: words, those of an initialisation with its colour and shape."""

    words: str
    colour: str = ""
    shape: str = ""


@dataclass(frozen=True)
class Entry:
    """A figure of a table with what belongs to it.

    Attributes:
        mean: the figure.
        interval: its interval, or what else belongs to it.
        note: a separate line below.
        verdict: ``ahead`` or ``behind``, with or without a star; empty where neither is shown.
    """

    mean: str
    interval: str = ""
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A table that templates know how to draw.

    Attributes:
        title: words above it.
        corner: names of the columns that are heads of the rows.
        columns: heads of the other columns.
        rows: heads and entries of each row; None where nothing was evaluated.
        folded: shown on demand only.
    """

    title: str
    corner: Sequence[str]
    columns: Sequence[Head]
    rows: Sequence[tuple[Sequence[Head], Sequence[Entry | None]]]
    folded: bool = False

    @property
    def stacked(self) -> bool:
        """Whether intervals stand below their means, for want of width."""
        return len(self.columns) > _COLUMNS_IN_ONE_LINE


def laid_out(
    title: str,
    settings: Mapping[Any, Sequence[str]],
    setting_names: Sequence[str],
    compared: Mapping[Any, Head],
    compared_name: str,
    entries: Mapping[tuple[Any, Any], Entry],
    *,
    folded: bool = False,
) -> Table:
    """A table with settings down and what is compared across, or the other way round where that is too much across.

    Args:
        title: words above it.
        settings: words of each setting, by its key.
        setting_names: what these words are.
        compared: heads of what is compared, by its key.
        compared_name: what that is.
        entries: by setting and compared.
        folded: shown on demand only.
    """
    if len(compared) > MANY_INITIALISATIONS and len(compared) > len(settings):
        columns = [Head(", ".join(words)) for words in settings.values()]
        rows = [([head], [entries.get((k, c)) for k in settings]) for c, head in compared.items()]
        return Table(title, [compared_name], columns, rows, folded)
    body = [([Head(w) for w in words], [entries.get((k, c)) for c in compared]) for k, words in settings.items()]
    return Table(title, setting_names, list(compared.values()), body, folded)


def style_heads(styles: Styles, names: Iterable[str]) -> dict[Any, Head]:
    """The heads of initialisations, in the order of their styles."""
    wanted = set(names)
    return {name: Head(s.label, s.colour, s.shape) for name, s in styles.items() if name in wanted}


def score(estimate: Estimate) -> Entry:
    """A mean of scores with its interval, or alone where a single seed gives none."""
    low, high = estimate.ci_low, estimate.ci_high
    # A t-interval of few seeds may leave the range that a score can have; no one needs to read that.
    interval = "" if math.isnan(low) else f"[{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
    return Entry(f"{estimate.mean:.3f}", interval)


def estimate_of(row: Mapping[Any, Any]) -> Estimate:
    """The estimate in a row of a summary or of differences."""
    return Estimate(float(row["mean"]), float(row["ci_low"]), float(row["ci_high"]), int(row["n_seeds"]))


def signed(value: float) -> str:
    """``+0.123`` or ``−0.123``; a true minus sign, so that a range never reads like a subtraction."""
    return f"{value:+.3f}".replace("-", "−")


def signed_interval(low: float, high: float) -> str:
    """``[−0.010, +0.020]``, or nothing where it is not known."""
    return "" if math.isnan(low) else f"[{signed(low)}, {signed(high)}]"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
