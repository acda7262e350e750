"""Several processes measure what one would; whoever stops or kills the step is left without them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.step.reporter import RecordingReporter
from tests.evaluation.test_evaluate import Store, config_of, made

__all__ = ["made"]


def _store(made: Path, root: Path) -> Store:
    store = Store(root)
    store.sets, store.backbone, store.pretraining = made / "sets", made / "backbone", made / "pretraining"
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return _store(made, tmp_path)


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


def test_a_cell_that_cannot_be_measured_ends_the_step_from_any_process(store: Store) -> None:
    with pytest.raises(EvaluationError, match="Fine-tuning met a loss"):
        _run(store, threads=2, protocols=["fine_tune"], fine_tune_learning_rate=1e30)
    assert not store.out.exists()
    assert not _workers()


_CHANGES = {"protocols": ["fine_tune"], "fine_tune_labels_per_class": [2, 3, 4], "fine_tune_steps": 10}

_SCRIPT = """
import sys
from pathlib import Path
from tests.evaluation.test_ahead import _CHANGES, _run, _store

if __name__ == "__main__":
    _run(_store(Path(sys.argv[2]), Path(sys.argv[1])), threads=2, **_CHANGES)
"""


@pytest.fixture(scope="module")
def undisturbed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes that no one stops."""
    return _run(_store(made, tmp_path_factory.mktemp("undisturbed")), threads=1, **_CHANGES)[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # fine-tunes for as long as the machine needs, and never waits
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whoever_stops_the_step_stops_its_processes(
    made: Path, undisturbed: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    step = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, made], env=environment, stderr=subprocess.DEVNULL
    )
    store = _store(made, tmp_path)
    deadline = time.monotonic() + 240
    while not list(store.cells.glob("*.json")):
        assert step.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = psutil.Process(step.pid).children(recursive=True)
    step.send_signal(number)
    step.wait(60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    kept = len(list(store.cells.glob("*.json")))
    assert 0 < kept < 12, "the step was stopped in its middle"
    _, numbers, files = _run(store, threads=2, **_CHANGES)
    assert numbers["num_cells_kept"] == kept
    assert files == undisturbed
