"""What judgements of a sample say of the map: its accuracy by class, and which of two maps is nearer to the ground.

Only a whole sample counts: who looks at an estimate while judging goes on, and stops when it pleases, has no interval.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa

from geokr_core.audit.accuracy import Accuracy, Estimate, accuracy_of, exact_share
from geokr_core.audit.sample import Sample, shares_of_chips
from geokr_core.errors import AuditError, MissingInputError

UNSURE: Final = "unsure"
"""What a person says who cannot tell the class of a chip; it counts for no class and is left out."""

_COLUMNS: Final = ("chip_id", "label", "who", "when", "sample_id")
_TEXTS: Final = ("chip_id", "label", "sample_id")


@dataclass(frozen=True)
class Comparison:
    """Two maps on one sample.

    Attributes:
        first_only: share of the ground that the first map has right and the second wrong.
        second_only: the reverse.
        low: lower end of the interval of the first map's lead in accuracy.
        high: upper end.
        num_judged: chips that both maps know and a person judged.
    """

    first_only: Estimate
    second_only: Estimate
    low: float
    high: float
    num_judged: int

    @property
    def lead(self) -> float:
        """Accuracy of the first map less that of the second."""
        return self.first_only.value - self.second_only.value

    @property
    def verdict(self) -> str:
        """``first``, ``second``, or ``undecided`` where the interval holds 0."""
        return "first" if self.low > 0 else "second" if self.high < 0 else "undecided"


def read_judgements(path: Path, sample: Sample) -> pd.Series:
    """Read what people judged, one label a chip of the sample.

    Args:
        path: GeoParquet file that the page saved.
        sample: that was judged.

    Returns:
        Labels by chip id, in the order of the sample; `UNSURE` among them.

    Raises:
        MissingInputError: there is no such file.
        AuditError: no judgements, of another sample, of a class that the map does not have, or of a part of the sample only.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; save the judgements from the page of `geokr audit sample`.")
    try:
        table = gpd.read_parquet(path)
        missing = [name for name in _COLUMNS if name not in table]
    except (ValueError, OSError, pa.ArrowException) as error:
        raise AuditError(
            f"{path}: not judgements ({error}); save them from the page of `geokr audit sample`."
        ) from error
    if missing:
        raise AuditError(f"{path}: no judgements, column {missing[0]!r} is missing; save them from the page.")
    if odd := [name for name in _TEXTS if not table[name].map(lambda value: isinstance(value, str)).all()]:
        raise AuditError(f"{path}: a row has no {odd[0]!r}; save the judgements from the page.")
    others = sorted(set(table["sample_id"]) - {sample.sample_id})
    if others:
        raise AuditError(
            f"{path}: judgements of sample {others[0]}, but the sample is {sample.sample_id}: give the sample that was judged."
        )
    unknown = sorted(set(table["label"]) - {*sample.classes, UNSURE})
    if unknown:
        raise AuditError(f"{path}: label {unknown[0]!r} is no class; the map's are {', '.join(sample.classes)}.")
    twice = [chip for chip, count in Counter(table["chip_id"]).items() if count > 1]
    if twice:
        raise AuditError(
            f"{path}: chip {twice[0]} is judged {Counter(table['chip_id'])[twice[0]]} times; keep one judgement a chip."
        )
    labels: pd.Series = table.set_index("chip_id")["label"].reindex(sample.chips["chip_id"])
    num_left = int(labels.isna().sum())
    if num_left:
        raise AuditError(
            f"{path}: {len(labels) - num_left} of {len(labels)} chips are judged. Judge the other {num_left}, too: an estimate that is looked at "
            "before the end, and ended when it pleases, has no true interval."
        )
    return labels


def estimate(sample: Sample, labels: pd.Series, confidence: float = 0.95) -> Accuracy:
    """The accuracy of the audited map, by class of the largest share of a chip.

    Args:
        sample: that was judged.
        labels: of its chips, as `read_judgements` gives them.
        confidence: of the intervals.

    Raises:
        AuditError: a class of the map has fewer than two chips that a person could tell.
    """
    counts = _counts(sample, sample.chips["map_class"].to_numpy(), labels.to_numpy())
    few = [name for k, name in enumerate(sample.classes) if sample.weights[k] > 0 and counts[k].sum() < 2]
    if few:
        raise AuditError(
            f"Of the map's class {few[0]} fewer than two chips were judged with a class: draw a larger sample "
            "(`--per-class`), or judge more of them."
        )
    return accuracy_of(counts, sample.weights, confidence)


