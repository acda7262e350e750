"""Metrics for Prometheus: what the operator's page shows, as figures; computed anew for each scrape, nothing is kept.

Names follow Prometheus's conventions: base units in the name (seconds, bytes, ratio), a label where one figure has several kinds.
"""

import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import requests
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from geokr_core import __version__
from geokr_core.chain.params import Params
from geokr_core.operation.overview import Overview, overview
from geokr_core.step.extras import lacking
from geokr_core.step.files import whole_file

DAGSTER_VARIABLE: Final = "GEOKR_DAGSTER_URL"
"""Environment variable with the address of the Dagster web server, for the queue; without it there is no figure of it."""

DAYS: Final = 7
"""Runs that began in so many days are counted."""

_DAGSTER_STATES: Final = ("QUEUED", "STARTING", "STARTED", "CANCELING")
_PATIENCE_S: Final = 10.0


class ProjectCollector(Collector):
    """Gives the metrics of one project."""

    def __init__(self, load: Callable[[], Params]) -> None:
        """Take the function that reads the parameter file, which may change between two scrapes."""
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """Look at the project and give its metrics.

        Raises:
            GeoKRError: the parameter file cannot be read, or the store is damaged.
        """
        found = overview(self._load())
        yield InfoMetricFamily("geokr", "The release at work", value={"version": __version__})
        yield from _of_archive(found)
        yield from _of_steps(found)
        yield from _of_training(found)
        yield from _of_champion(found)
        yield from _of_disk(found)
        yield from _of_mlflow(found)
        yield from _of_dagster()

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what there is depends on the project."""
        return iter(())


def exposition(load: Callable[[], Params]) -> bytes:
    """The metrics in Prometheus's text format.

    Args:
        load: reads the parameter file.
    """
    return generate_latest(_registry(load))


def write_textfile(path: Path, load: Callable[[], Params]) -> None:
    """Write the metrics for node_exporter's textfile collector, whole or not at all.

    Args:
        path: a file that ends in ``.prom``.
        load: reads the parameter file.

    Raises:
        OSError: the file system refused.
    """
    with whole_file(path) as partial:
        partial.write_bytes(exposition(load))


def serve(load: Callable[[], Params], port: int, host: str = "127.0.0.1") -> tuple[WSGIServer, threading.Thread]:
    """Answer scrapes on ``/metrics`` from a thread.

    Args:
        load: reads the parameter file, at each scrape.
        port: 0 takes a free one.
        host: address to listen on.
    """
    return start_http_server(port, addr=host, registry=_registry(load))


def _registry(load: Callable[[], Params]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ProjectCollector(load))
    return registry


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"geokr_{name}", about, labels=labels)


def _single(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"geokr_{name}", about, value=value)


def _of_archive(found: Overview) -> Iterator[Metric]:
    if found.scenes is None:
        return
    scenes, refused = (
        _gauge("scenes", "Scenes of the inventory", "state"),
        _gauge("quarantined_scenes", "Scenes that are quarantined", "step"),
    )
    for state in ("seen", "usable", "cut", "counted"):
        scenes.add_metric([state], getattr(found.scenes, state))
    for step, number in found.scenes.quarantined.items():
        refused.add_metric([step], number)
    yield from (scenes, refused)


def _of_steps(found: Overview) -> Iterator[Metric]:
    current = _gauge("step_up_to_date", "Whether the output of a step is what its inputs give", "step")
    ended = _gauge("step_last_run_timestamp_seconds", "When the last run of a step that did something ended", "step")
    seconds = _gauge("step_last_run_duration_seconds", "How long it took", "step")
    for one in found.steps:
        current.add_metric([one.step], one.state == "up to date")
    for step, run in found.last.items():
        ended.add_metric([step], datetime.fromisoformat(run.ended).timestamp())
        seconds.add_metric([step], float(run.numbers.get("seconds", 0.0)))
    yield from (current, ended, seconds)


def _of_training(found: Overview) -> Iterator[Metric]:
    numbers = found.last["pretraining"].numbers if "pretraining" in found.last else {}
    if "mean_images_per_s" in numbers:
        yield _single("training_images_per_second", "Speed of the last training", numbers["mean_images_per_s"])
        waited = numbers["mean_data_wait_fraction"]
        yield _single("training_data_wait_ratio", "Share of its time that it stood still for data", waited)
    if "validation_kl" in numbers:
        yield _single("training_validation_kl", "Its divergence on chips that were held out", numbers["validation_kl"])


def _of_champion(found: Overview) -> Iterator[Metric]:
    champion = found.champion
    if champion is None or champion.version is None:
        return
    version = _gauge("champion_version", "Version of the registered model that is champion", "model")
    version.add_metric([champion.model_name], champion.version)
    score = _gauge("champion_score", "Score of the champion as the last decision measured it", "model", "criterion")
    for name, value in champion.scores.items():
        score.add_metric([champion.model_name, name], value)
    yield from (version, score)


def _of_disk(found: Overview) -> Iterator[Metric]:
    folders = _gauge("store_bytes", "What lies in the store, by folder", "folder")
    for name, num_bytes in found.disk.by_folder.items():
        folders.add_metric([name], num_bytes)
    yield folders
    yield _single("disk_free_bytes", "Free space on the disk of the store", found.free_bytes)
    yield _single("stuck", "What does not go on by itself; `geokr status` names it", len(found.stuck))


def _of_mlflow(found: Overview) -> Iterator[Metric]:
    yield _single("mlflow_waiting_runs", "Runs of which records wait for the server", found.waiting_for_mlflow)
    if lacking("mlflow"):
        return
    from geokr_core.tracking.health import health, runs_since

    state = health()
    yield _single("mlflow_up", "Whether MLflow answers", not state.fault)
    if state.fault or not state.has_tables:
        return
    runs = _gauge("runs", f"Runs of MLflow that began in the last {DAYS} days", "step", "status")
    for (step, status), number in sorted(runs_since(DAYS).items()):
        runs.add_metric([step, status.lower()], number)
    yield runs


def _of_dagster() -> Iterator[Metric]:
    address = os.environ.get(DAGSTER_VARIABLE, "").rstrip("/")
    if not address:
        return
    asked = " ".join(
        f"{state}: runsOrError(filter: {{statuses: [{state}]}}) {{ ... on Runs {{ count }} }}"
        for state in _DAGSTER_STATES
    )
    up = _gauge("dagster_up", "Whether the Dagster web server answers")
    try:
        answer = requests.post(f"{address}/graphql", json={"query": f"{{ {asked} }}"}, timeout=_PATIENCE_S)
        answer.raise_for_status()
        counts: dict[str, Any] = answer.json()["data"]
    except (requests.RequestException, ValueError, KeyError):
        up.add_metric([], 0)
        yield up
        return
    up.add_metric([], 1)
    yield up
    runs = _gauge("dagster_runs", "Runs of Dagster that have not ended", "status")
    for state in _DAGSTER_STATES:
        runs.add_metric([state.lower()], counts[state]["count"])
    yield runs
