"""The evaluation: which cells of the comparison are measured.

A cell is a task, an initialisation, a protocol, features, an amount of labels and a seed. Every finished cell is kept
(``measuring``), what is written of them all is in ``results``. How a cell is measured is the task's business
(``tasks``); a cell that cannot be measured ends the step. Nothing here turns an error into a score.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from geokr_core.backbone.bundle import open_bundle
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.ahead import measured_ahead
from geokr_core.evaluation.cells import (
    Cell,
    Choice,
    DownstreamTask,
    EvaluationProtocol,
    Features,
    Labels,
    labels_of_chips,
    labels_of_fraction,
)
from geokr_core.evaluation.charts import comparison_chart
from geokr_core.evaluation.config import EvaluationConfig, Initialisation
from geokr_core.evaluation.measuring import Measured, kept_or_measured
from geokr_core.evaluation.opening import open_task, require_measurable
from geokr_core.evaluation.results import results_of, write_results
from geokr_core.evaluation.score_lines import score_lines
from geokr_core.evaluation.starts import Starts
from geokr_core.evaluation.statistics import flat_metrics, headline_rows, summarise
from geokr_core.evaluation.task_kinds import TaskConfig, TaskKind, kind_of
from geokr_core.pictures.charts import initialisation_styles
from geokr_core.step.digests import text_digest
from geokr_core.step.processes import kept_processes
from geokr_core.step.reporter import LOG, Reporter, Source
from geokr_core.step.summary import Number, Summary

_TABLE_ROWS: Final = 50
_TABLE_COLUMNS: Final = (
    "initialisation",
    "mean",
    "ci_low",
    "ci_high",
    "task",
    "labels_per_class",
    "protocol",
    "features",
    "metric",
    "n_seeds",
)
"""The scores come second: a page that is too narrow cuts what only says where they are from."""


def evaluate(
    config: EvaluationConfig, backbone: Path, pretraining: Path, out: Path, cells: Path, reporter: Reporter = LOG
) -> Summary:
    """Judge the pretrained backbone on labelled sets against other initialisations.

    Args:
        config: which cells are measured.
        backbone: folder of the bundle, for architecture, bands and channel statistics.
        pretraining: folder of the pretraining runs, one network a variant and seed.
        out: folder to write into, replaced as a whole and only if every cell was measured: ``results.parquet``,
            ``summary_table.csv`` and the other files of ``evaluation.output``.
        cells: folder that keeps finished cells, outside ``out``.
        reporter: hears progress and every score.

    Returns:
        Means of each task's first metric, and the summary table.

    Raises:
        EvaluationError: a set, a network or a cell cannot be judged; the message says what to do.
        MissingInputError: there is no bundle.
        BackboneError: weights and architecture do not fit together.
    """
    bundle = open_bundle(backbone)
    starts = Starts(bundle, pretraining, config)
    shared = starts.shared_pretrainings(config)
    # Of a generated world no one concludes anything: there the report's remark is enough.
    warnings = [] if bundle.generated_world else shared
    for line in shared:
        (reporter.info if bundle.generated_world else reporter.warning)(line)
    measured: list[Measured] = []
    tasks: dict[str, dict[str, Any]] = {}
    num_kept = 0
    plans = {task.name: _plan(config, task) for task in config.tasks}
    with (
        reporter.progress("evaluation", sum(len(plan) for plan in plans.values())) as advance,
        kept_processes(),
    ):
        for section in config.tasks:
            task = open_task(section, config)
            require_measurable(task, bundle, plans[section.name], reporter)
            tasks[task.name] = _facts(task, section)
            place = getattr(section, "levir_kr", None) or config.folder / task.name
            reporter.source(Source(task.name, task.data_version, str(place), "evaluation"))
            work = [(cell, starts.of(cell.initialisation, cell.seed)) for cell in plans[section.name]]
            ahead = set[Cell]()
            for done in measured_ahead(config, section, task, work, cells, reporter):
                ahead.update(done)
                advance(len(done))
            for cell, start in work:
                found, was_kept = kept_or_measured(task, cell, start, cells, reporter)
                num_kept += was_kept and cell not in ahead
                measured.append(replace(found, network=text_digest(dict(start.identity()))))
                advance(cell not in ahead)
    results = results_of(measured, tasks, bundle)
    summary = summarise(results)
    write_results(out, config, results, measured, tasks)
    # How long cells took is no part of the results: measured again, they are the same bytes.
    seconds = round(math.fsum(done.seconds for done in measured), 1)
    numbers = {"num_cells": len(measured), "num_cells_kept": num_kept, "cells_seconds": seconds}
    return _summary(summary, numbers, warnings, config)


def _facts(task: DownstreamTask, section: TaskConfig) -> dict[str, Any]:
    """What the outputs tell of a task: whoever reads them needs neither its set nor the package that brings its kind."""
    kind = kind_of(section.kind)
    return {
        "kind": section.kind,
        "data_version": task.data_version,
        "budget": dict(task.budget),
        "notes": list(task.notes),
        "metrics": [asdict(metric) for metric in kind.metrics],
        "metrics_per_class": [asdict(metric) for metric in kind.metrics_per_class],
    }


def _plan(config: EvaluationConfig, task: TaskConfig) -> list[Cell]:
    """The cells of one task, ordered so that a network's features serve all cells that need them."""
    plan = []
    for initialisation in dict.fromkeys(config.initialisations):
        for seed in config.seeds_of(task):
            for protocol, features, labels in _choices(config, task, initialisation):
                plan.append(Cell(task.name, initialisation, protocol, features, labels, seed))
    if not plan:
        raise EvaluationError(
            f"Section `evaluation` asks for no cell at all of {task.name} (initialisations "
            f"{list(config.initialisations)}, protocols {list(config.protocols)}); expected at least one. The colour "
            "histogram has frozen protocols of scene classification only, and these need `features`."
        )
    return plan