def _counts(sample: Sample, mapped: np.ndarray, labels: np.ndarray) -> np.ndarray:
    number = {name: k for k, name in enumerate(sample.classes)}
    counts = np.zeros((len(number), len(number)), dtype=np.int64)
    for was, judged in zip(mapped, labels, strict=True):
        if judged != UNSURE:
            counts[number[str(was)], number[str(judged)]] += 1
    return counts


def compare(sample: Sample, labels: pd.Series, other: Path, confidence: float = 0.95) -> Comparison:
    """Which of two maps is right more often, on the same judged chips.

    The shares of ground that one map alone has right are estimated by stratum. Each gets an exact interval at half of the error
    that is allowed; the lead lies between the difference of their ends (Bonferroni), so that the interval is rather too wide than too narrow.

    Args:
        sample: drawn by the first map.
        labels: of its chips.
        other: folder of proportions by the second map.
        confidence: of the interval of the lead.

    Raises:
        MissingInputError: there are no proportions in the folder.
        AuditError: its classes are others, or too few chips are known to both and judged.
    """
    second = shares_of_chips(other, sample)
    first = sample.chips.set_index("chip_id")["map_class"]
    known = (labels != UNSURE) & second.notna()
    lone = [(first == labels) & (second != labels), (second == labels) & (first != labels)]
    each = 1 - (1 - confidence) / 2
    shares = [_share(sample, first, known, event, each) for event in lone]
    return Comparison(
        shares[0], shares[1], shares[0].low - shares[1].high, shares[0].high - shares[1].low, int(known.sum())
    )


def _share(sample: Sample, strata: pd.Series, known: pd.Series, event: pd.Series, confidence: float) -> Estimate:
    totals = [int((known & (strata == name)).sum()) for name in sample.classes]
    events = [int((known & event & (strata == name)).sum()) for name in sample.classes]
    few = [name for name, n, weight in zip(sample.classes, totals, sample.weights, strict=True) if weight > 0 and n < 2]
    if few:
        raise AuditError(
            f"Of class {few[0]} fewer than two chips are known to both maps and judged: draw a larger sample."
        )
    return exact_share(np.array(events), np.array(totals), sample.weights, confidence)


def as_rows(sample: Sample, accuracy: Accuracy) -> list[dict[str, Any]]:
    """The estimates as rows of a table: overall, then a row a class."""
    rows = [{"of": "whole map", "measure": "overall accuracy", **_told(accuracy.overall)}]
    measures: Sequence[tuple[str, tuple[Estimate, ...]]] = (
        ("user's accuracy", accuracy.users),
        ("producer's accuracy", accuracy.producers),
        ("share of the ground", accuracy.areas),
    )
    for k, name in enumerate(sample.classes):
        rows += [{"of": name, "measure": measure, **_told(found[k])} for measure, found in measures]
    return rows


def comparison_rows(found: Comparison) -> list[dict[str, Any]]:
    """A comparison as rows of the same table."""
    words = {
        "first": "the audited map is better",
        "second": "the other map is better",
        "undecided": "the sample cannot tell",
    }
    ends = {
        "estimate": f"{found.lead:.4f}",
        "low": f"{found.low:.4f}",
        "high": f"{found.high:.4f}",
        "standard_error": "",
    }
    return [
        {"of": "audited map", "measure": "right alone", **_told(found.first_only)},
        {"of": "other map", "measure": "right alone", **_told(found.second_only)},
        {"of": words[found.verdict], "measure": "lead of the audited map", **ends},
    ]


def _told(found: Estimate) -> dict[str, str]:
    values = {"estimate": found.value, "low": found.low, "high": found.high, "standard_error": found.standard_error}
    return {name: "" if np.isnan(value) else f"{value:.4f}" for name, value in values.items()}
