"""What is written of all measured cells: results, their summary and differences, confusions and galleries."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd

from geokr_core import __version__
from geokr_core.backbone.bundle import Bundle
from geokr_core.evaluation import output
from geokr_core.evaluation.bench_rows import FILE, bench_rows
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.measuring import Measured
from geokr_core.evaluation.metrics import TaskMetrics
from geokr_core.evaluation.statistics import (
    differences,
    flat_metrics,
    label_efficiency,
    labels_order,
    repetitions,
    sort_rows,
    summarise,
)
from geokr_core.step.files import whole_file, whole_folder, write_json
from geokr_core.step.section import as_plain

RESULT_COLUMNS: Final = (
    "task",
    "dataset",
    "initialisation",
    "label_fraction",
    "labels_per_class",
    "protocol",
    "features",
    "seed",
    "metric",
    "value",
    "n",
    "ci_low",
    "ci_high",
    "backbone_version",
    "data_version",
    "architecture",
    "network",
    "cell",
    "code_version",
)
"""Nothing here depends on when, how fast or at which commit a cell was measured: measured again, it is the same bytes."""

SORTED_BY: Final = ("task", "dataset", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric")


def results_of(measured: Sequence[Measured], tasks: Mapping[str, Mapping[str, Any]], bundle: Bundle) -> pd.DataFrame:
    """One row a metric of each measured cell, `RESULT_COLUMNS`, sorted."""
    backbone_version = bundle.bundle_data_version
    rows = [
        {
            "task": done.cell.task,
            "dataset": done.cell.task,
            "initialisation": done.cell.initialisation,
            "label_fraction": done.measurement.label_fraction,
            "labels_per_class": str(done.cell.labels_per_class),
            "protocol": done.cell.protocol,
            "features": done.cell.features,
            "seed": done.cell.seed,
            "metric": score.metric,
            "value": score.value,
            "n": done.measurement.n,
            "ci_low": score.ci_low,
            "ci_high": score.ci_high,
            "backbone_version": backbone_version,
            "data_version": tasks[done.cell.task]["data_version"],
            "architecture": bundle.architecture,
            "network": done.network,
            "cell": done.digest,
            "code_version": __version__,
        }
        for done in measured
        for score in done.measurement.scores
    ]
    return sort_rows(pd.DataFrame(rows, columns=list(RESULT_COLUMNS)), SORTED_BY)


def write_results(
    out: Path,
    config: EvaluationConfig,
    results: pd.DataFrame,
    measured: Sequence[Measured],
    tasks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write results, their summary, differences, confusions and galleries; `out` appears whole."""
    compared = differences(results, _replicates(measured))
    with whole_folder(out) as folder:
        write_tables(folder, results, compared, config.metrics)
        _write_csv(folder / output.PER_CLASS, _per_class(measured))
        write_json(folder / output.CONFUSION, _confusion(measured))
        write_json(folder / output.DETAILS, {"tasks": tasks, "cells": _details(measured)})
        write_json(folder / output.GALLERY, _gallery(measured))
        beside = bench_rows(measured, str(results["architecture"].iloc[0]))
        if len(beside):
            _write_csv(folder / FILE, beside)
        # Where the sets lie is no part of the result: the data versions in the results say what they were.
        elsewhere = {"folder", "imagenet_weights"}
        write_json(folder / output.SETTINGS, {k: v for k, v in as_plain(config).items() if k not in elsewhere})


def write_tables(folder: Path, results: pd.DataFrame, compared: pd.DataFrame, metrics: TaskMetrics) -> None:
    """Write everything that follows from the results alone.

    Args:
        folder: to write into.
        results: rows of `RESULT_COLUMNS`.
        compared: their ``statistics.differences``.
        metrics: of the tasks.

    Raises:
        OSError: the file system refused.
        EvaluationError: a value is not finite.
    """
    summary = summarise(results)
    with whole_file(folder / output.RESULTS) as partial:
        results.to_parquet(partial, index=False)
    _write_csv(folder / output.SUMMARY, summary)
    _write_csv(folder / output.DIFFERENCES, compared)
    _write_csv(folder / output.EFFICIENCY, label_efficiency(results, metrics))
    write_json(folder / output.METRICS, flat_metrics(summary))


def _replicates(measured: Sequence[Measured]) -> pd.DataFrame:
    """The first metric of every cell on resampled test items, one row a cell, for differences in pairs."""
    rows = [
        {
            **asdict(done.cell),
            "labels_per_class": str(done.cell.labels_per_class),
            "metric": done.measurement.scores[0].metric,
            "replicates": done.measurement.replicates,
        }
        for done in measured
        if done.measurement.replicates
    ]
    columns = ["task", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric", "replicates"]
    return pd.DataFrame(rows, columns=columns)


def _per_class(measured: Sequence[Measured]) -> pd.DataFrame:
    """Mean over `repetitions` of every metric that is known class by class."""
    keys = list(output.PER_CLASS_COLUMNS[:7])
    parts = ["seed", "network"]
    rows = []
    for done in measured:
        cell = done.cell
        head = [cell.task, cell.initialisation, cell.protocol, cell.features, str(cell.labels_per_class)]
        for metric, values in done.measurement.per_class.items():
            for name, value in zip(done.measurement.classes, values, strict=True):
                figure = math.nan if value is None else value
                rows.append([*head, metric, name, cell.seed, done.network, figure])
    table = pd.DataFrame(rows, columns=[*keys, *parts, "value"])
    once = table.groupby([*keys, repetitions(table)], sort=False)["value"].mean().rename("value").reset_index()
    means = once.groupby(keys, sort=False)["value"].agg(["mean", "count"]).reset_index()
    return means.rename(columns={"count": "n_seeds"}).reindex(columns=list(output.PER_CLASS_COLUMNS))


def _details(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    return [{**asdict(done.cell), **done.measurement.details} for done in measured if done.measurement.details]


def _gallery(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Pictures of one cell a task and initialisation: most labels, first seed."""
    chosen: dict[str, dict[str, Any]] = {}
    for done in sorted((d for d in measured if d.measurement.gallery), key=_fewness):
        pictures = {"labels_per_class": str(done.cell.labels_per_class), "png": list(done.measurement.gallery)}
        chosen.setdefault(done.cell.task, {}).setdefault(done.cell.initialisation, pictures)
    return chosen


def _fewness(done: Measured) -> tuple[float, ...]:
    return tuple(-part for part in labels_order(str(done.cell.labels_per_class)))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def _confusion(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """One confusion matrix a task and initialisation: linear probe, last stage, most labels, first seed."""

    def preference(done: Measured) -> tuple[bool, bool, tuple[float, ...]]:
        return done.cell.protocol != "linear_probe", done.cell.features == "multi", _fewness(done)

    chosen: dict[str, dict[str, Any]] = {}
    for done in sorted((d for d in measured if d.measurement.confusion), key=preference):
        of_task = chosen.setdefault(done.cell.task, {})
        if done.cell.initialisation in of_task:
            continue
        of_task[done.cell.initialisation] = {
            "protocol": done.cell.protocol,
            "features": done.cell.features,
            "labels_per_class": str(done.cell.labels_per_class),
            "seed": done.cell.seed,
            "labels": list(done.measurement.classes),
            "matrix": [list(row) for row in done.measurement.confusion],
        }
    return chosen
