"""The evaluation: which cells of the comparison are measured, and what is written of them.

A cell is a task, an initialisation, a protocol, features, an amount of labels and a seed. Every finished cell is kept
under a name made of all it depends on, so that a killed evaluation goes on where it was and a changed parameter
repeats only what it touches. How a cell is measured is the task's business (``tasks``); a cell that cannot be measured
ends the step. Nothing here turns an error into a score.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from geokr_core import __version__
from geokr_core.bundle import WEIGHTS, Bundle, open_bundle
from geokr_core.charts import comparison_chart
from geokr_core.config import ChampionConfig, EvaluationConfig, as_plain
from geokr_core.errors import EvaluationError
from geokr_core.files import read_json, text_digest, whole_file, whole_folder, write_json
from geokr_core.reporter import Reporter
from geokr_core.statistics import (
    DIFFERENCE_COLUMNS,
    differences,
    flat_metrics,
    labels_order,
    sort_rows,
    summarise,
    t_interval,
)
from geokr_core.summary import Number, Summary
from geokr_core.tasks import (
    Cell,
    DownstreamTask,
    EvaluationProtocol,
    Features,
    Initialisation,
    Labels,
    Measurement,
    Score,
    Start,
    open_task,
)

RESULT_COLUMNS: Final = (
    "task", "dataset", "initialisation", "label_fraction", "labels_per_class", "protocol", "features", "seed",
    "metric", "value", "n", "ci_low", "ci_high", "seconds", "backbone_version", "data_version", "architecture",
)  # fmt: skip
SORTED_BY: Final = (
    "task", "dataset", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric",
)  # fmt: skip

_TABLE_ROWS: Final = 50


@dataclass(frozen=True)
class Measured:
    """A finished cell."""

    cell: Cell
    measurement: Measurement
    seconds: float


def evaluate(
    config: EvaluationConfig, backbone: Path, pretraining: Path, out: Path, cells: Path, reporter: Reporter
) -> Summary:
    """Judge the pretrained backbone on labelled sets against other initialisations.

    Args:
        config: which cells are measured.
        backbone: folder of the bundle, for architecture, bands and channel statistics.
        pretraining: folder of the pretraining runs, one network a variant and seed.
        out: folder to write into, replaced as a whole and only if every cell was measured: ``results.parquet``,
            ``summary_table.csv``, ``differences.csv``, ``confusion.json``, ``metrics.json``, ``evaluation.json`` (settings).
        cells: folder that keeps finished cells, outside ``out``.
        reporter: hears progress and every score.

    Returns:
        Mean accuracies, and the summary table.

    Raises:
        EvaluationError: a set, a network or a cell cannot be judged; the message says what to do.
        MissingInputError: there is no bundle.
        BackboneError: weights and architecture do not fit together.
    """
    bundle = open_bundle(backbone)
    starts = _Starts(bundle, pretraining)
    warnings = starts.shared_pretrainings(config)
    for warning in warnings:
        reporter.warning(warning)
    measured: list[Measured] = []
    versions: dict[str, str] = {}
    num_kept = 0
    plans = {task.name: _plan(config, task.name) for task in config.tasks}
    with reporter.progress("evaluation", sum(len(plan) for plan in plans.values())) as advance:
        for section in config.tasks:
            task = _opened(open_task(section, config), bundle, plans[section.name], reporter)
            versions[task.name] = task.data_version
            for cell in plans[section.name]:
                start = starts.of(cell.initialisation, cell.seed)
                path = cells / f"{_fingerprint(task, cell, start)}.json"
                kept = _read_cell(path, cell, reporter)
                if kept is None:
                    kept = _measure(task, cell, start, reporter)
                    _write_cell(path, kept)
                else:
                    num_kept += 1
                measured.append(kept)
                advance(1)
    results = _results(measured, versions, bundle)
    summary = summarise(results)
    _write(out, config, results, summary, measured)
    numbers = {"num_cells": len(measured), "num_cells_kept": num_kept}
    return _summary(summary, numbers, warnings)


def score_backbone(
    bundle_folder: Path, config: EvaluationConfig, champion: ChampionConfig, reporter: Reporter
) -> dict[str, float | int | str]:
    """Measure the primary metric of one bundle on the present data.

    Args:
        bundle_folder: the bundle, of any age.
        config: where the sets lie, seeds and budget.
        champion: which cell decides.
        reporter: hears every score.

    Returns:
        ``value`` (mean over seeds), ``seed_<k>`` for each seed, ``ci_low`` and ``ci_high`` (t-interval over seeds, NaN
        for a single one), ``n`` (test items), ``metric``, ``data_version`` of the set and ``backbone_version``.

    Raises:
        EvaluationError: the set or the bundle cannot be judged.
        MissingInputError: there is no bundle.
        BackboneError: weights and architecture do not fit together.
    """
    bundle = open_bundle(bundle_folder)
    section = next((task for task in config.tasks if task.name == champion.task), None)
    if section is None:
        raise EvaluationError(
            f"champion.task is {champion.task!r}, expected one of evaluation.tasks "
            f"({', '.join(task.name for task in config.tasks)}). Correct one of the two sections."
        )
    features: Features = champion.features if champion.protocol == "linear_probe" else "last"
    plan = [
        Cell(champion.task, "geokr", champion.protocol, features, champion.labels_per_class, seed)
        for seed in dict.fromkeys(config.seeds)
    ]
    task = _opened(open_task(section, config), bundle, plan, reporter)
    per_seed: dict[str, float] = {}
    num_items = 0
    with reporter.progress(f"scoring {bundle.model_name}", len(plan)) as advance:
        for cell in plan:
            start = _start(bundle, "geokr", cell.seed, bundle_folder / WEIGHTS)
            found = _measure(task, cell, start, reporter).measurement
            value = next(score.value for score in found.scores if score.metric == champion.metric)
            per_seed[f"seed_{cell.seed}"], num_items = value, found.n
            advance(1)
    estimate = t_interval(list(per_seed.values()))
    return {
        "value": estimate.mean,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "n": num_items,
        "metric": champion.metric,
        "data_version": task.data_version,
        "backbone_version": bundle.bundle_data_version,
        **per_seed,
    }


def _plan(config: EvaluationConfig, task: str) -> list[Cell]:
    """The cells of one task, ordered so that a network's features serve all cells that need them."""
    plan = []
    for initialisation in dict.fromkeys(config.initialisations):
        for seed in dict.fromkeys(config.seeds):
            for protocol, features, labels in _choices(config, initialisation):
                plan.append(Cell(task, initialisation, protocol, features, labels, seed))
    if not plan:
        raise EvaluationError(
            f"Section `evaluation` asks for no cell at all (initialisations {list(config.initialisations)}, protocols "
            f"{list(config.protocols)}); expected at least one. The colour histogram has a linear probe only, and a "
            "linear probe needs `features`."
        )
    return plan


