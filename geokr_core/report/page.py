"""The page that people read: what was compared, what came out, how sure that is, and on what it stands.

`write_report` reads finished outputs and writes ``report.html`` (one file, nothing is fetched from elsewhere, no
scripts), ``report.md`` and ``report.json``, the same facts for programs. It measures nothing. Layout and words around the numbers are in ``templates``, charts in
``charts``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd

from geokr_core import __version__
from geokr_core.backbone.bundle import Bundle, open_bundle
from geokr_core.errors import MissingInputError
from geokr_core.evaluation.charts import comparison_chart, task_words
from geokr_core.evaluation.config import UNTRAINED
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import contrast_sides
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.levir_kr.footprints import map_of
from geokr_core.pictures.charts import initialisation_styles
from geokr_core.pretraining.charts import pretraining_chart
from geokr_core.report.applications import applications
from geokr_core.report.cards import cards, learnt
from geokr_core.report.config import ReportConfig
from geokr_core.report.facts import FACTS, facts
from geokr_core.report.headline import headline, primaries, rows_of
from geokr_core.report.sections import (
    calibration,
    confusions,
    corrections,
    dataset_section,
    example_chips,
    gsd_text,
    run_row,
    spaced,
    svg,
)
from geokr_core.report.tables import Styles, Table, estimate_of, laid_out, listed, score, style_heads
from geokr_core.report.tasks import difference_tables, losses, score_tables, task_sections
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json, whole_file, whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Number, Summary

_INPUTS: Final = ("levir_kr", "pretraining", "backbone", "evaluation")

_SECTIONS: Final = (
    ("comparison", "Comparison", None),
    ("losses", "Where GeoKR loses", "tells_losses"),
    ("differences", "Paired differences", "differences"),
    ("confusion", "Which classes are confused", "confusions"),
    ("efficiency", "Label efficiency", "efficiency"),
    ("classes", "Class by class", "per_class"),
    ("screening", "Cloud screening, scene by scene", "screening"),
    ("predictions", "Predictions", "galleries"),
    ("budgets", "What every initialisation was given", "budgets"),
    ("applications", "In use: vectors, audit, maps", "applications"),
    ("pretraining", "Pretraining", None),
    ("levir-kr", "Levir-KR", None),
    ("provenance", "Provenance", None),
)
"""Anchor and heading of each section of the page, and what of the content it needs."""


def write_report(
    config: ReportConfig,
    inputs: Mapping[str, Path],
    out: Path,
    reporter: Reporter = LOG,
    params_file: str = "params.yaml",
) -> Summary:
    """Write the report.

    Args:
        config: title and number of example chips.
        inputs: folders of ``levir_kr``, ``pretraining``, ``backbone`` and ``evaluation``; where they were made, of ``embeddings``,
            ``map_audit`` and ``land_cover_shares``.
        out: folder to write ``report.html``, ``report.md`` and ``report.json`` into, replaced as a whole.
        reporter: hears the headline.
        params_file: parameter file that the page tells to run again.

    Returns:
        The primary means and differences, a table of the headlines, and the main chart.

    Raises:
        MissingInputError: one of the inputs has not been made.
        DatasetError: a shard of Levir-KR is missing.
    """
    pieces = _Pieces.read(inputs)
    sentences = [headline(pieces.judged, primary) for primary in primaries(pieces.judged)]
    for sentence in sentences:
        reporter.info(sentence)
    content = {**_content(config, inputs, pieces, sentences), "params_file": params_file}
    content["contents"] = [(anchor, name) for anchor, name, shown in _SECTIONS if shown is None or content[shown]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geokr_core.report", "templates"),
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
        write_json(folder / FACTS, facts(content))
    return _summary(pieces, sentences)


@dataclass(frozen=True)
class _Pieces:
    """Everything the page is made of."""

    levir_kr: LevirKR
    bundle: Bundle
    runs: Sequence[Mapping[str, Any]]
    history: pd.DataFrame
    judged: Judged
    styles: Styles

    @classmethod
    def read(cls, inputs: Mapping[str, Path]) -> "_Pieces":
        pretraining = inputs["pretraining"]
        for path in (pretraining / "runs.json", pretraining / "history.csv"):
            if not path.is_file():
                raise MissingInputError(f"{path}: no such file; the report needs it. Run `geokr pretrain` first.")
        judged, runs = Judged.read(inputs["evaluation"]), read_json(pretraining / "runs.json")
        evaluated = judged.results["initialisation"]
        # As they were asked for, which an author does in an order that says something; then whatever else there is.
        named = [*judged.settings.get("initialisations", ()), *evaluated, *(run["variant"] for run in runs)]
        history = pd.read_csv(pretraining / "history.csv")
        return cls(
            levir_kr=open_levir_kr(inputs["levir_kr"]),
            bundle=open_bundle(inputs["backbone"]),
            runs=runs,
            history=history,
            judged=judged,
            styles=initialisation_styles([*named, *history["variant"]]),
        )


def _content(
    config: ReportConfig, inputs: Mapping[str, Path], pieces: _Pieces, sentences: Sequence[str]
) -> dict[str, Any]:
    first, pretraining, styles = pieces.runs[0], inputs["pretraining"], pieces.styles
    return {
        "title": config.title,
        "learnt": learnt(pieces.judged, styles),
        "cards": cards(pieces.judged, styles),
        "headlines": sentences,
        "generated_world": pieces.levir_kr.manifest.get("generated_world") is True,
        "remarks": _remarks(pieces),
        "comparison_svg": svg(comparison_chart(pieces.judged.summary, "svg", styles, pieces.judged.metrics)),
        "headline_table": _headline_table(pieces),
        **task_sections(pieces.judged, styles),
        "tables": score_tables(pieces.judged, styles),
        "losses": (lost := _losses(pieces)),
        "tells_losses": lost is not None,
        "differences": difference_tables(pieces.judged, styles),
        "confusions": confusions(pieces.judged.confusion),
        "applications": applications(inputs),
        "pretraining_svg": svg(pretraining_chart(pieces.history, _constant_kl(first), "svg", styles)),
        "runs": [run_row(run, styles) for run in pieces.runs],
        "calibration": calibration(pretraining, pieces.runs),
        "corrections": corrections(pretraining, pieces.runs, styles),
        "dataset": dataset_section(pieces.levir_kr),
        "map_png": svg(map_of(pieces.levir_kr)),
        "legend": [
            {"name": spaced(name), "colour": colour}
            for name, colour in zip(pieces.levir_kr.classes, pieces.levir_kr.class_colours, strict=True)
        ],
        "chips": example_chips(pieces.levir_kr, config.num_example_chips),
        "provenance": _provenance(inputs, pieces),
        "configurations": _configurations(inputs, pieces),
    }


def _remarks(pieces: _Pieces) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    evaluated = set(pieces.judged.results["initialisation"])
    seeds_of = {str(task): sorted(set(seeds)) for task, seeds in pieces.judged.results.groupby("task")["seed"]}
    remarks = _shared_pretrainings(pieces, evaluated, max(seeds_of.values(), key=len))
    if "shuffled" not in evaluated:
        remarks.append(
            "No control with shuffled land cover was evaluated: how much of the gain the land cover itself carries is "
            "open."
        )
    sizes = pieces.judged.results.groupby("task")["n"].first()
    shown = ", ".join(f"{task_words(str(task))} {int(n)}" for task, n in sizes.items())
    remarks.append(
        f"Intervals are 95 % t-intervals over seeds ({_counts(seeds_of)}), which draw labels, networks and pretrainings. Where one "
        f"frozen network gets all labels there is nothing to draw, and no interval. The error of the test images (n: {shown}) "
        "comes on top; results.parquet has it for every cell."
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
    return ", ".join(f"{task_words(task)} {count}" for task, count in counts.items())


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
    ours = pieces.judged.differences[pieces.judged.differences["contrast"].str.startswith("geokr - ")]
    return losses(pieces.judged, pieces.styles) if (ours["n_seeds"] > 1).any() else None


def _constant_kl(run: Mapping[str, Any]) -> float | None:
    value = run.get("constant_kl")
    return None if value is None else float(value)


def _headline_table(pieces: "_Pieces") -> Table:
    """The primary comparison of each task, with every initialisation."""
    chosen = {primary.task: primary for primary in primaries(pieces.judged)}
    heads = style_heads(pieces.styles, pieces.judged.results["initialisation"])
    entries = {
        (task, name): score(estimate_of(rows.iloc[0].to_dict()))
        for task, primary in chosen.items()
        for name in heads
        if not (rows := rows_of(pieces.judged.summary, primary, str(name))).empty
    }
    settings = {
        task: (primary.words, pieces.judged.metrics.of(task, primary.metric).words) for task, primary in chosen.items()
    }
    return laid_out("Every task at a glance", settings, ("Task", "Metric"), heads, "Initialisation", entries)


def _provenance(inputs: Mapping[str, Path], pieces: _Pieces) -> list[tuple[str, str]]:
    bundle, manifest = pieces.bundle, pieces.levir_kr.manifest
    facts = [
        ("Backbone", f"{bundle.model_name} ({bundle.architecture}, {bundle.feature_dim} features)"),
        ("Bands", ", ".join(bundle.bands)),
        ("Ground sampling distance", gsd_text(bundle.gsd_m_min, bundle.gsd_m_max)),
        ("Chips", f"{manifest['num_chips']} of {manifest['num_scenes']} scene(s), {bundle.chip_size_px} px"),
        ("Legend", f"{manifest['legend']} ({bundle.legend_hash})"),
        *((f"Data version of {step}", data_version(inputs[step])) for step in _INPUTS),
    ]
    versions = pieces.judged.results.groupby("task")["data_version"].first()
    facts += [(f"Data version of the set {task}", str(version)) for task, version in versions.items()]
    return [*facts, ("GeoKR", __version__)]


def _configurations(inputs: Mapping[str, Path], pieces: _Pieces) -> list[dict[str, str]]:
    run = inputs["pretraining"] / str(pieces.runs[0]["folder"]) / "run.json"
    described = [
        ("Data set", pieces.levir_kr.manifest.get("config", {})),
        ("Pretraining", read_json(run).get("config", {}) if run.is_file() else {}),
        ("Evaluation", pieces.judged.settings),
    ]
    return [{"name": name, "text": json.dumps(value, indent=2, sort_keys=True)} for name, value in described if value]


def _summary(pieces: _Pieces, sentences: Sequence[str]) -> Summary:
    numbers: dict[str, Number] = {}
    table: list[dict[str, Number]] = []
    for primary, sentence in zip(primaries(pieces.judged), sentences, strict=True):
        for name in pieces.styles:
            rows = rows_of(pieces.judged.summary, primary, name)
            if not rows.empty:
                numbers[f"{primary.task}/{name}_{primary.metric}"] = round(float(rows["mean"].iloc[0]), 4)
        for row in rows_of(pieces.judged.differences, primary).to_dict("records"):
            first, second = contrast_sides(str(row["contrast"]))
            gain = f"gain_over_{second}" if first == "geokr" else f"{first}_gain_over_{second}"
            sign = pieces.judged.metrics.of(primary.task, primary.metric).sign
            numbers[f"{primary.task}/{gain}"] = round(sign * float(row["mean"]), 4)
        table.append({"task": primary.task, "headline": sentence})
    return Summary(numbers, table, comparison_chart(pieces.judged.summary, "png", pieces.styles, pieces.judged.metrics))
