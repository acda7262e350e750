"""The page that people read: what was compared, what came out, how sure that is, and on what it stands.

`write_report` reads finished outputs and writes ``report.html`` (one file, nothing is fetched from elsewhere, no
scripts) and ``report.md``. It measures nothing. Layout and words around the numbers are in ``templates``, charts in
``charts``.
"""

import base64
import json
import math
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
    INITIALISATION_COLOURS,
    INITIALISATION_NAMES,
    METRIC_NAMES,
    PROTOCOL_NAMES,
    comparison_chart,
    labels_name,
    pretraining_chart,
)
from geokr_core.config import ReportConfig
from geokr_core.errors import MissingInputError
from geokr_core.files import data_version, read_json, whole_file, whole_folder
from geokr_core.levir_kr import LevirKR, open_levir_kr
from geokr_core.pictures import as_rgb, png
from geokr_core.reporter import Reporter
from geokr_core.statistics import CELL_KEYS, CONTRASTS, Estimate, differences, headline_rows, labels_order, summarise
from geokr_core.summary import Number, Summary
from geokr_core.task_sections import item_intervals, task_sections

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


def write_report(config: ReportConfig, inputs: Mapping[str, Path], out: Path, reporter: Reporter) -> Summary:
    """Write the report.

    Args:
        config: title and number of example chips.
        inputs: folders of ``levir_kr``, ``pretraining``, ``backbone`` and ``evaluation``.
        out: folder to write ``report.html`` and ``report.md`` into, replaced as a whole.
        reporter: hears the headline.

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
            text = environment.get_template(f"{name}.j2").render(content)
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
        return cls(
            levir_kr=open_levir_kr(inputs["levir_kr"]),
            bundle=open_bundle(inputs["backbone"]),
            runs=read_json(pretraining / "runs.json"),
            history=pd.read_csv(pretraining / "history.csv"),
            results=results,
            summary=summarise(results),
            differences=_with_item_intervals(differences(results), evaluation),
            confusion=read_json(evaluation / "confusion.json"),
            settings=read_json(evaluation / "evaluation.json"),
        )


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
    features = "histogram" if initialisation == "colour_histogram" else primary.features
    chosen = (
        (table["task"] == primary.task)
        & (table["protocol"] == primary.protocol)
        & (table["features"] == features)
        & (table["labels_per_class"] == primary.labels)
        & (table["metric"] == primary.metric)
    )
    return table[chosen & (table["initialisation"] == initialisation)] if initialisation else table[chosen]


def _estimate(row: "pd.Series[Any]") -> Estimate:
    return Estimate(float(row["mean"]), float(row["ci_low"]), float(row["ci_high"]), int(row["n_seeds"]))


def headline(results: pd.DataFrame, primary: Primary) -> str:
    """What was compared and what came out, with intervals, in two or three plain sentences.

    Args:
        results: rows of ``results.parquet``.
        primary: the comparison.

    Returns:
        The sentences. Where intervals overlap, a difference includes zero or the colour histogram is not cleared, they
        say so.
    """
    means = {
        name: _estimate(rows.iloc[0])
        for name in INITIALISATION_COLOURS
        if not (rows := _rows(summarise(results), primary, name)).empty
    }
    if "geokr" not in means:
        return f"{primary.words}: the pretrained backbone was not evaluated, so nothing can be said about it."
    ours = means["geokr"]
    sentences = [f"{primary.words}: GeoKR reaches {_a_metric(primary.metric)} of {estimate_text(ours)}."]
    table = differences(results)
    sentences += [
        _versus(
            INITIALISATION_NAMES[name],
            ours,
            means[name],
            _difference(table, primary, name),
            other_images=_within_image_error(results, primary, name),
        )
        for name in ("random", "imagenet", "shuffled")
        if name in means
    ]
    if "colour_histogram" in means:
        sentences.append(
            _histogram_sentence(
                means["colour_histogram"],
                _difference(table, primary, "colour_histogram"),
                other_images=_within_image_error(results, primary, "colour_histogram"),
            )
        )
    elif primary.protocol == "linear_probe":
        sentences.append(
            "No colour histogram was evaluated: without it nobody knows whether more than colour was learned."
        )
    if ours.n_seeds == 1:
        sentences.append("This is one seed: no interval, and no claim, can be made of it.")
    return " ".join(sentences)


def _a_metric(metric: str) -> str:
    name = METRIC_NAMES.get(metric, metric)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _difference(table: pd.DataFrame, primary: Primary, other: str) -> Estimate:
    rows = _rows(table, primary)
    return _estimate(rows[rows["contrast"] == f"geokr - {other}"].iloc[0])


def _within_image_error(results: pd.DataFrame, primary: Primary, other: str) -> bool:
    """Whether the intervals over test images overlap, averaged over seeds.

    Seeds alone may show no spread at all (all labels, one pretraining): that is no certainty about other images.
    """
    ours, theirs = (_rows(results, primary, name)[["ci_low", "ci_high"]].mean() for name in ("geokr", other))
    return bool(ours["ci_low"] <= theirs["ci_high"] and theirs["ci_low"] <= ours["ci_high"])


def _versus(name: str, ours: Estimate, theirs: Estimate, difference: Estimate, *, other_images: bool) -> str:
    start = f"With {name} it is {estimate_text(theirs)}:"
    if difference.n_seeds == 1:
        return f"{start} a difference of {signed(difference.mean)} in the one seed that was run."
    shown = f"{signed(difference.mean)} [{signed(difference.ci_low)}, {signed(difference.ci_high)}]"
    if difference.ci_low <= 0.0 <= difference.ci_high:
        return f"{start} the paired difference {shown} includes zero, so no difference is shown."
    remark = ""
    if other_images:
        remark = ", but the intervals over test images overlap: other images could undo it"
    elif ours.ci_low <= theirs.ci_high and theirs.ci_low <= ours.ci_high:
        remark = ", although the two intervals overlap"
    verdict = "ahead" if difference.mean > 0 else "behind"
    return f"{start} GeoKR is {verdict} by {shown}, paired over {difference.n_seeds} seeds{remark}."


def _histogram_sentence(theirs: Estimate, difference: Estimate, *, other_images: bool) -> str:
    start = f"The colour histogram, 54 numbers and no network, reaches {estimate_text(theirs)}:"
    if difference.n_seeds == 1:
        verdict = "above it" if difference.mean > 0 else "not above it"
        return f"{start} GeoKR is {verdict} in the one seed that was run ({signed(difference.mean)})."
    shown = f"{signed(difference.mean)} [{signed(difference.ci_low)}, {signed(difference.ci_high)}]"
    if difference.ci_low <= 0:
        return f"{start} GeoKR does not clear it ({shown})."
    if other_images:
        return f"{start} GeoKR does not surely clear it ({shown}, but the intervals over test images overlap)."
    return f"{start} GeoKR clears it by {shown}."


def estimate_text(estimate: Estimate) -> str:
    """``0.746 [0.731, 0.761]``, or the mean alone where a single seed gives no interval."""
    return " ".join(part for part in _cell(estimate).values() if part)


def signed(value: float) -> str:
    """``+0.123`` or ``−0.123``; a true minus sign, so that a range never reads like a subtraction."""
    return f"{value:+.3f}".replace("-", "−")


def _content(
    config: ReportConfig, inputs: Mapping[str, Path], pieces: _Pieces, sentences: Sequence[str]
) -> dict[str, Any]:
    first = pieces.runs[0]
    return {
        "title": config.title,
        "headlines": sentences,
        "generated_world": pieces.levir_kr.manifest.get("generated_world") is True,
        "remarks": _remarks(pieces),
        "comparison_svg": _svg(comparison_chart(pieces.summary, "svg")),
        "headline_table": _headline_table(pieces),
        **task_sections(inputs["evaluation"]),
        "tables": [_table(pieces.summary, metric) for metric in sorted(set(pieces.summary["metric"]))],
        "differences": _difference_rows(pieces.differences, pieces.results),
        "confusions": _confusions(pieces.confusion),
        "pretraining_svg": _svg(pretraining_chart(pieces.history, _constant_kl(first), "svg")),
        "runs": [_run_row(run) for run in pieces.runs],
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
    remarks = []
    seeds = sorted(set(pieces.results["seed"]))
    for variant in ("geokr", "shuffled"):
        if not (pieces.results["initialisation"] == variant).any():
            continue
        num_runs = sum(run["variant"] == variant for run in pieces.runs)
        used = len({seed % num_runs for seed in seeds}) if num_runs else 0
        if used < len(seeds):
            remarks.append(
                f"{INITIALISATION_NAMES[variant]}: {len(seeds)} evaluation seeds share {used} pretraining(s), seed k "
                f"using number k modulo {num_runs}. Its intervals leave out part of the spread between pretrainings."
            )
    if not (pieces.results["initialisation"] == "shuffled").any():
        remarks.append(
            "No control with shuffled land cover was evaluated: how much of the gain the land cover itself carries is "
            "open."
        )
    sizes = pieces.results.groupby("task")["n"].first()
    shown = ", ".join(f"{task} {int(n)}" for task, n in sizes.items())
    remarks.append(
        f"Intervals are 95 % t-intervals over {len(seeds)} seed(s): other draws of labels, networks and pretrainings. "
        f"The error of drawing the test images themselves (n: {shown}) comes on top; every cell has it in "
        "results.parquet."
    )
    return remarks


def _constant_kl(run: Mapping[str, Any]) -> float | None:
    value = run.get("constant_kl")
    return None if value is None else float(value)


def _table(summary: pd.DataFrame, metric: str) -> dict[str, Any]:
    """One row a comparison, one column an initialisation."""
    rows = summary[summary["metric"] == metric]
    columns = [name for name in INITIALISATION_COLOURS if (rows["initialisation"] == name).any()]
    networks = rows[rows["features"] != "histogram"]
    keys = ["task", "protocol", "features", "labels_per_class"]
    combinations = _reading_order((rows if networks.empty else networks)[keys].drop_duplicates())
    body = []
    for task, protocol, features, labels in combinations.itertuples(index=False):
        cells = []
        for name in columns:
            wanted = "histogram" if name == "colour_histogram" else features
            found = rows[
                (rows["task"] == task)
                & (rows["protocol"] == protocol)
                & (rows["features"] == wanted)
                & (rows["labels_per_class"] == labels)
                & (rows["initialisation"] == name)
            ]
            cells.append(None if found.empty else _cell(_estimate(found.iloc[0])))
        head = [task, PROTOCOL_NAMES.get(protocol, protocol), FEATURE_NAMES.get(features, features)]
        body.append({"head": [*head, labels_name(labels)], "cells": cells})
    return {
        "metric": METRIC_NAMES.get(metric, metric.replace("_", " ")),
        "columns": [{"name": INITIALISATION_NAMES[name], "colour": INITIALISATION_COLOURS[name]} for name in columns],
        "rows": body,
    }


def _cell(estimate: Estimate) -> dict[str, str]:
    low, high = estimate.ci_low, estimate.ci_high
    # A t-interval of few seeds may leave the range that a score can have; nobody needs to read that.
    interval = "" if math.isnan(low) else f"[{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
    return {"mean": f"{estimate.mean:.3f}", "interval": interval}


def _reading_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Linear probe before fine-tuning, last stage before all, few labels before many, random before shuffled."""
    orders = {"protocol": list(PROTOCOL_NAMES), "features": list(FEATURE_NAMES)}
    orders["contrast"] = [f"geokr - {name}" for name in CONTRASTS]

    def key(column: "pd.Series[Any]") -> "pd.Series[Any]":
        name = str(column.name)
        if name == "labels_per_class":
            return column.map(labels_order)
        return column.map(orders[name].index) if name in orders else column

    by = [name for name in ("task", "protocol", "features", "labels_per_class", "contrast") if name in rows]
    return rows.sort_values(by, key=key, kind="stable")


