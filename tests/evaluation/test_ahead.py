"""Several processes measure what one would; whoever stops or kills the step is left without them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from tests.evaluation.test_evaluate import Store, config_of, made

__all__ = ["made"]


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.sets, store.backbone, store.pretraining = made / "sets", made / "backbone", made / "pretraining"
    return store


def _run(
    store: Store, threads: int, **changes: object
) -> tuple[RecordingReporter, dict[str, object], dict[str, bytes]]:
    reporter = RecordingReporter()
    config = config_of(store, threads=threads, initialisations=["random", "geokr"], labels_per_class=[2], **changes)
    summary = evaluate(config, store.backbone, store.pretraining, store.out, store.cells, reporter)
    files = {path.name: path.read_bytes() for path in store.out.iterdir() if path.name != "evaluation.json"}
    return reporter, dict(summary.numbers), files


def test_two_processes_measure_what_one_does_and_say_the_same(store: Store) -> None:
    reporter, numbers, files = _run(store, threads=2)
    assert (numbers["num_cells"], numbers["num_cells_kept"]) == (4, 0)
    assert not _workers()
    shutil.rmtree(store.cells)
    alone, numbers_alone, files_alone = _run(store, threads=1)
    assert files == files_alone
    assert reporter.infos == alone.infos
    assert numbers_alone["num_cells_kept"] == 0
    again, numbers_again, _ = _run(store, threads=2)
    assert numbers_again["num_cells_kept"] == 4, "what one process measured is kept for two"
    assert again.infos == [line for line in alone.infos if ": accuracy" not in line]


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "popen_loky" in " ".join(child.cmdline())]


def test_a_cell_that_cannot_be_measured_ends_the_step_from_any_process(store: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(store.pretraining, tmp_path / "pretraining")
    store.pretraining = copy
    runs = read_json(copy / "runs.json")
    for run in runs:
        if run["variant"] == "geokr":
            (copy / run["folder"] / "backbone.safetensors").unlink()
    with pytest.raises(EvaluationError, match="no such file, but runs.json lists it"):
        _run(store, threads=2)
    assert not store.out.exists()


_SCRIPT = """
import sys
from pathlib import Path
from tests.evaluation.test_evaluate import Store, config_of
from geokr_core.evaluation.evaluate import evaluate

if __name__ == "__main__":
    root, made = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store(root)
    store.sets, store.backbone, store.pretraining = made / "sets", made / "backbone", made / "pretraining"
    config = config_of(
        store, threads=2, initialisations=["random", "geokr"], labels_per_class=[2],
        protocols=["fine_tune"], fine_tune_labels_per_class=list(range(2, 7)), fine_tune_steps=40,
    )
    evaluate(config, store.backbone, store.pretraining, store.out, store.cells)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whoever_stops_the_step_stops_its_processes(made: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    step = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, made], env=environment, stderr=subprocess.DEVNULL
    )
    cells = tmp_path / "cells"
    deadline = time.monotonic() + 240
    while not list(cells.glob("*.json")):
        assert step.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(step.pid).children(recursive=True)
    step.send_signal(number)
    step.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    kept = len(list(cells.glob("*.json")))
    assert 0 < kept < 20, "the step was stopped in its middle"
    store = Store(tmp_path)
    store.sets, store.backbone, store.pretraining = made / "sets", made / "backbone", made / "pretraining"
    changes = {"protocols": ["fine_tune"], "fine_tune_labels_per_class": list(range(2, 7)), "fine_tune_steps": 40}
    _, numbers, files = _run(store, threads=2, **changes)
    assert numbers["num_cells_kept"] == kept
    shutil.rmtree(store.cells)
    assert _run(store, threads=1, **changes)[2] == files
    assert len(pd.read_parquet(store.out / "results.parquet")) > 0
