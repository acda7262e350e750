"""The page that people read: what was compared, what came out, how sure that is, and on what it stands.

`write_report` reads finished outputs and writes ``report.html`` (one file, nothing is fetched from elsewhere, no
scripts) and ``report.md``. It measures nothing. Layout and words around the numbers are in ``templates``, charts in
``charts``.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import pandas as pd

from geokr_core import __version__
from geokr_core.bundle import Bundle, open_bundle
from geokr_core.charts import (
    FEATURE_NAMES,
    INITIALISATION_NAMES,
    METRIC_NAMES,
    PROTOCOL_NAMES,
    comparison_chart,
    initialisation_styles,
    labels_name,
    pretraining_chart,
)
from geokr_core.config import UNTRAINED, ReportConfig
from geokr_core.errors import MissingInputError
from geokr_core.files import data_version, read_json, whole_file, whole_folder
from geokr_core.levir_kr import LevirKR, open_levir_kr
from geokr_core.pictures import as_rgb, png
from geokr_core.reporter import Reporter
from geokr_core.statistics import (
    CELL_KEYS,
    Estimate,
    cell_of,
    contrast_sides,
    differences,
    headline_rows,
    intervals_overlap,
    labels_order,
    summarise,
)
from geokr_core.summary import Number, Summary
from geokr_core.task_sections import (
    Entry,
    Head,
    Styles,
    Table,
    difference_tables,
    estimate_of,
    item_intervals,
    laid_out,
    listed,
    losses,
    metric_name,
    score,
    score_tables,
    signed,
    signed_interval,
    style_heads,
    task_sections,
)

_COMMANDS: Final = {
    "levir_kr": "geokr levir-kr",
    "pretraining": "geokr pretrain",
    "backbone": "geokr backbone",
    "evaluation": "geokr evaluate",
}
_DEEPEST_TINT: Final = 0.6
"""Opacity behind a count that is the whole of its row; deeper, the figure could not be read."""
_SMALL_FRACTION: Final = 0.005
"""Classes below half a percent of a chip are not named beside it; their colour still is in the bar."""


@dataclass(frozen=True)
class Primary:
    """The one comparison a task is spoken of by: linear probe, last stage, most labels, first metric."""

    task: str
    protocol: str
    features: str
    labels: str
    metric: str = "accuracy"

    @property
    def words(self) -> str:
        """The comparison in words."""
        protocol = PROTOCOL_NAMES.get(self.protocol, self.protocol)
        if self.protocol == "fine_tune":
            return f"{self.task}, {protocol}, {labels_name(self.labels)}"
        where = f" on the {FEATURE_NAMES[self.features]}" if self.features == "last" else f" on {_features(self)}"
        return f"{self.task}, {protocol}{where}, {labels_name(self.labels)}"


def _features(primary: Primary) -> str:
    return FEATURE_NAMES.get(primary.features, primary.features)


def write_report(
    config: ReportConfig, inputs: Mapping[str, Path], out: Path, reporter: Reporter, params_file: str = "params.yaml"
) -> Summary:
    """Write the report.

    Args:
        config: title and number of example chips.
        inputs: folders of ``levir_kr``, ``pretraining``, ``backbone`` and ``evaluation``.
        out: folder to write ``report.html`` and ``report.md`` into, replaced as a whole.
        reporter: hears the headline.
        params_file: parameter file that the page tells to run again.

    Returns:
        The primary means and differences, a table of the headlines, and the main chart.

    Raises:
        MissingInputError: one of the inputs has not been made.
        DatasetError: a shard of Levir-KR is missing.
    """
    pieces = _Pieces.read(inputs)
    sentences = [headline(pieces.results, primary) for primary in _primaries(pieces.results)]
    for sentence in sentences:
        reporter.info(sentence)
    content = _content(config, inputs, pieces, sentences)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geokr_core", "templates"),
        autoescape=jinja2.select_autoescape(("html", "html.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    with whole_folder(out) as folder:
        for name in ("report.html", "report.md"):
            text = environment.get_template(f"{name}.j2").render(content, params_file=params_file)
            with whole_file(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
    return _summary(pieces, sentences)


@dataclass(frozen=True)
class _Pieces:
    """Everything the page is made of."""

    levir_kr: LevirKR
    bundle: Bundle
    runs: Sequence[Mapping[str, Any]]
    history: pd.DataFrame
    results: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    confusion: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    styles: Styles

    @classmethod
    def read(cls, inputs: Mapping[str, Path]) -> "_Pieces":
        pretraining, evaluation = inputs["pretraining"], inputs["evaluation"]
        needed = {
            "pretraining": [pretraining / "runs.json", pretraining / "history.csv"],
            "evaluation": [evaluation / name for name in ("results.parquet", "confusion.json", "evaluation.json")],
        }
        for step, files in needed.items():
            for path in files:
                if not path.is_file():
                    raise MissingInputError(
                        f"{path}: no such file; the report needs it. Run `{_COMMANDS[step]}` first."
                    )
        results = pd.read_parquet(evaluation / "results.parquet")
        settings, runs = read_json(evaluation / "evaluation.json"), read_json(pretraining / "runs.json")
        # As they were asked for, which an author does in an order that says something; then whatever else there is.
        named = [*settings.get("initialisations", ()), *results["initialisation"], *(run["variant"] for run in runs)]
        history = pd.read_csv(pretraining / "history.csv")
        return cls(
            levir_kr=open_levir_kr(inputs["levir_kr"]),
            bundle=open_bundle(inputs["backbone"]),
            runs=runs,
            history=history,
            results=results,
            summary=summarise(results),
            differences=_with_item_intervals(_compared(results), evaluation),
            confusion=read_json(evaluation / "confusion.json"),
            settings=settings,
            styles=initialisation_styles([*named, *history["variant"]]),
        )


def _compared(results: pd.DataFrame) -> pd.DataFrame:
    """Paired differences, and whether the intervals over test items overlap all the same."""
    table = differences(results)
    return table.assign(overlap=intervals_overlap(table, results))


def _primaries(results: pd.DataFrame) -> list[Primary]:
    found = []
    metrics = headline_rows(results).groupby("task")["metric"].first()
    for task in sorted(set(results["task"])):
        rows = results[(results["task"] == task) & (results["initialisation"] != "colour_histogram")]
        rows = results[results["task"] == task] if rows.empty else rows
        protocol = "linear_probe" if (rows["protocol"] == "linear_probe").any() else str(rows["protocol"].iloc[0])
        rows = rows[rows["protocol"] == protocol]
        features = "last" if (rows["features"] == "last").any() else str(rows["features"].iloc[0])
        labels = max(set(rows[rows["features"] == features]["labels_per_class"]), key=labels_order)
        found.append(Primary(task, protocol, features, labels, str(metrics[task])))
    return found


def _rows(table: pd.DataFrame, primary: Primary, initialisation: str | None = None) -> pd.DataFrame:
    """Rows of the first metric of one comparison; the colour histogram's, whatever features it stands beside."""
    cell = (primary.task, primary.protocol, primary.features, primary.labels, primary.metric)
    keys = [*CELL_KEYS, *(["initialisation"] if initialisation else [])]
    wanted = cell_of(cell, initialisation) if initialisation else cell
    return table[(table[keys] == list(wanted)).all(axis=1)]


