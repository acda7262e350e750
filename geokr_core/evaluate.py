"""The evaluation: which cells of the comparison are measured, and what is written of them.

A cell is a task, an initialisation, a protocol, features, an amount of labels and a seed. Every finished cell is kept
under a name made of all it depends on, so that a killed evaluation goes on where it was and a changed parameter
repeats only what it touches. How a cell is measured is the task's business (``tasks``); a cell that cannot be measured
ends the step. Nothing here turns an error into a score.
"""

import json
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from geokr_core import __version__
from geokr_core.bundle import WEIGHTS, Bundle, open_bundle
from geokr_core.charts import Style, comparison_chart, initialisation_styles, labels_name
from geokr_core.config import UNTRAINED, Criterion, EvaluationConfig, Initialisation, TaskConfig, as_plain
from geokr_core.errors import EvaluationError
from geokr_core.files import read_json, text_digest, whole_file, whole_folder, write_json
from geokr_core.promotion import CriterionScore, Scorecard
from geokr_core.reporter import Reporter
from geokr_core.statistics import (
    DIFFERENCE_COLUMNS,
    EFFICIENCY_COLUMNS,
    differences,
    flat_metrics,
    headline_rows,
    label_efficiency,
    labels_order,
    repetitions,
    sort_rows,
    summarise,
)
from geokr_core.summary import Number, Summary
from geokr_core.tasks import KINDS, Cell, DownstreamTask, Features, Measurement, Score, Start, open_task
from geokr_core.tasks.stopwatch import measuring

RESULT_COLUMNS: Final = (
    "task", "dataset", "initialisation", "label_fraction", "labels_per_class", "protocol", "features", "seed",
    "metric", "value", "n", "ci_low", "ci_high", "seconds", "backbone_version", "data_version", "architecture",
    "network", "cell", "code_version",
)  # fmt: skip
PER_CLASS_COLUMNS: Final = (
    "task", "initialisation", "protocol", "features", "labels_per_class", "metric", "class", "mean", "n_seeds",
)  # fmt: skip
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Channel statistics that torchvision's ImageNet weights were trained with, red, green, blue."""

SORTED_BY: Final = (
    "task", "dataset", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric",
)  # fmt: skip

_TABLE_ROWS: Final = 50


@dataclass(frozen=True)
class Measured:
    """A finished cell.

    Attributes:
        cell: which one.
        measurement: what came out.
        seconds: that measuring it took.
        compute_seconds: of these, inside forward and backward passes.
        digest: of everything that the scores depend on.
        code_version: of the code that measured it.
        network: digest of the network that was judged.
    """

    cell: Cell
    measurement: Measurement
    seconds: float
    compute_seconds: float = math.nan
    digest: str = ""
    code_version: str = __version__
    network: str = ""


def evaluate(
    config: EvaluationConfig, backbone: Path, pretraining: Path, out: Path, cells: Path, reporter: Reporter
) -> Summary:
    """Judge the pretrained backbone on labelled sets against other initialisations.

    Args:
        config: which cells are measured.
        backbone: folder of the bundle, for architecture, bands and channel statistics.
        pretraining: folder of the pretraining runs, one network a variant and seed.
        out: folder to write into, replaced as a whole and only if every cell was measured: ``results.parquet``,
            ``summary_table.csv``, ``differences.csv``, ``label_efficiency.csv``, ``per_class.csv``, ``confusion.json``,
            ``details.json`` (budgets, notes, what was chosen or left out), ``gallery.json``, ``metrics.json``,
            ``evaluation.json`` (settings).
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
    starts = _Starts(bundle, pretraining, config)
    warnings = starts.shared_pretrainings(config)
    for warning in warnings:
        reporter.warning(warning)
    measured: list[Measured] = []
    tasks: dict[str, dict[str, Any]] = {}
    num_kept = 0
    plans = {task.name: _plan(config, task) for task in config.tasks}
    with reporter.progress("evaluation", sum(len(plan) for plan in plans.values())) as advance:
        for section in config.tasks:
            task = _opened(open_task(section, config), bundle, plans[section.name], reporter)
            tasks[task.name] = {
                "data_version": task.data_version, "budget": dict(task.budget), "notes": list(task.notes),
            }  # fmt: skip
            for cell in plans[section.name]:
                start = starts.of(cell.initialisation, cell.seed)
                found, was_kept = _kept_or_measured(task, cell, start, cells, reporter)
                num_kept += was_kept
                measured.append(replace(found, network=text_digest(dict(start.identity()))))
                advance(1)
    results = _results(measured, tasks, bundle)
    summary = summarise(results)
    _write(out, config, results, summary, measured, tasks)
    numbers = {"num_cells": len(measured), "num_cells_kept": num_kept}
    return _summary(summary, numbers, warnings, initialisation_styles(config.initialisations))


@cache
def _code_version() -> str:
    """The version, and the commit where the code runs from a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__  # installed, or no git on this machine
    return f"{__version__}+g{found.stdout.strip()}"


