"""Measuring one cell, or taking it from what was kept.

Every finished cell is kept under a name made of all it depends on, so that a killed evaluation is resumed where it was
and a changed parameter repeats only what it touches.
"""

import json
import math
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from geokr_core import __version__
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, DownstreamTask, Measurement, Score, Start, labels_name
from geokr_core.evaluation.config import EvaluationConfig
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
        commit: of the code that measured it; empty where it does not run from a checkout.
        network: digest of the network that was judged.
    """

    cell: Cell
    measurement: Measurement
    seconds: float
    compute_seconds: float = math.nan
    digest: str = ""
    commit: str = ""
    network: str = ""


@cache
def _commit() -> str:
    """The commit, where the code runs from a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # installed, or no git on this machine
    return found.stdout.strip()


def kept_or_measured(
    task: DownstreamTask, cell: Cell, start: Start, cells: Path, reporter: Reporter
) -> tuple[Measured, bool]:
    """A cell, and whether it was kept from before.

    Raises:
        EvaluationError: the cell cannot be measured, or a score is not finite.
        OSError: the weights cannot be read, or the cell cannot be kept.
    """
    path = cell_path(task, cell, start, cells)
    kept = _read_cell(path, cell, reporter)
    if kept is not None:
        return kept, True
    measured = replace(_measure(task, cell, start, reporter), digest=path.stem, commit=_commit())
    _write_cell(path, measured)
    return measured, False


def cell_path(task: DownstreamTask, cell: Cell, start: Start, cells: Path) -> Path:
    """The file that keeps a finished cell, named by all that its scores depend on.

    Raises:
        OSError: the weights cannot be read.
    """
    import torch

    digest = text_digest(
        {
            "cell": asdict(cell),
            "start": start.identity(),
            "settings": dict(task.settings(cell)),
            "data_version": task.data_version,
            "code": [__version__, torch.__version__, *EvaluationConfig.code_mark()],
        }
    )
    return cells / f"{digest}.json"


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
    content = json.loads(json.dumps(asdict(measured)))  # as it will be read back
    for score in content["measurement"]["scores"]:
        for bound in ("ci_low", "ci_high"):
            score[bound] = score[bound] if math.isfinite(score[bound]) else None
    write_json(path, content | {"checksum": text_digest(content)})


def _read_cell(path: Path, cell: Cell, reporter: Reporter) -> Measured | None:
    """A kept cell; None where there is none, or where it is not what was written."""
    if not path.is_file():
        return None
    try:
        return _measured_of(cell, _verified(read_json(path), path.stem, cell))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reporter.warning(f"{path}: a kept cell cannot be read ({error}); it is measured again.")
        return None


def _verified(content: Mapping[str, Any], digest: str, cell: Cell) -> Mapping[str, Any]:
    if text_digest({key: value for key, value in content.items() if key != "checksum"}) != content["checksum"]:
        raise ValueError("its checksum does not fit")
    if content["digest"] != digest or content["cell"] != asdict(cell):
        raise ValueError("it is another cell's")
    return content


def _measured_of(cell: Cell, content: Mapping[str, Any]) -> Measured:
    found = content["measurement"]
    scores = tuple(
        Score(
            score["metric"],
            score["value"],
            *(math.nan if score[bound] is None else score[bound] for bound in ("ci_low", "ci_high")),
        )
        for score in found["scores"]
    )
    measurement = Measurement(
        scores=scores,
        n=found["n"],
        label_fraction=found["label_fraction"],
        classes=tuple(found["classes"]),
        confusion=tuple(tuple(row) for row in found["confusion"]),
        per_class={metric: tuple(values) for metric, values in found["per_class"].items()},
        replicates=tuple(found["replicates"]),
        details=found["details"],
        gallery=tuple(found["gallery"]),
    )
    return Measured(
        cell, measurement, content["seconds"], content["compute_seconds"], content["digest"], content["commit"]
    )
