"""Rows in the columns of torchgeo-bench's CSV, of cells that were measured by its protocols.

Only what such a cell knows is filled; columns of segmentation and calibration are empty.
"""

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from geokr_core.evaluation.measuring import Measured
from geokr_core.evaluation.protocols.torchgeo_bench import C_RANGE, KNN5, LINEAR, RESAMPLES

FILE: Final = "torchgeo_bench.csv"
"""In the evaluation's folder, where its protocols were asked for."""

COLUMNS: Final = (
    *("dataset", "method", "metric_name", "metric_value", "ci_lower", "ci_upper", "feature_dim", "best_c", "best_lr"),
    *("best_batch_size", "n_train", "n_val", "n_test", "seed", "model", "name", "normalization", "image_size"),
    *("interpolation", "partition", "bands", "num_classes", "config_hash", "c_range_start", "c_range_stop"),
    *("c_range_num", "merge_val", "bootstrap", "res", "pool", "fw_iou", "precision", "recall", "f1", "ece", "rms_ce"),
    *("mce", "ece_ts", "rms_ce_ts", "mce_ts", "temperature", "calibration_n_bins"),
)
"""Columns of torchgeo-bench's rows, in its order."""

_METHODS: Final = {KNN5: "knn5", LINEAR: "linear"}


def bench_rows(measured: Sequence[Measured], architecture: str) -> pd.DataFrame:
    """One row a cell of its protocols.

    Args:
        measured: cells of any protocol.
        architecture: of the networks.
    """
    rows = [_row(done, architecture) for done in measured if done.cell.protocol in _METHODS]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(done: Measured, architecture: str) -> dict[str, Any]:
    cell, score, details = done.cell, done.measurement.scores[0], done.measurement.details
    start, stop, number = C_RANGE
    return {
        "dataset": cell.task,
        "method": _METHODS[cell.protocol],
        "metric_name": score.metric,
        "metric_value": score.value,
        "ci_lower": score.ci_low,
        "ci_upper": score.ci_high,
        "feature_dim": details["feature_dim"],
        "best_c": details["best_c"],
        "n_train": details["num_train"],
        "n_val": details["num_validation"],
        "n_test": done.measurement.n,
        "seed": cell.seed,
        "model": architecture,
        "name": f"{cell.initialisation}/{cell.features}",
        "normalization": "geokr",
        "image_size": details["image_size_px"],
        "interpolation": "bilinear",
        "partition": f"labels_per_class={cell.labels_per_class}",
        "bands": details["bands"],
        "num_classes": len(done.measurement.classes),
        "config_hash": done.digest,
        "c_range_start": start,
        "c_range_stop": stop,
        "c_range_num": number,
        "merge_val": True,
        "bootstrap": RESAMPLES,
    }