def score_backbone(
    bundle_folder: Path, config: EvaluationConfig, criteria: Sequence[Criterion], cells: Path, reporter: Reporter
) -> Scorecard:
    """Measure one bundle by some criteria, on the present data.

    Args:
        bundle_folder: the bundle, of any age.
        config: where the sets lie, seeds and budget.
        criteria: which figures.
        cells: folder that keeps finished cells; those that an evaluation of the same weights has left are not repeated.
        reporter: hears every score.

    Returns:
        Each criterion's value by seed, with the data and a digest of the settings it was measured with.

    Raises:
        EvaluationError: a set, a criterion or the bundle cannot be judged.
        MissingInputError: there is no bundle, or a set is missing.
        BackboneError: weights and architecture do not fit together.
    """
    bundle = open_bundle(bundle_folder)
    scores: dict[str, CriterionScore] = {}
    with reporter.progress(f"scoring {bundle.model_name}", len(criteria)) as advance:
        for criterion in criteria:
            scores[criterion.name] = _criterion_score(bundle, config, criterion, cells, reporter)
            advance(1)
    return Scorecard(scores)


def _criterion_score(
    bundle: Bundle, config: EvaluationConfig, criterion: Criterion, cells: Path, reporter: Reporter
) -> CriterionScore:
    section = next((task for task in config.tasks if task.name == criterion.task), None)
    if section is None:
        raise EvaluationError(
            f"champion: task {criterion.task!r} found, expected one of evaluation.tasks "
            f"({', '.join(task.name for task in config.tasks)}). Correct one of the two sections."
        )
    features: Features = "last" if criterion.protocol == "fine_tune" else criterion.features
    plan = [
        Cell(criterion.task, "geokr", criterion.protocol, features, criterion.labels_per_class, seed)
        for seed in config.seeds_of(section)
    ]
    task = _opened(open_task(section, config), bundle, plan, reporter)
    per_seed, replicates = {}, []
    for cell in plan:
        start = _start(bundle, "geokr", cell.seed, bundle.folder / WEIGHTS)
        found = _kept_or_measured(task, cell, start, cells, reporter)[0].measurement
        values = {score.metric: score.value for score in found.scores}
        if criterion.metric not in values:
            raise EvaluationError(
                f"{criterion.name}: {criterion.task} gives {', '.join(values)}, not {criterion.metric!r}; "
                "correct `metric` in section `champion`."
            )
        per_seed[str(cell.seed)] = values[criterion.metric]
        if found.replicates and found.scores[0].metric == criterion.metric:
            replicates.append(found.replicates)
    settings = text_digest(
        [criterion.model_dump(mode="json"), [dict(task.settings(cell)) for cell in plan], __version__]
    )
    resampled = np.mean(replicates, axis=0).round(6).tolist() if len(replicates) == len(plan) else ()
    return CriterionScore(per_seed, task.data_version, settings, tuple(resampled))


def _kept_or_measured(
    task: DownstreamTask, cell: Cell, start: Start, cells: Path, reporter: Reporter
) -> tuple[Measured, bool]:
    """A cell, and whether it was kept from before."""
    digest = _fingerprint(task, cell, start)
    path = cells / f"{digest}.json"
    kept = _read_cell(path, cell, reporter)
    if kept is not None:
        return kept, True
    measured = replace(_measure(task, cell, start, reporter), digest=digest, code_version=_code_version())
    _write_cell(path, measured)
    return measured, False