def headline(results: pd.DataFrame, primary: Primary) -> str:
    """What was compared and what came out, with intervals, in a few plain sentences.

    Args:
        results: rows of ``results.parquet``.
        primary: the comparison.

    Returns:
        The sentences. Where intervals overlap, a difference includes zero or the colour histogram is not cleared, they
        say so.
    """
    results = results[(results["task"] == primary.task) & (results["metric"] == primary.metric)]
    summary, styles = summarise(results), initialisation_styles(results["initialisation"])
    means = {
        name: estimate_of(rows.iloc[0].to_dict())
        for name in styles
        if not (rows := _rows(summary, primary, name)).empty
    }
    if "geokr" not in means:
        return f"{primary.words}: the pretrained backbone was not evaluated, so nothing can be said about it."
    ours = means["geokr"]
    sentences = [f"{primary.words}: GeoKR reaches {_a_metric(primary.metric)} of {estimate_text(ours)}."]
    table = _rows(_compared(results), primary).set_index("contrast")
    found = {name: _Difference.of(table.loc[f"geokr - {name}"].to_dict()) for name in means if name != "geokr"}
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
            "No colour histogram was evaluated: without it nobody knows whether more than colour was learned."
        )
    if ours.n_seeds == 1:
        sentences.append(
            "GeoKR was measured once (one seed, or one pretraining that was given all labels): no interval, and no claim, "
            "can be made of it."
        )
    return " ".join(sentences)


