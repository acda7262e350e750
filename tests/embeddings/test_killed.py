"""A run that is killed at any moment ends, when it is run again, in the bytes of one that was not."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.step.reporter import RecordingReporter
weights, store, out = map(Path, sys.argv[1:])
print("imported", flush=True)
config = EmbeddingsConfig(architecture="squeezenet1_1", weights=weights, workers=1, cells=True)
embed_scenes(config, None, store / "chips", out, RecordingReporter())
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_the_same_bytes(archive: Callable[..., Path], weights: Path) -> None:
    store = archive(*(f"{place}-{k}" for place in ("north", "south", "degrees") for k in range(4)))
    whole, killed = store / "whole" / "embeddings", store / "killed" / "embeddings"

    def start(out: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUN, str(weights), str(store), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        return process

    process = start(whole)
    started = time.monotonic()
    assert process.wait() == 0
    seconds, rng = time.monotonic() - started, random.Random(0)
    for _ in range(20):
        process = start(killed)
        # Later and later: what is finished already is skipped at once.
        time.sleep(rng.uniform(0.02, 0.3) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait() == 0
    files = {path.name for path in whole.iterdir()}
    assert files == {path.name for path in killed.iterdir()}
    assert {name: (killed / name).read_bytes() for name in files} == {
        name: (whole / name).read_bytes() for name in files
    }