def _plan(config: EvaluationConfig, task: TaskConfig) -> list[Cell]:
    """The cells of one task, ordered so that a network's features serve all cells that need them."""
    plan = []
    for initialisation in dict.fromkeys(config.initialisations):
        for seed in config.seeds_of(task):
            for protocol, features, labels in KINDS[task.kind].choices(task, config, initialisation):
                plan.append(Cell(task.name, initialisation, protocol, features, labels, seed))
    if not plan:
        raise EvaluationError(
            f"Section `evaluation` asks for no cell at all of {task.name} (initialisations "
            f"{list(config.initialisations)}, protocols {list(config.protocols)}); expected at least one. The colour "
            "histogram has frozen protocols of scene classification only, and these need `features`."
        )
    return plan


def _opened(task: DownstreamTask, bundle: Bundle, plan: Sequence[Cell], reporter: Reporter) -> DownstreamTask:
    """The task, once it is sure that all of its cells can be measured."""
    lacking = [band for band in bundle.bands if band not in task.bands]
    if lacking:
        raise EvaluationError(
            f"{task.name}: found images of the bands {', '.join(task.bands)}, but the backbone reads "
            f"{', '.join(bundle.bands)}; expected every band of the backbone among those of the set. Pretrain with "
            f"`chips.bands: [{', '.join(task.bands)}]`, or evaluate on sets with the backbone's bands."
        )
    for cell in plan:
        task.require(cell)
    for note in task.notes:
        reporter.info(f"{task.name}: {note}")
    return task


def _start(bundle: Bundle, initialisation: Initialisation, seed: int, weights: Path | None) -> Start:
    mean, std = (tuple(round(float(v), 6) for v in part) for part in (bundle.mean, bundle.std))
    if initialisation == "imagenet":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Start(initialisation, seed, bundle.architecture, weights, mean, std, tuple(bundle.bands))


class _Starts:
    """Finds the network of an initialisation and seed among the pretraining runs."""

    def __init__(self, bundle: Bundle, pretraining: Path, config: EvaluationConfig) -> None:
        self._bundle = bundle
        self._folder = pretraining
        self._imagenet = config.imagenet_weights
        self._runs: dict[str, list[Mapping[str, Any]]] = {}

    def of(self, initialisation: Initialisation, seed: int) -> Start:
        """The start of ``initialisation`` for evaluation seed ``seed``."""
        weights = None
        if initialisation == "imagenet":
            weights = self._imagenet_file()
        elif initialisation not in UNTRAINED:
            runs = self._of_variant(initialisation)
            weights = self._folder / str(runs[seed % len(runs)]["folder"]) / "backbone.safetensors"
            if not weights.is_file():
                raise EvaluationError(
                    f"{weights}: no such file, but runs.json lists it; expected the weights of every run. "
                    "Run `geokr pretrain --force`."
                )
        return _start(self._bundle, initialisation, seed, weights)

    def _imagenet_file(self) -> Path:
        architecture = self._bundle.architecture
        given = {str(name): path for name, path in self._imagenet.items()}.get(architecture)
        if given is not None:
            if not given.is_file():
                raise EvaluationError(
                    f"{given}: no such file, but evaluation.imagenet_weights.{architecture} names it; expected "
                    "torchvision-keyed ImageNet weights. Correct the path."
                )
            return given
        import torch
        import torchvision

        url = torchvision.models.get_model_weights(architecture).DEFAULT.url
        cached = Path(torch.hub.get_dir()) / "checkpoints" / str(url).rpartition("/")[2]
        if not cached.is_file():
            raise EvaluationError(
                f"evaluation.initialisations asks for `imagenet`, but evaluation.imagenet_weights names no file for "
                f"{architecture} and {cached} is not there; expected ImageNet weights with torchvision's keys. Name a "
                "file, or take `imagenet` out of the evaluation."
            )
        return cached

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
        seeds = sorted({seed for task in config.tasks for seed in config.seeds_of(task)})
        for variant in dict.fromkeys(config.initialisations):
            if variant in UNTRAINED:
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
    with measuring() as watch:
        measurement = task.measure(cell, start)
    for score in measurement.scores:
        if not math.isfinite(score.value):
            raise EvaluationError(
                f"{_title(cell)}: {score.metric} is {score.value}, expected a number of 0–1. "
                "A score that cannot be computed is none: look at the task's images and the network."
            )
    shown = ", ".join(f"{score.metric} {score.value:.3f}" for score in measurement.scores)
    reporter.info(f"{_title(cell)}: {shown}")
    return Measured(cell, measurement, round(time.monotonic() - started, 3), round(watch.seconds, 3))


