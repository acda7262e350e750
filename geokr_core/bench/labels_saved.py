"""How many labelled chips a start saves in mapping: the table and the figure of ``docs/studies/reach.md``, question 1.

python -m geokr_core.bench.labels_saved STORE TASK PAGE PICTURE, where STORE holds an evaluation of TASK at several numbers of chips.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from geokr_core.bench.page import written_between
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import chips_of_labels
from geokr_core.evaluation.statistics import t_interval
from geokr_core.pictures.charts import (
    WIDTH_INCHES,
    chart_legend,
    chart_style,
    encode_chart,
    initialisation_styles,
    legend_handle,
)
from geokr_core.step.files import whole_file

BEGIN: Final = "<!-- labels saved: begin -->"
END: Final = "<!-- labels saved: end -->"

OURS: Final = ("dense", "geokr")
"""Starts that know land cover; the best other start is what they are compared with."""

Course = Mapping[int, float]
"""Score by number of labelled chips."""


def labels_needed(course: Course, level: float) -> float:
    """The number of labels at which a course first reaches a level, linear in the logarithm of the labels between two measurements.

    Args:
        course: at least one measurement.
        level: to be reached.

    Returns:
        At least the fewest labels that were measured, where that is enough already; infinite where the level is never reached.
    """
    counts = sorted(course)
    if course[counts[0]] >= level:
        return float(counts[0])
    for fewer, more in pairwise(counts):
        if course[more] >= level:
            share = (level - course[fewer]) / (course[more] - course[fewer])
            return math.exp(math.log(fewer) + share * math.log(more / fewer))
    return math.inf


def courses_of(results: pd.DataFrame, task: str) -> dict[str, dict[int, Course]]:
    """Mean IoU in percent of each start, seed and number of labelled chips.

    Raises:
        EvaluationError: the evaluation holds no such task, or no number of chips.
    """
    rows = results[(results["task"] == task) & (results["metric"] == "miou")]
    counts = rows["labels_per_class"].map(lambda labels: chips_of_labels(str(labels)))
    rows = rows.assign(chips=counts)[counts.notna()]
    if rows.empty:
        raise EvaluationError(
            f"{task}: no mean IoU from a number of labelled chips; expected an evaluation with `label_chips`."
        )
    found: dict[str, dict[int, Course]] = {}
    for (start, seed), mine in rows.groupby(["initialisation", "seed"], sort=False):
        course = dict(zip(mine["chips"].astype(int), 100.0 * mine["value"], strict=True))
        found.setdefault(str(start), {})[int(str(seed))] = course
    return found


def page_of(courses: Mapping[str, Mapping[int, Course]]) -> str:
    """The table of scores, and a sentence for each of `OURS`."""
    counts = sorted({chips for seeds in courses.values() for course in seeds.values() for chips in course})
    styles = initialisation_styles(courses)
    lines = ["| start | " + " | ".join(str(count) for count in counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for start in styles:
        cells = [_percent([course[count] for course in courses[start].values()]) for count in counts]
        lines.append(f"| `{start}` | " + " | ".join(cells) + " |")
    most = counts[-1]
    others = {start: _mean(courses[start], most) for start in courses if start not in OURS}
    best = max(others, key=others.__getitem__)
    return "\n".join([*lines, "", *(_saved(courses, ours, best, most) for ours in OURS if ours in courses)])


def _saved(courses: Mapping[str, Mapping[int, Course]], ours: str, best: str, most: int) -> str:
    seeds = sorted(set(courses[ours]) & set(courses[best]))
    needed = [labels_needed(courses[ours][seed], courses[best][seed][most]) for seed in seeds]
    shown = ", ".join(f"{number:.1f}" for number in needed)
    if not all(map(math.isfinite, needed)):
        return f"- `{ours}` does not reach in every seed what `{best}`, the best other start, has with {most} (needs {shown})."
    found = t_interval([math.log(most / number) for number in needed])
    factor, low, high = (math.exp(value) for value in (found.mean, found.ci_low, found.ci_high))
    return (
        f"- `{ours}` needs {shown} labelled chips (by seed) for what `{best}`, the best other start, has with {most}: "
        f"**{factor:.1f} times fewer** [{low:.1f}, {high:.1f}], n = {len(seeds)}."
    )


def _mean(seeds: Mapping[int, Course], count: int) -> float:
    return math.fsum(course[count] for course in seeds.values()) / len(seeds)


def _percent(values: Sequence[float]) -> str:
    found = t_interval(values)
    spread = "" if math.isnan(found.ci_high) else f" ± {found.ci_high - found.mean:.1f}"
    return f"{found.mean:.1f}{spread}"


def picture_of(courses: Mapping[str, Mapping[int, Course]]) -> bytes:
    """Mean IoU over labelled chips, a line a start and a band of the 95 % interval over seeds; PNG."""
    styles = initialisation_styles(courses)
    with chart_style():
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        axes = figure.subplots()
        for start, style in styles.items():
            counts = sorted(next(iter(courses[start].values())))
            found = [t_interval([course[count] for course in courses[start].values()]) for count in counts]
            (line,) = axes.plot(
                counts, [one.mean for one in found], color=style.colour, marker=style.marker, markersize=4
            )
            line.set_linestyle(style.line)
            axes.fill_between(
                counts,
                [one.ci_low for one in found],
                [one.ci_high for one in found],
                color=style.colour,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set(xlabel="labelled chips", ylabel="mean IoU of cells, %")
        chart_legend(figure, [legend_handle(style, linestyle=style.line) for style in styles.values()])
        return encode_chart(figure, "png")


def write_page(store: Path, task: str, page: Path, picture: Path) -> None:
    """Write table and sentences between the page's markers, and the figure.

    Raises:
        EvaluationError: see `courses_of`.
        OSError: a file cannot be read or written.
        ValueError: the page has no markers.
    """
    courses = courses_of(pd.read_parquet(store / "evaluation" / "results.parquet"), task)
    write = written_between(page, BEGIN, END)
    write(f"\n{page_of(courses)}\n")
    with whole_file(picture) as partial:
        partial.write_bytes(picture_of(courses))


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