@dataclass(frozen=True)
class _Difference:
    """A paired difference, and whether the intervals over test images overlap all the same."""

    estimate: Estimate
    overlap: bool

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "_Difference":
        return cls(estimate_of(row), bool(row["overlap"]))

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


def _a_metric(metric: str) -> str:
    name = METRIC_NAMES.get(metric, metric)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


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
    verdict = "ahead" if difference.estimate.mean > 0 else "behind"
    return f"{start} GeoKR is {verdict} by {difference.shown}, over {num_pairs} pairs{remark}."


def _versus_others(differences: Mapping[str, _Difference]) -> str:
    """The other variants in one sentence: there may be twenty of them."""
    groups: dict[str, list[str]] = {}
    for name, difference in differences.items():
        standing, doubt = (
            _standing(difference),
            ", though other test images could undo it" if difference.in_doubt else "",
        )
        groups.setdefault(standing, []).append(f"{name} ({signed(difference.estimate.mean)}{doubt})")
    said = "; ".join(f"{standing} {listed(names)}" for standing, names in sorted(groups.items()))
    return f"Among the other variants GeoKR is {said}."


def _standing(difference: _Difference) -> str:
    ahead = "ahead of" if difference.estimate.mean > 0 else "behind"
    if difference.estimate.n_seeds == 1:
        return f"in a single measurement {ahead}"
    return "not told apart from" if difference.includes_zero else ahead


def _histogram_sentence(theirs: Estimate, difference: _Difference) -> str:
    start = f"The colour histogram, 54 numbers and no network, reaches {estimate_text(theirs)}:"
    if difference.estimate.n_seeds == 1:
        verdict = "above it" if difference.estimate.mean > 0 else "not above it"
        return f"{start} GeoKR is {verdict} in a single measurement ({difference.shown})."
    if difference.estimate.ci_low <= 0:
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


def _content(
    config: ReportConfig, inputs: Mapping[str, Path], pieces: _Pieces, sentences: Sequence[str]
) -> dict[str, Any]:
    first, pretraining, styles = pieces.runs[0], inputs["pretraining"], pieces.styles
    return {
        "title": config.title,
        "headlines": sentences,
        "generated_world": pieces.levir_kr.manifest.get("generated_world") is True,
        "remarks": _remarks(pieces),
        "comparison_svg": _svg(comparison_chart(pieces.summary, "svg", styles)),
        "headline_table": _headline_table(pieces),
        **task_sections(inputs["evaluation"], styles),
        "tables": score_tables(pieces.summary, styles),
        "losses": _losses(pieces),
        "differences": difference_tables(pieces.differences, styles),
        "confusions": _confusions(pieces.confusion),
        "pretraining_svg": _svg(pretraining_chart(pieces.history, _constant_kl(first), "svg", styles)),
        "runs": [_run_row(run, styles) for run in pieces.runs],
        "calibration": _calibration(pretraining, pieces.runs),
        "corrections": _corrections(pretraining, pieces.runs, styles),
        "dataset": _dataset(pieces.levir_kr),
        "legend": [
            {"name": _spaced(name), "colour": colour}
            for name, colour in zip(pieces.levir_kr.classes, pieces.levir_kr.class_colours, strict=True)
        ],
        "chips": _example_chips(pieces.levir_kr, config.num_example_chips),
        "provenance": _provenance(inputs, pieces),
        "configurations": _configurations(inputs, pieces),
    }


