"""The headline of the page: what the best start gained over the others, and how sure that is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import FEATURE_NAMES, PROTOCOL_NAMES, in_order, task_words
from geokr_core.evaluation.metrics import Metric
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import CELL_KEYS, Estimate, cell_of, headline_rows, labels_order
from geokr_core.pictures.charts import INITIALISATION_NAMES, initialisation_styles
from geokr_core.report.tables import estimate_of, listed, score, signed, signed_interval


@dataclass(frozen=True)
class Primary:
    """The one comparison that a task is judged by: linear probe, last stage, most labels, first metric."""

    task: str
    protocol: str
    features: str
    labels: str
    metric: str = "accuracy"

    @property
    def words(self) -> str:
        """The comparison in words."""
        return f"{task_words(self.task)}, {self.setting}"

    @property
    def setting(self) -> str:
        """Protocol, features and labels in words."""
        protocol = PROTOCOL_NAMES.get(self.protocol, self.protocol)
        if self.protocol == "fine_tune":
            return f"{protocol}, {labels_name(self.labels)}"
        where = f" on the {FEATURE_NAMES[self.features]}" if self.features == "last" else f" on {_features(self)}"
        return f"{protocol}{where}, {labels_name(self.labels)}"


def _features(primary: Primary) -> str:
    return FEATURE_NAMES.get(primary.features, primary.features)


def tasks_in_order(judged: Judged, tasks: Iterable[Any]) -> list[str]:
    """Tasks of an evaluation in the order in which the page shows them, see `in_order`."""
    return in_order(tasks, {name: str(facts.get("kind", name)) for name, facts in judged.tasks.items()})


def primaries(judged: Judged) -> list[Primary]:
    """The primary comparison of each task: one protocol, features, amount of labels and metric."""
    found = []
    summary = headline_rows(judged.summary, judged.metrics)
    for task in tasks_in_order(judged, summary["task"]):
        of_task = summary[summary["task"] == task]
        rows = of_task[of_task["initialisation"] != "colour_histogram"]
        rows = of_task if rows.empty else rows
        protocol = "linear_probe" if (rows["protocol"] == "linear_probe").any() else str(rows["protocol"].iloc[0])
        rows = rows[rows["protocol"] == protocol]
        features = "last" if (rows["features"] == "last").any() else str(rows["features"].iloc[0])
        rows = rows[rows["features"] == features]
        found.append(Primary(task, protocol, features, _labels(rows), str(of_task["metric"].iloc[0])))
    return found


def fine_tuned(judged: Judged, probed: Primary) -> Primary | None:
    """The comparison of a probed task with all weights fine-tuned; None: GeoKR was not, or nothing else was done with the task."""
    summary = judged.summary
    of_task = (summary["task"] == probed.task) & (summary["metric"] == probed.metric)
    rows = summary[of_task & (summary["protocol"] == "fine_tune")]
    if probed.protocol == "fine_tune" or "geokr" not in set(rows["initialisation"]):
        return None
    return Primary(probed.task, "fine_tune", str(rows["features"].iloc[0]), _labels(rows), probed.metric)


def _labels(rows: pd.DataFrame) -> str:
    """The most labels that a comparison has intervals for.

    One network probed with all labels has one score: fewer labels, drawn several times, can tell it from others.
    """
    repeated = rows[(rows["initialisation"] == "geokr") & (rows["n_seeds"] > 1)]
    return str(max(set((rows if repeated.empty else repeated)["labels_per_class"]), key=labels_order))


def rows_of(table: pd.DataFrame, primary: Primary, initialisation: str | None = None) -> pd.DataFrame:
    """Rows of the first metric of one comparison; the colour histogram's, whatever features it stands beside."""
    cell = (primary.task, primary.protocol, primary.features, primary.labels, primary.metric)
    keys = [*CELL_KEYS, *(["initialisation"] if initialisation else [])]
    wanted = cell_of(cell, initialisation) if initialisation else cell
    return table[(table[keys] == list(wanted)).all(axis=1)]