def _choices(config: EvaluationConfig, task: TaskConfig, initialisation: Initialisation) -> Iterator[Choice]:
    """Protocols, features and labels that an initialisation is judged by."""
    kind = kind_of(task.kind)
    yield from _frozen_choices(config, task, kind, initialisation)
    if not kind.fine_tunes or not config.is_fine_tuned(initialisation, task):
        return
    if (chips := getattr(task, "label_chips", None)) is not None:
        for number in dict.fromkeys(chips if getattr(task, "fine_tune_steps", None) else ()):
            yield "fine_tune", "last", labels_of_chips(number)
    elif not kind.frozen_protocols:
        for fraction in dict.fromkeys(getattr(task, "label_fractions", None) or config.label_fractions):
            yield "fine_tune", "last", labels_of_fraction(fraction)
    elif "fine_tune" in config.protocols:
        for labels in dict.fromkeys(config.fine_tune_labels_per_class or config.labels_per_class):
            yield "fine_tune", "last", labels


def _frozen_choices(
    config: EvaluationConfig, task: TaskConfig, kind: TaskKind, initialisation: Initialisation
) -> Iterator[Choice]:
    probed: Sequence[Features] = ("histogram",)
    if initialisation != "colour_histogram":
        # All stages first: the last one is part of them.
        probed = sorted(set(getattr(task, "features", None) or config.features), key=("multi", "last").index)
    chips = getattr(task, "label_chips", None)
    amounts: Sequence[Labels] = config.labels_per_class if chips is None else [labels_of_chips(n) for n in chips]
    frozen: tuple[EvaluationProtocol, ...] = ("linear_probe", "knn", "torchgeo_bench_knn5", "torchgeo_bench_linear")
    asked = [name for name in frozen if name in config.protocols and name in kind.frozen_protocols]
    for features in probed:
        for protocol in asked:
            for labels in dict.fromkeys(amounts):
                yield protocol, features, labels


def _summary(
    summary: pd.DataFrame, counts: Mapping[str, Number], warnings: Sequence[str], config: EvaluationConfig
) -> Summary:
    styles = initialisation_styles(config.initialisations)
    first = headline_rows(summary, config.metrics)
    numbers: dict[str, Number] = {**score_lines(summary, config.metrics, styles), **counts, **flat_metrics(first)}
    table: list[dict[str, Number]] = [
        {key: (_shown(row[key]) if isinstance(row[key], float) else row[key]) for key in _TABLE_COLUMNS}
        for row in first.head(_TABLE_ROWS).to_dict("records")
    ]
    return Summary(numbers, table, comparison_chart(summary, "png", styles, config.metrics), list(warnings))


def _shown(value: float) -> Number:
    """Four digits; blank where a single seed gives no interval."""
    return "" if math.isnan(value) else round(value, 4)