def _difference_rows(table: pd.DataFrame, results: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for _, row in _reading_order(headline_rows(table)).iterrows():
        estimate = _estimate(row)
        unknown = math.isnan(estimate.ci_low)
        if unknown:
            verdict = "one seed"
        elif estimate.ci_low <= 0.0 <= estimate.ci_high:
            verdict = "includes zero"
        else:
            verdict = "GeoKR ahead" if estimate.mean > 0 else "GeoKR behind"
            keys = ("task", "protocol", "features", "labels_per_class", "metric")
            primary = Primary(*(str(row[key]) for key in keys))
            if _within_image_error(results, primary, str(row["contrast"]).removeprefix("geokr - ")):
                verdict += "; test intervals overlap"
        rows.append(
            {
                "head": [
                    row["task"],
                    PROTOCOL_NAMES.get(str(row["protocol"]), str(row["protocol"])),
                    FEATURE_NAMES.get(str(row["features"]), str(row["features"])),
                    labels_name(str(row["labels_per_class"])),
                ],
                "contrast": f"GeoKR − {INITIALISATION_NAMES[str(row['contrast']).removeprefix('geokr - ')]}",
                "mean": signed(estimate.mean),
                "interval": "" if unknown else f"[{signed(estimate.ci_low)}, {signed(estimate.ci_high)}]",
                "items": _items_text(row),
                "verdict": verdict,
            }
        )
    return rows


def _items_text(row: "pd.Series[Any]") -> str:
    low, high = (float(row.get(name, math.nan)) for name in ("items_ci_low", "items_ci_high"))
    return "" if math.isnan(low) else f"[{signed(low)}, {signed(high)}]"


def _with_item_intervals(table: pd.DataFrame, evaluation: Path) -> pd.DataFrame:
    known = item_intervals(evaluation)
    if known.empty or table.empty:
        return table
    keys = [*CELL_KEYS, "contrast"]
    bounds = known[[*keys, "items_ci_low", "items_ci_high"]]
    return table.drop(columns=["items_ci_low", "items_ci_high"]).merge(bounds, on=keys, how="left")


def _headline_table(pieces: "_Pieces") -> dict[str, Any]:
    """One row a task, one column an initialisation: the primary comparison of each."""
    primaries = _primaries(pieces.results)
    found = {
        (primary.task, name): _cell(_estimate(rows.iloc[0]))
        for primary in primaries
        for name in INITIALISATION_COLOURS
        if not (rows := _rows(pieces.summary, primary, name)).empty
    }
    columns = [name for name in INITIALISATION_COLOURS if any(name == key[1] for key in found)]
    return {
        "columns": [{"name": INITIALISATION_NAMES[name], "colour": INITIALISATION_COLOURS[name]} for name in columns],
        "rows": [
            {
                "head": [primary.words, METRIC_NAMES.get(primary.metric, primary.metric)],
                "cells": [found.get((primary.task, name)) for name in columns],
            }
            for primary in primaries
        ],
    }


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


def _run_row(run: Mapping[str, Any]) -> list[str]:
    def number(key: str) -> str:
        value = run.get(key)
        return "" if value is None else f"{float(value):.3f}"

    variant = str(run["variant"])
    return [
        INITIALISATION_NAMES.get(variant, variant),
        str(run["seed"]),
        str(run["architecture"]),
        str(run["num_steps"]),
        number("train_kl"),
        number("validation_kl"),
        number("constant_kl"),
    ]


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
        for name in INITIALISATION_COLOURS:
            rows = _rows(pieces.summary, primary, name)
            if not rows.empty:
                numbers[f"{primary.task}/{name}_{primary.metric}"] = round(float(rows["mean"].iloc[0]), 4)
        for row in _rows(pieces.differences, primary).to_dict("records"):
            name = str(row["contrast"]).removeprefix("geokr - ")
            numbers[f"{primary.task}/gain_over_{name}"] = round(float(row["mean"]), 4)
        table.append({"task": primary.task, "headline": sentence})
    return Summary(numbers, table, comparison_chart(pieces.summary, "png"))
