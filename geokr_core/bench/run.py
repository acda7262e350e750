"""The table of benchmarks, and running one or all of them."""

import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from geokr_core.bench.measure import Measurement
from geokr_core.bench.names import BENCHMARKS
from geokr_core.errors import ConfigError


def benchmark(name: str) -> Callable[[Path], Measurement]:
    """The function of a benchmark; it gets an empty folder to work in."""
    found: Callable[[Path], Measurement] = getattr(importlib.import_module(f"geokr_core.bench.{name}"), f"bench_{name}")
    return found


def run_bench(name: str, *, as_json: bool) -> None:
    """Run one benchmark or all.

    Args:
        name: one of `BENCHMARKS`, or ``all``.
        as_json: write one JSON object as the last line for each.

    Raises:
        ConfigError: no such benchmark.
    """
    if name not in (*BENCHMARKS, "all"):
        raise ConfigError(f"bench {name}: no such benchmark; known: {', '.join(BENCHMARKS)}, all.")
    console = Console()
    for key in BENCHMARKS if name == "all" else (name,):
        with tempfile.TemporaryDirectory() as folder:
            result = benchmark(key)(Path(folder))
        details = ", ".join(f"{k} {v:.4g}" for k, v in result.details.items())
        console.print(
            f"{key}: {result.ratio:.3g} (budget {result.budget:g}; n = {result.n}; {result.on}); {details}",
            highlight=False,
        )
        if as_json:
            console.print_json(json.dumps(asdict(result)), indent=None)