def _title(cell: Cell) -> str:
    labels = labels_name(str(cell.labels_per_class))
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
        measurement = Measurement(
            scores, found["n"], found["label_fraction"], tuple(found["classes"]), confusion,
            {metric: tuple(values) for metric, values in found.get("per_class", {}).items()},
            tuple(found.get("replicates", ())), found.get("details", {}), tuple(found.get("gallery", ())),
        )  # fmt: skip
        return Measured(
            cell, measurement, content["seconds"], content.get("compute_seconds", math.nan), path.stem,
            content.get("code_version", __version__),
        )  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        reporter.warning(f"{path}: a kept cell cannot be read ({error}); it is measured again.")
        return None


def _results(measured: Sequence[Measured], tasks: Mapping[str, Mapping[str, Any]], bundle: Bundle) -> pd.DataFrame:
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
            "data_version": tasks[done.cell.task]["data_version"],
            "architecture": bundle.architecture,
            "network": done.network,
            "cell": done.digest,
            "code_version": done.code_version,
        }
        for done in measured
        for score in done.measurement.scores
    ]
    return sort_rows(pd.DataFrame(rows, columns=list(RESULT_COLUMNS)), SORTED_BY)


def _write(
    out: Path,
    config: EvaluationConfig,
    results: pd.DataFrame,
    summary: pd.DataFrame,
    measured: Sequence[Measured],
    tasks: Mapping[str, Mapping[str, Any]],
) -> None:
    compared = differences(results, _replicates(measured))
    with whole_folder(out) as folder:
        with whole_file(folder / "results.parquet") as partial:
            results.to_parquet(partial, index=False)
        _write_csv(folder / "summary_table.csv", summary)
        _write_csv(folder / "differences.csv", compared.reindex(columns=DIFFERENCE_COLUMNS))
        _write_csv(folder / "label_efficiency.csv", label_efficiency(results).reindex(columns=EFFICIENCY_COLUMNS))
        _write_csv(folder / "per_class.csv", _per_class(measured))
        write_json(folder / "confusion.json", _confusion(measured))
        write_json(folder / "details.json", {"tasks": tasks, "cells": _details(measured)})
        write_json(folder / "gallery.json", _gallery(measured))
        write_json(folder / "metrics.json", flat_metrics(summary))
        # Where the sets lie is no part of the result: the data versions in the results say what they were.
        elsewhere = {"folder", "imagenet_weights"}
        write_json(folder / "evaluation.json", {k: v for k, v in as_plain(config).items() if k not in elsewhere})


def _replicates(measured: Sequence[Measured]) -> pd.DataFrame:
    """The first metric of every cell on resampled test items, one row a cell, for differences in pairs."""
    rows = [
        {**asdict(done.cell), "labels_per_class": str(done.cell.labels_per_class),
         "metric": done.measurement.scores[0].metric, "replicates": done.measurement.replicates}
        for done in measured
        if done.measurement.replicates
    ]  # fmt: skip
    columns = ["task", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric", "replicates"]
    return pd.DataFrame(rows, columns=columns)


def _per_class(measured: Sequence[Measured]) -> pd.DataFrame:
    """Mean over `repetitions` of every metric that is known class by class."""
    keys = list(PER_CLASS_COLUMNS[:7])
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
    return means.rename(columns={"count": "n_seeds"}).reindex(columns=list(PER_CLASS_COLUMNS))


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


def _summary(
    summary: pd.DataFrame, counts: Mapping[str, int], warnings: Sequence[str], styles: Mapping[str, Style]
) -> Summary:
    first = headline_rows(summary)
    numbers: dict[str, Number] = {**counts, **flat_metrics(first)}
    table: list[dict[str, Number]] = [
        {str(key): (_shown(value) if isinstance(value, float) else value) for key, value in row.items()}
        for row in first.head(_TABLE_ROWS).to_dict("records")
    ]
    return Summary(numbers, table, comparison_chart(summary, "png", styles), list(warnings))


def _shown(value: float) -> Number:
    """Four digits; blank where a single seed gives no interval."""
    return "" if math.isnan(value) else round(value, 4)