def _choices(
    config: EvaluationConfig, initialisation: Initialisation
) -> Iterator[tuple[EvaluationProtocol, Features, Labels]]:
    probed: Sequence[Features] = ("histogram",)
    if initialisation != "colour_histogram":
        # All stages first: the last one is part of them.
        probed = sorted(set(config.features), key=("multi", "last").index)
    if "linear_probe" in config.protocols:
        for features in probed:
            for labels in dict.fromkeys(config.labels_per_class):
                yield "linear_probe", features, labels
    if "fine_tune" in config.protocols and initialisation != "colour_histogram":
        for labels in dict.fromkeys(config.fine_tune_labels_per_class or config.labels_per_class):
            yield "fine_tune", "last", labels


def _opened(task: DownstreamTask, bundle: Bundle, plan: Sequence[Cell], reporter: Reporter) -> DownstreamTask:
    """The task, once it is sure that all of its cells can be measured."""
    if task.bands != bundle.bands:
        raise EvaluationError(
            f"{task.name}: found images of the bands {', '.join(task.bands)}, but the backbone reads "
            f"{', '.join(bundle.bands)}; expected the same bands in the same order. Pretrain with `chips.bands: "
            f"[{', '.join(task.bands)}]`, or evaluate on sets with the backbone's bands."
        )
    for cell in plan:
        task.require(cell)
    for note in task.notes:
        reporter.info(f"{task.name}: {note}")
    return task


