"""Measuring one cell, or taking it from what was kept.

Every finished cell is kept under a name made of all it depends on, so that a killed evaluation is resumed where it was
and a changed parameter repeats only what it touches.
"""

import json
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from geokr_core import __version__
from geokr_core.backbone.bundle import Bundle
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, DownstreamTask, Measurement, Score, Start
from geokr_core.evaluation.charts import labels_name
from geokr_core.networks.stopwatch import measuring
from geokr_core.step.digests import text_digest
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import Reporter


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


def kept_or_measured(
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


def open_tasks(task: DownstreamTask, bundle: Bundle, plan: Sequence[Cell], reporter: Reporter) -> DownstreamTask:
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
