"""The parts of the page: data set, runs, corrections, confusions, example chips."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import PROTOCOL_NAMES, features_words, in_order, task_words
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pictures.images import as_rgb, png
from geokr_core.report.tables import Entry, Head, Styles, Table
from geokr_core.step.files import read_json

_DEEPEST_TINT: Final = 0.6
"""Opacity behind a count that is the whole of its row; deeper, the figure could not be read."""
_SMALL_FRACTION: Final = 0.005
"""Classes below half a percent of a chip are not named beside it; their colour still is in the bar."""


def confusions(confusion: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Confusion matrices of the pretrained backbone, each cell with its share of the true class."""
    pages = []
    for task in in_order(confusion):
        found = confusion[task].get("geokr")
        if found is None:
            continue
        rows = []
        for name, counts in zip(found["labels"], found["matrix"], strict=True):
            total = max(1, sum(counts))
            rows.append(
                {
                    "name": spaced(name),
                    "cells": [{"count": n, "tint": f"{_DEEPEST_TINT * n / total:.3f}"} for n in counts],
                }
            )
        features = features_words(found["protocol"], found["features"])
        pages.append(
            {
                "task": task_words(task),
                "labels": [spaced(name) for name in found["labels"]],
                "rows": rows,
                "caption": f"{PROTOCOL_NAMES[found['protocol']]}, {features}, "
                f"{labels_name(found['labels_per_class'])}, seed {found['seed']}",
            }
        )
    return pages


def run_row(run: Mapping[str, Any], styles: Styles) -> list[str]:
    """A pretraining run as a row of the table of runs."""

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
        number("validation_constant_kl") or number("constant_kl"),
    ]


def calibration(pretraining: Path, runs: Sequence[Mapping[str, Any]]) -> Table | None:
    """Predicted against product shares, class by class, of the first run of `geokr`, where it left them."""
    run = next((run for run in runs if run["variant"] == "geokr"), None)
    path = pretraining / str(run["folder"]) / "calibration.json" if run else pretraining
    if run is None or not path.is_file():
        return None
    columns = [Head(words) for words in ("Product", "Predicted", "Calibration error")]
    rows = [
        (
            [Head(spaced(part["class"]))],
            [Entry(f"{value:.3f}") for value in (part["label"], part["predicted"], _apart(part["bins"]))],
        )
        for part in read_json(path)
    ]
    return Table(f"Calibration of GeoKR, seed {run['seed']}", ("Class",), columns, rows)


def _apart(bins: Sequence[Mapping[str, float]]) -> float:
    """Mean distance of predicted and product share over tenths of the predicted share, each by its chips."""
    num_chips = sum(part["num_chips"] for part in bins)
    return sum(part["num_chips"] * abs(part["predicted"] - part["label"]) for part in bins) / num_chips


def corrections(pretraining: Path, runs: Sequence[Mapping[str, Any]], styles: Styles) -> list[dict[str, Any]]:
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
            rows.append({"name": spaced(name), "cells": cells})
        pages[str(run["variant"])] = {
            "title": f"Correction that {styles[str(run['variant'])].label}, seed {run['seed']}, learned",
            "labels": [spaced(name) for name in found["reported_classes"]],
            "rows": rows,
        }
    return list(pages.values())


def dataset_section(levir_kr: LevirKR) -> dict[str, Any]:
    """What the page says of the data set."""
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
        "gsd": gsd_text(manifest["gsd_m_min"], manifest["gsd_m_max"]),
        "classes": [
            {
                "name": spaced(name),
                "colour": colour,
                "share": f"{float(share):.4f}",
                "length": f"{100 * float(share) / largest:.2f}",
            }
            for name, colour, share in zip(levir_kr.classes, levir_kr.class_colours, shares, strict=True)
        ],
    }


def example_chips(levir_kr: LevirKR, num_chips: int) -> list[dict[str, Any]]:
    """A few chips with their pictures and land-cover proportions."""
    rows = example_rows(levir_kr.proportions, num_chips)
    if not len(rows):
        return []
    images = as_rgb(levir_kr.images(rows), levir_kr.bands)
    chips = []
    for image, row in zip(images, rows, strict=True):
        shares = levir_kr.proportions[row]
        parts = [
            {
                "name": spaced(levir_kr.classes[k]),
                "colour": levir_kr.class_colours[k],
                "percent": f"{100 * shares[k]:.2f}",
                "share": f"{shares[k]:.3f}",
            }
            for k in np.flatnonzero(shares > 0)
        ]
        largest = [k for k in np.argsort(-shares, kind="stable")[:3] if shares[k] >= _SMALL_FRACTION]
        words = ", ".join(f"{spaced(levir_kr.classes[k])} {shares[k]:.2f}" for k in largest)
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


def gsd_text(low_m: float, high_m: float) -> str:
    """A range of ground sampling distances in words."""
    return f"{low_m:g} m" if low_m == high_m else f"{low_m:g}–{high_m:g} m"


def spaced(name: str) -> str:
    """A name with spaces for underscores."""
    return name.replace("_", " ")


def svg(picture: bytes) -> str:
    """A picture's bytes as base64, for the page itself."""
    return base64.b64encode(picture).decode("ascii")