def _start(bundle: Bundle, initialisation: Initialisation, seed: int, weights: Path | None) -> Start:
    mean, std = (tuple(round(float(v), 6) for v in part) for part in (bundle.mean, bundle.std))
    return Start(initialisation, seed, bundle.architecture, weights, mean, std)


class _Starts:
    """Finds the network of an initialisation and seed among the pretraining runs."""

    def __init__(self, bundle: Bundle, pretraining: Path) -> None:
        self._bundle = bundle
        self._folder = pretraining
        self._runs: dict[str, list[Mapping[str, Any]]] = {}

    def of(self, initialisation: Initialisation, seed: int) -> Start:
        """The start of ``initialisation`` for evaluation seed ``seed``."""
        weights = None
        if initialisation in {"geokr", "shuffled"}:
            runs = self._of_variant(initialisation)
            weights = self._folder / str(runs[seed % len(runs)]["folder"]) / "backbone.safetensors"
            if not weights.is_file():
                raise EvaluationError(
                    f"{weights}: no such file, but runs.json lists it; expected the weights of every run. "
                    "Run `geokr pretrain --force`."
                )
        return _start(self._bundle, initialisation, seed, weights)

    def _of_variant(self, variant: str) -> list[Mapping[str, Any]]:
        if variant in self._runs:
            return self._runs[variant]
        path = self._folder / "runs.json"
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file; expected the list of pretraining runs. Run `geokr pretrain`.")
        everything = read_json(path)
        runs = [run for run in everything if run["variant"] == variant]
        if not runs:
            there = ", ".join(sorted({str(run["variant"]) for run in everything})) or "none"
            raise EvaluationError(
                f"{path}: found the variants {there}, but evaluation.initialisations asks for {variant!r}. "
                "Add it to `pretraining.variants` and run `geokr pretrain`, or take it out of the evaluation."
            )
        for run in runs:
            if run["architecture"] != self._bundle.architecture:
                raise EvaluationError(
                    f"{path}: run {run['folder']} is a {run['architecture']}, the bundle {self._bundle.folder} a "
                    f"{self._bundle.architecture}; expected one architecture. Run `geokr backbone` again."
                )
        self._runs[variant] = runs
        return runs

    def shared_pretrainings(self, config: EvaluationConfig) -> list[str]:
        """A warning for each variant that has fewer pretrainings than the evaluation has seeds."""
        warnings = []
        seeds = list(dict.fromkeys(config.seeds))
        for variant in ("geokr", "shuffled"):
            if variant not in config.initialisations:
                continue
            num_runs = len({seed % len(self._of_variant(variant)) for seed in seeds})
            if num_runs < len(seeds):
                warnings.append(
                    f"{variant}: {len(seeds)} evaluation seeds share {num_runs} pretraining(s), so the intervals over "
                    "seeds leave out part of the spread between pretrainings. Set as many `pretraining.seeds`."
                )
        return warnings


def _fingerprint(task: DownstreamTask, cell: Cell, start: Start) -> str:
    import torch

    return text_digest(
        {
            "cell": asdict(cell),
            "start": start.identity(),
            "settings": dict(task.settings(cell)),
            "data_version": task.data_version,
            "code": [__version__, torch.__version__],
        }
    )


def _measure(task: DownstreamTask, cell: Cell, start: Start, reporter: Reporter) -> Measured:
    started = time.monotonic()
    measurement = task.measure(cell, start)
    for score in measurement.scores:
        if not math.isfinite(score.value):
            raise EvaluationError(
                f"{_title(cell)}: {score.metric} is {score.value}, expected a number of 0–1. "
                "A score that cannot be computed is none: look at the task's images and the network."
            )
    shown = ", ".join(f"{score.metric} {score.value:.3f}" for score in measurement.scores)
    reporter.info(f"{_title(cell)}: {shown}")
    return Measured(cell, measurement, round(time.monotonic() - started, 3))


