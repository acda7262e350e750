"""How long the command line takes to say what it can do."""

import subprocess
import sys
from pathlib import Path

from geokr_core.bench.measure import Measurement, seconds


def bench_startup(folder: Path) -> Measurement:
    """Seconds of ``geokr --help``."""

    def help_text() -> None:
        subprocess.run([sys.executable, "-m", "geokr_core.cli", "--help"], check=True, capture_output=True, cwd=folder)

    def bare() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True, cwd=folder)

    taken = seconds(help_text, repeats=5)
    return Measurement("startup", taken, 0.4, 5, "geokr --help, seconds", {"bare_python_s": seconds(bare, repeats=5)})