def _remarks(pieces: _Pieces) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    evaluated = set(pieces.results["initialisation"])
    seeds_of = {str(task): sorted(set(seeds)) for task, seeds in pieces.results.groupby("task")["seed"]}
    remarks = _shared_pretrainings(pieces, evaluated, max(seeds_of.values(), key=len))
    if "shuffled" not in evaluated:
        remarks.append(
            "No control with shuffled land cover was evaluated: how much of the gain the land cover itself carries is "
            "open."
        )
    sizes = pieces.results.groupby("task")["n"].first()
    shown = ", ".join(f"{task} {int(n)}" for task, n in sizes.items())
    remarks.append(
        f"Intervals are 95 % t-intervals over seeds ({_counts(seeds_of)}): other draws of labels, networks and pretrainings; "
        "where all labels are given to one and the same frozen network, nothing is drawn and there is none. "
        f"The error of drawing the test images themselves (n: {shown}) comes on top; every cell has it in "
        "results.parquet."
    )
    remarks.append(
        "– stands where an initialisation was not evaluated; what is missing enters no mean and no difference."
    )
    return remarks


def _counts(seeds_of: Mapping[str, Sequence[int]]) -> str:
    """How many seeds the tasks have: one number where all have as many."""
    counts = {task: len(seeds) for task, seeds in seeds_of.items()}
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    return ", ".join(f"{task} {count}" for task, count in counts.items())


def _shared_pretrainings(pieces: _Pieces, evaluated: set[str], seeds: Sequence[int]) -> list[str]:
    """A remark for all variants together whose seeds share the same number of pretrainings."""
    variants: dict[tuple[int, int], list[str]] = {}
    for name, style in pieces.styles.items():
        num_runs = sum(run["variant"] == name for run in pieces.runs)
        used = len({seed % num_runs for seed in seeds}) if num_runs else 0
        if name in evaluated and name not in UNTRAINED and used < len(seeds):
            variants.setdefault((used, num_runs), []).append(style.label)
    return [
        f"{listed(names)}: {len(seeds)} evaluation seeds share {used} pretraining(s), seed k using number k modulo "
        f"{num_runs}. Such intervals leave out part of the spread between pretrainings."
        for (used, num_runs), names in variants.items()
    ]


def _losses(pieces: _Pieces) -> list[str] | None:
    """Where `geokr` loses; None where no interval could show it."""
    ours = pieces.differences[pieces.differences["contrast"].str.startswith("geokr - ")]
    return losses(ours, pieces.styles) if (ours["n_seeds"] > 1).any() else None


def _constant_kl(run: Mapping[str, Any]) -> float | None:
    value = run.get("constant_kl")
    return None if value is None else float(value)


def _with_item_intervals(table: pd.DataFrame, evaluation: Path) -> pd.DataFrame:
    known = item_intervals(evaluation)
    if known.empty or table.empty:
        return table
    keys = [*CELL_KEYS, "contrast"]
    bounds = known[[*keys, "items_ci_low", "items_ci_high"]]
    return table.drop(columns=["items_ci_low", "items_ci_high"]).merge(bounds, on=keys, how="left")


def _headline_table(pieces: "_Pieces") -> Table:
    """The primary comparison of each task, with every initialisation."""
    primaries = {primary.task: primary for primary in _primaries(pieces.results)}
    heads = style_heads(pieces.styles, pieces.results["initialisation"])
    entries = {
        (task, name): score(estimate_of(rows.iloc[0].to_dict()))
        for task, primary in primaries.items()
        for name in heads
        if not (rows := _rows(pieces.summary, primary, str(name))).empty
    }
    settings = {task: (primary.words, metric_name(primary.metric)) for task, primary in primaries.items()}
    return laid_out("Every task at a glance", settings, ("Task", "Metric"), heads, "Initialisation", entries)