def headline(judged: Judged, primary: Primary) -> str:
    """What was compared and what came out, with intervals, in a few plain sentences.

    Args:
        judged: the evaluation.
        primary: the comparison.

    Returns:
        The sentences. Where intervals overlap, a difference includes zero or the colour histogram is not cleared, they
        say so.
    """
    summary, metric = judged.summary, judged.metrics.of(primary.task, primary.metric)
    styles = initialisation_styles(judged.results["initialisation"])
    means = {
        name: estimate_of(rows.iloc[0].to_dict())
        for name in styles
        if not (rows := rows_of(summary, primary, name)).empty
    }
    if "geokr" not in means:
        return f"{_as_beginning(primary.words)}: the pretrained backbone was not evaluated, so there is nothing to report about it."
    ours = means["geokr"]
    sentences = [f"{_as_beginning(primary.words)}: GeoKR reaches {_a_metric(metric)} of {estimate_text(ours)}."]
    table = rows_of(judged.differences, primary).set_index("contrast")
    contrasts = {name: f"geokr - {name}" for name in means if name != "geokr"}
    found = {
        name: _Difference.of(table.loc[contrast].to_dict(), metric.sign)
        for name, contrast in contrasts.items()
        if contrast in table.index
    }
    sentences += [
        _versus(INITIALISATION_NAMES[name], ours, means[name], found[name])
        for name in ("random", "imagenet", "shuffled")
        if name in found
    ]
    others = {styles[name].label: known for name, known in found.items() if name not in INITIALISATION_NAMES}
    if others:
        sentences.append(_versus_others(others))
    if "colour_histogram" in found:
        sentences.append(_histogram_sentence(means["colour_histogram"], found["colour_histogram"]))
    elif primary.protocol == "linear_probe":
        sentences.append(
            "No colour histogram was evaluated: without it no one knows whether more than colour was learned."
        )
    if ours.n_seeds == 1:
        has_intervals = any(known.estimate.n_seeds > 1 for known in found.values())
        sentences.append(
            "One GeoKR backbone stands in all of these pairs: its own score has no interval, and a difference without one is no conclusion."
            if has_intervals
            else "GeoKR was measured once (one seed, or one pretraining that was given all labels), so there is no interval "
            "and no conclusion."
        )
    return " ".join(sentences)


def _as_beginning(words: str) -> str:
    return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class _Difference:
    """A paired difference, whether the intervals over test images overlap all the same, and 1 if more is better or -1."""

    estimate: Estimate
    overlap: bool
    sign: int

    @classmethod
    def of(cls, row: Mapping[Any, Any], sign: int) -> "_Difference":
        return cls(estimate_of(row), bool(row["items_overlap"]), sign)

    @property
    def ahead(self) -> bool:
        return self.sign * self.estimate.mean > 0

    @property
    def surely_ahead(self) -> bool:
        return (self.estimate.ci_low if self.sign > 0 else -self.estimate.ci_high) > 0

    @property
    def shown(self) -> str:
        estimate = self.estimate
        return f"{signed(estimate.mean)} {signed_interval(estimate.ci_low, estimate.ci_high)}".rstrip()

    @property
    def includes_zero(self) -> bool:
        return self.estimate.ci_low <= 0.0 <= self.estimate.ci_high

    @property
    def in_doubt(self) -> bool:
        return self.estimate.n_seeds > 1 and self.overlap and not self.includes_zero


def _a_metric(metric: Metric) -> str:
    words = metric.words if metric.higher_is_better else f"{metric.words} (less is better)"
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _versus(name: str, ours: Estimate, theirs: Estimate, difference: _Difference) -> str:
    start = f"With {name} it is {estimate_text(theirs)}:"
    num_pairs = difference.estimate.n_seeds
    if num_pairs == 1:
        return f"{start} a difference of {difference.shown}, measured once."
    if difference.includes_zero:
        return f"{start} the paired difference {difference.shown} includes zero, so no difference is shown."
    remark = ""
    if difference.overlap:
        remark = ", but the intervals over test images overlap: other images could undo it"
    elif ours.ci_low <= theirs.ci_high and theirs.ci_low <= ours.ci_high:
        remark = ", although the two intervals overlap"
    verdict = "ahead" if difference.ahead else "behind"
    of_what = f" (one GeoKR, {num_pairs} times {name})" if ours.n_seeds == 1 else ""
    return f"{start} GeoKR is {verdict} by {difference.shown}, over {num_pairs} pairs{of_what}{remark}."


def _versus_others(differences: Mapping[str, _Difference]) -> str:
    """The other variants in one sentence: there may be twenty of them."""
    groups: dict[str, list[str]] = {}
    for name, difference in differences.items():
        doubt = ", though other test images could undo it" if difference.in_doubt else ""
        groups.setdefault(_standing(difference), []).append(f"{name} ({signed(difference.estimate.mean)}{doubt})")
    outcomes = "; ".join(f"{standing} {listed(names)}" for standing, names in sorted(groups.items()))
    return f"Among the other variants GeoKR is {outcomes}."


def _standing(difference: _Difference) -> str:
    ahead = "ahead of" if difference.ahead else "behind"
    if difference.estimate.n_seeds == 1:
        return f"in a single measurement {ahead}"
    return "not distinguishable from" if difference.includes_zero else ahead


def _histogram_sentence(theirs: Estimate, difference: _Difference) -> str:
    start = f"The colour histogram, 54 numbers and no network, reaches {estimate_text(theirs)}:"
    if difference.estimate.n_seeds == 1:
        verdict = "better" if difference.ahead else "not better"
        return f"{start} GeoKR is {verdict} in a single measurement ({difference.shown})."
    if not difference.surely_ahead:
        return f"{start} GeoKR does not clear it ({difference.shown})."
    if difference.overlap:
        return (
            f"{start} GeoKR does not surely clear it ({difference.shown}, but the intervals over test images overlap)."
        )
    return f"{start} GeoKR clears it by {difference.shown}."


def estimate_text(estimate: Estimate) -> str:
    """``0.746 [0.731, 0.761]``, or the mean alone where a single measurement gives no interval."""
    shown = score(estimate)
    return f"{shown.mean} {shown.interval}".rstrip()
