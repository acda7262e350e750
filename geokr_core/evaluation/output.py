"""The folder that an evaluation leaves: what its files are called, and reading them.

Here the layout is named once; who needs a figure of an evaluation reads it through `Judged`. How the tables are made is in
``evaluation.statistics`` and ``evaluation.results``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import pandas as pd

from geokr_core.errors import DamagedOutputError, MissingInputError
from geokr_core.evaluation.metrics import Metric, TaskMetrics
from geokr_core.evaluation.statistics import (
    CELL_KEYS,
    EFFICIENCY_COLUMNS,
    SUMMARY_COLUMNS,
    differences,
    summarise,
)
from geokr_core.evaluation.task_kinds import KNOWN_METRICS
from geokr_core.step.files import read_json

RESULTS: Final = "results.parquet"
"""One row a metric of each cell."""
SUMMARY: Final = "summary_table.csv"
"""Mean and interval over seeds of each cell, ``statistics.SUMMARY_COLUMNS``."""
DIFFERENCES: Final = "differences.csv"
"""Paired differences of initialisations, ``statistics.DIFFERENCE_COLUMNS``."""
EFFICIENCY: Final = "label_efficiency.csv"
"""Labels that one initialisation needs to reach another, ``statistics.EFFICIENCY_COLUMNS``."""
PER_CLASS: Final = "per_class.csv"
"""Metrics of each class, `PER_CLASS_COLUMNS`."""
CONFUSION: Final = "confusion.json"
"""One confusion matrix a task and initialisation."""
DETAILS: Final = "details.json"
"""Kind, metrics, budget and notes of each task, and what was chosen in each cell."""
GALLERY: Final = "gallery.json"
"""Pictures that may be shown."""
METRICS: Final = "metrics.json"
"""Means by name, for ``dvc metrics``."""
SETTINGS: Final = "evaluation.json"
"""The section of the parameter file, without where files lie."""

PER_CLASS_COLUMNS: Final = (
    "task",
    "initialisation",
    "protocol",
    "features",
    "labels_per_class",
    "metric",
    "class",
    "mean",
    "n_seeds",
)


@dataclass(frozen=True)
class Judged:
    """A finished evaluation.

    Attributes:
        results: `RESULTS`.
        summary: `SUMMARY`.
        differences: `DIFFERENCES`.
        efficiency: `EFFICIENCY`.
        per_class: `PER_CLASS`.
        confusion: `CONFUSION`, by task and initialisation.
        tasks: facts of each task, by name.
        cells: what was chosen in each cell.
        gallery: `GALLERY`, by task and initialisation.
        settings: `SETTINGS`.
    """

    results: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    efficiency: pd.DataFrame
    per_class: pd.DataFrame
    confusion: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]
    cells: tuple[Mapping[str, Any], ...]
    gallery: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read an evaluation's folder; what an earlier version did not write is made of the results, or is empty.

        Args:
            folder: output of the step.

        Raises:
            MissingInputError: there is no evaluation.
            DamagedOutputError: a file of it is cut off or holds something else.
        """
        for name in (RESULTS, CONFUSION, SETTINGS):
            if not (folder / name).is_file():
                raise MissingInputError(
                    f"{folder / name}: no such file; the report needs it. Run `geokr evaluate` first."
                )
        results = _read(folder / RESULTS, pd.read_parquet)
        summary = _table(folder / SUMMARY, SUMMARY_COLUMNS)
        compared = _table(folder / DIFFERENCES, [*CELL_KEYS, "contrast", "mean", "ci_low", "ci_high", "n_seeds"])
        details = _content(folder / DETAILS, {"tasks": {}, "cells": []})
        return cls(
            results=results,
            summary=summarise(results) if summary is None else summary,
            differences=compared if compared is not None and "items_overlap" in compared else differences(results),
            efficiency=_or_empty(_table(folder / EFFICIENCY, ["task"]), EFFICIENCY_COLUMNS),
            per_class=_or_empty(_table(folder / PER_CLASS, ["task"]), PER_CLASS_COLUMNS),
            confusion=_content(folder / CONFUSION, {}),
            tasks=details["tasks"],
            cells=tuple(details["cells"]),
            gallery=_content(folder / GALLERY, {}),
            settings=_content(folder / SETTINGS, {}),
        )

    @cached_property
    def metrics(self) -> TaskMetrics:
        """The metrics of all tasks, as the evaluation knew them."""
        return self._metrics_of("metrics")

    @cached_property
    def metrics_per_class(self) -> TaskMetrics:
        """The metrics of each class, likewise."""
        return self._metrics_of("metrics_per_class")

    def _metrics_of(self, key: str) -> TaskMetrics:
        by_task = {
            task: tuple(Metric(**metric) for metric in facts[key]) for task, facts in self.tasks.items() if key in facts
        }
        return TaskMetrics(by_task, KNOWN_METRICS.otherwise)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ValueError, KeyError, OSError) as error:  # those of pyarrow, pandas and json are among them
        raise DamagedOutputError(
            f"{path}: cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}); it is not what the "
            "evaluation wrote. Run `geokr evaluate --force`."
        ) from error


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """A table that has some columns at least; None where there is none."""
    if not path.is_file():
        return None

    def read(path: Path) -> pd.DataFrame:
        table: pd.DataFrame = pd.read_csv(path, dtype={"labels_per_class": str})
        if lacking := [name for name in columns if name not in table]:
            raise ValueError(f"it has no column {lacking[0]!r}")
        return table

    found: pd.DataFrame = _read(path, read)
    return found


def _or_empty(table: pd.DataFrame | None, columns: Sequence[str]) -> pd.DataFrame:
    return table if table is not None and set(columns) <= set(table.columns) else pd.DataFrame(columns=list(columns))


def _content(path: Path, otherwise: Any) -> Any:
    """The content of a JSON file; ``otherwise`` where there is none, whose type it must have."""
    if not path.is_file():
        return otherwise

    def read(path: Path) -> Any:
        content = read_json(path)
        if not isinstance(content, type(otherwise)) or not otherwise.keys() <= content.keys():
            raise ValueError(f"found {type(content).__name__}, expected an object of the evaluation")
        return content

    return _read(path, read)