def _confusions(confusion: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Confusion matrices of the pretrained backbone, each cell with its share of the true class."""
    pages = []
    for task in sorted(confusion):
        found = confusion[task].get("geokr")
        if found is None:
            continue
        rows = []
        for name, counts in zip(found["labels"], found["matrix"], strict=True):
            total = max(1, sum(counts))
            rows.append(
                {"name": name, "cells": [{"count": n, "tint": f"{_DEEPEST_TINT * n / total:.3f}"} for n in counts]}
            )
        features = FEATURE_NAMES.get(found["features"], found["features"])
        pages.append(
            {
                "task": task,
                "labels": found["labels"],
                "rows": rows,
                "caption": f"{PROTOCOL_NAMES[found['protocol']]}, {features}, "
                f"{labels_name(found['labels_per_class'])}, seed {found['seed']}",
            }
        )
    return pages


def _run_row(run: Mapping[str, Any], styles: Styles) -> list[str]:
    def number(key: str) -> str:
        value = run.get(key)
        return "" if value is None else f"{float(value):.3f}"

    return [
        styles[str(run["variant"])].label,
        str(run["seed"]),
        str(run["architecture"]),
        str(run["num_steps"]),
        number("train_kl"),
        number("validation_kl"),
        number("constant_kl"),
    ]


def _calibration(pretraining: Path, runs: Sequence[Mapping[str, Any]]) -> Table | None:
    """Predicted against product shares, class by class, of the first run of `geokr`, where it left them."""
    run = next((run for run in runs if run["variant"] == "geokr"), None)
    path = pretraining / str(run["folder"]) / "calibration.json" if run else pretraining
    if run is None or not path.is_file():
        return None
    columns = [Head(words) for words in ("Product", "Predicted", "Apart within tenths")]
    rows = [
        (
            [Head(_spaced(part["class"]))],
            [Entry(f"{value:.3f}") for value in (part["label"], part["predicted"], _apart(part["bins"]))],
        )
        for part in read_json(path)
    ]
    return Table(f"Calibration of GeoKR, seed {run['seed']}", ("Class",), columns, rows)


def _apart(bins: Sequence[Mapping[str, float]]) -> float:
    """Mean distance of predicted and product share over tenths of the predicted share, each by its chips."""
    num_chips = sum(part["num_chips"] for part in bins)
    return sum(part["num_chips"] * abs(part["predicted"] - part["label"]) for part in bins) / num_chips


def _corrections(pretraining: Path, runs: Sequence[Mapping[str, Any]], styles: Styles) -> list[dict[str, Any]]:
    """What the first run of each variant learned of the product's confusions, where it did; the diagonal tinted."""
    pages: dict[str, dict[str, Any]] = {}
    for run in runs:
        path = pretraining / str(run["folder"]) / "correction.json"
        if str(run["variant"]) in pages or not path.is_file():
            continue
        found = read_json(path)
        rows = []
        for k, (name, shares) in enumerate(zip(found["ground_classes"], found["matrix"], strict=True)):
            tints = [_DEEPEST_TINT * share if column == k else 0.0 for column, share in enumerate(shares)]
            cells = [{"count": f"{s:.2f}", "tint": f"{tint:.3f}"} for s, tint in zip(shares, tints, strict=True)]
            rows.append({"name": _spaced(name), "cells": cells})
        pages[str(run["variant"])] = {
            "title": f"Correction that {styles[str(run['variant'])].label}, seed {run['seed']}, learned",
            "labels": [_spaced(name) for name in found["reported_classes"]],
            "rows": rows,
        }
    return list(pages.values())


def _dataset(levir_kr: LevirKR) -> dict[str, Any]:
    manifest = levir_kr.manifest
    train, validation = levir_kr.rows_of("train"), levir_kr.rows_of("validation")
    shares = levir_kr.proportions.mean(axis=0)
    largest = max(float(shares.max()), 1e-9)
    return {
        "num_chips": f"{int(manifest['num_chips']):,}",
        "num_scenes": int(manifest["num_scenes"]),
        "num_train": f"{len(train):,}",
        "num_validation": f"{len(validation):,}",
        "chip_size_px": levir_kr.chip_size_px,
        "bands": ", ".join(levir_kr.bands),
        "gsd": _gsd(manifest["gsd_m_min"], manifest["gsd_m_max"]),
        "classes": [
            {
                "name": _spaced(name),
                "colour": colour,
                "share": f"{float(share):.4f}",
                "length": f"{100 * float(share) / largest:.2f}",
            }
            for name, colour, share in zip(levir_kr.classes, levir_kr.class_colours, shares, strict=True)
        ],
    }


def _example_chips(levir_kr: LevirKR, num_chips: int) -> list[dict[str, Any]]:
    rows = example_rows(levir_kr.proportions, num_chips)
    if not len(rows):
        return []
    images = as_rgb(levir_kr.images(rows), levir_kr.bands)
    chips = []
    for image, row in zip(images, rows, strict=True):
        shares = levir_kr.proportions[row]
        parts = [
            {
                "name": _spaced(levir_kr.classes[k]),
                "colour": levir_kr.class_colours[k],
                "percent": f"{100 * shares[k]:.2f}",
                "share": f"{shares[k]:.3f}",
            }
            for k in np.flatnonzero(shares > 0)
        ]
        largest = [k for k in np.argsort(-shares, kind="stable")[:3] if shares[k] >= _SMALL_FRACTION]
        words = ", ".join(f"{_spaced(levir_kr.classes[k])} {shares[k]:.2f}" for k in largest)
        chips.append(
            {
                "id": str(levir_kr.catalogue["chip_id"].iloc[row]),
                "png": base64.b64encode(png(image)).decode("ascii"),
                "parts": parts,
                "words": words,
            }
        )
    return chips


def example_rows(proportions: np.ndarray, num_chips: int, seed: int = 0) -> np.ndarray:
    """Chips to show: one of each leading class in turn, so that rare classes are seen too.

    Args:
        proportions: float (N, K).
        num_chips: chips wanted; fewer come where there are fewer.
        seed: of the draw among the chips of a class.

    Returns:
        int64 row numbers, no chip twice.
    """
    leading = proportions.argmax(axis=1)
    order = np.random.default_rng(seed).permutation(len(proportions))
    waiting = [list(order[leading[order] == k]) for k in range(proportions.shape[1])]
    chosen: list[int] = []
    while len(chosen) < min(num_chips, len(proportions)):
        for queue in waiting:
            if queue and len(chosen) < num_chips:
                chosen.append(int(queue.pop(0)))
    return np.array(chosen, dtype=np.int64)


def _provenance(inputs: Mapping[str, Path], pieces: _Pieces) -> list[tuple[str, str]]:
    bundle, manifest = pieces.bundle, pieces.levir_kr.manifest
    facts = [
        ("Backbone", f"{bundle.model_name} ({bundle.architecture}, {bundle.feature_dim} features)"),
        ("Bands", ", ".join(bundle.bands)),
        ("Ground sampling distance", _gsd(bundle.gsd_m_min, bundle.gsd_m_max)),
        ("Chips", f"{manifest['num_chips']} of {manifest['num_scenes']} scene(s), {bundle.chip_size_px} px"),
        ("Legend", f"{manifest['legend']} ({bundle.legend_hash})"),
        *((f"Data version of {step}", data_version(inputs[step])) for step in _COMMANDS),
    ]
    versions = pieces.results.groupby("task")["data_version"].first()
    facts += [(f"Data version of the set {task}", str(version)) for task, version in versions.items()]
    return [*facts, ("GeoKR", __version__)]


def _configurations(inputs: Mapping[str, Path], pieces: _Pieces) -> list[dict[str, str]]:
    run = inputs["pretraining"] / str(pieces.runs[0]["folder"]) / "run.json"
    described = [
        ("Data set", pieces.levir_kr.manifest.get("config", {})),
        ("Pretraining", read_json(run).get("config", {}) if run.is_file() else {}),
        ("Evaluation", pieces.settings),
    ]
    return [{"name": name, "text": json.dumps(value, indent=2, sort_keys=True)} for name, value in described if value]


def _gsd(low_m: float, high_m: float) -> str:
    return f"{low_m:g} m" if low_m == high_m else f"{low_m:g}–{high_m:g} m"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _svg(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")


def _summary(pieces: _Pieces, sentences: Sequence[str]) -> Summary:
    numbers: dict[str, Number] = {}
    table: list[dict[str, Number]] = []
    for primary, sentence in zip(_primaries(pieces.results), sentences, strict=True):
        for name in pieces.styles:
            rows = _rows(pieces.summary, primary, name)
            if not rows.empty:
                numbers[f"{primary.task}/{name}_{primary.metric}"] = round(float(rows["mean"].iloc[0]), 4)
        for row in _rows(pieces.differences, primary).to_dict("records"):
            first, second = contrast_sides(str(row["contrast"]))
            gain = f"gain_over_{second}" if first == "geokr" else f"{first}_gain_over_{second}"
            numbers[f"{primary.task}/{gain}"] = round(float(row["mean"]), 4)
        table.append({"task": primary.task, "headline": sentence})
    return Summary(numbers, table, comparison_chart(pieces.summary, "png", pieces.styles))