def _title(cell: Cell) -> str:
    labels = "all labels" if cell.labels_per_class == "all" else f"{cell.labels_per_class} labels a class"
    return f"{cell.task}, {cell.initialisation}, {cell.protocol}, {cell.features}, {labels}, seed {cell.seed}"


def _write_cell(path: Path, measured: Measured) -> None:
    content = asdict(measured)
    for score in content["measurement"]["scores"]:
        for bound in ("ci_low", "ci_high"):
            score[bound] = score[bound] if math.isfinite(score[bound]) else None
    write_json(path, content)


def _read_cell(path: Path, cell: Cell, reporter: Reporter) -> Measured | None:
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        found = content["measurement"]
        scores = tuple(
            Score(
                score["metric"],
                score["value"],
                *(math.nan if score[b] is None else score[b] for b in ("ci_low", "ci_high")),
            )
            for score in found["scores"]
        )
        confusion = tuple(tuple(row) for row in found["confusion"])
        measurement = Measurement(scores, found["n"], found["label_fraction"], tuple(found["classes"]), confusion)
        return Measured(cell, measurement, content["seconds"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        reporter.warning(f"{path}: a kept cell cannot be read ({error}); it is measured again.")
        return None


def _results(measured: Sequence[Measured], versions: Mapping[str, str], bundle: Bundle) -> pd.DataFrame:
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
            "seconds": done.seconds,
            "backbone_version": backbone_version,
            "data_version": versions[done.cell.task],
            "architecture": bundle.architecture,
        }
        for done in measured
        for score in done.measurement.scores
    ]
    return sort_rows(pd.DataFrame(rows, columns=list(RESULT_COLUMNS)), SORTED_BY)


def _write(
    out: Path, config: EvaluationConfig, results: pd.DataFrame, summary: pd.DataFrame, measured: Sequence[Measured]
) -> None:
    with whole_folder(out) as folder:
        with whole_file(folder / "results.parquet") as partial:
            results.to_parquet(partial, index=False)
        _write_csv(folder / "summary_table.csv", summary)
        _write_csv(folder / "differences.csv", differences(results).reindex(columns=DIFFERENCE_COLUMNS))
        write_json(folder / "confusion.json", _confusion(measured))
        write_json(folder / "metrics.json", flat_metrics(summary))
        # Where the sets lie is no part of the result: the data versions in the results say what they were.
        write_json(folder / "evaluation.json", {k: v for k, v in as_plain(config).items() if k != "folder"})


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def _confusion(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """One confusion matrix a task and initialisation: linear probe, last stage, most labels, first seed."""

    def preference(done: Measured) -> tuple[bool, bool, tuple[int, int]]:
        cell = done.cell
        fewness = tuple(-part for part in labels_order(str(cell.labels_per_class)))
        return cell.protocol != "linear_probe", cell.features == "multi", (fewness[0], fewness[1])

    chosen: dict[str, dict[str, Any]] = {}
    for done in sorted(measured, key=preference):
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


def _summary(summary: pd.DataFrame, counts: Mapping[str, int], warnings: Sequence[str]) -> Summary:
    accuracy = summary[summary["metric"] == "accuracy"]
    numbers: dict[str, Number] = {**counts, **flat_metrics(accuracy)}
    table: list[dict[str, Number]] = [
        {str(key): (_shown(value) if isinstance(value, float) else value) for key, value in row.items()}
        for row in accuracy.drop(columns="metric").head(_TABLE_ROWS).to_dict("records")
    ]
    return Summary(numbers, table, comparison_chart(summary, "png"), list(warnings))


def _shown(value: float) -> Number:
    """Four digits; blank where a single seed gives no interval."""
    return "" if math.isnan(value) else round(value, 4)
