"""Metrics as Prometheus takes them: scraped over HTTP; dashboard and alert rules ask for nothing that there is not."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from geokr_core.chain.params import load_params
from geokr_core.chain.record import Record, write_record
from geokr_core.chain.run import run_step
from geokr_core.cli import app
from geokr_core.operation.metrics import DAGSTER_VARIABLE, exposition, serve
from geokr_core.step.files import write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary, write_summary
from geokr_core.tracking.tracked_run import track_step

MONITORING = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
SCORES = {"scenes/accuracy": {"per_seed": {"0": 0.7, "1": 0.8}}}


@pytest.fixture
def worked_on(archive: Path) -> Path:
    """A project with scenes, a training, a champion and a failed run."""
    run_step("scenes", load_params(), RecordingReporter())
    _made(archive, "pretraining", mean_images_per_s=321.5, mean_data_wait_fraction=0.02, validation_kl=0.4)
    _made(archive, "champion")
    decision = {
        "model_name": "tiny",
        "challenger": {"version": 4, "scores": SCORES},
        "champion": None,
        "promoted": True,
        "champion_version": 4,
        "reason": "promoted",
        "delta": None,
        "delta_ci_low": None,
        "delta_ci_high": None,
    }
    write_json(archive / "data/store/champion/decision.json", decision)
    with pytest.raises(ValueError, match="broken"), track_step("levir_kr", {}, {}, RecordingReporter()):
        raise ValueError("broken")
    return archive


def _made(project: Path, step: str, **numbers: float) -> None:
    state = project / "data/store/.state" / step
    write_summary(state, Summary({"seconds": 12.5, **numbers}))
    write_record(state, Record({}, "f", "v", {}), {})


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels, in the order of the labels' names."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_gives_the_figures_of_the_project_as_they_are_now(worked_on: Path) -> None:
    server, thread = serve(load_params, 0)
    try:
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        assert server.server_address[0] == "127.0.0.1"
        found = samples(requests.get(address, timeout=60).text)
        assert found["geokr_scenes", "seen"] == 2
        assert found["geokr_quarantined_scenes", "scenes"] == 0
        assert found["geokr_step_last_run_duration_seconds", "pretraining"] == 12.5
        assert found["geokr_step_up_to_date", "scenes"] == 1
        assert found["geokr_training_images_per_second",] == 321.5
        assert found["geokr_training_data_wait_ratio",] == 0.02
        assert found["geokr_champion_version", "tiny"] == 4
        assert found["geokr_champion_score", "scenes/accuracy", "tiny"] == pytest.approx(0.75)
        assert found["geokr_runs", "failed", "levir_kr"] == 1
        assert found["geokr_mlflow_up",] == 1
        assert found["geokr_disk_free_bytes",] > 0
        (worked_on / "scenes/broken.tif").write_bytes(b"no raster")
        run_step("scenes", load_params(), RecordingReporter())
        assert samples(requests.get(address, timeout=60).text)["geokr_quarantined_scenes", "scenes"] == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_project_that_has_not_run_and_servers_that_are_away(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv(DAGSTER_VARIABLE, "http://127.0.0.1:9")
    found = samples(exposition(load_params).decode())
    assert (found["geokr_mlflow_up",], found["geokr_dagster_up",]) == (0, 0)
    assert found["geokr_step_up_to_date", "scenes"] == 0
    assert not any(name.startswith("geokr_champion") for name, *_ in found)


def test_a_file_for_node_exporter_appears_whole(project: Path) -> None:
    done = CliRunner().invoke(app, ["metrics", "--textfile", "out/geokr.prom"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (project / "out").iterdir()] == ["geokr.prom"]
    assert samples((project / "out/geokr.prom").read_text())["geokr_stuck",] == 0


@pytest.fixture
def names(worked_on: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of all metrics that there are; the queue's stand in its own test."""
    there = {name for name, *_ in samples(exposition(load_params).decode())}
    return there | {"geokr_dagster_runs", "geokr_dagster_up"}


def _expressions_of_dashboard() -> Iterator[str]:
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_dashboard_and_rules_ask_for_metrics_that_there_are(names: set[str]) -> None:
    expressions = [*_expressions_of_dashboard(), *(rule["expr"] for rule in _rules())]
    asked = {name for text in expressions for name in re.findall(r"\bgeokr_\w+", text)}
    assert asked - names == set()
    shown = {name for text in _expressions_of_dashboard() for name in re.findall(r"\bgeokr_\w+", text)}
    assert names - shown == {"geokr_info"}


def test_every_rule_says_how_grave_it_is_and_what_to_do() -> None:
    for rule in _rules():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_itself_takes_metrics_and_rules(worked_on: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    rules = subprocess.run(
        ["promtool", "check", "rules", MONITORING / "alerts.yaml"], check=False, capture_output=True, text=True
    )
    assert rules.returncode == 0, rules.stderr
    metrics = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(load_params), check=False, capture_output=True
    )
    assert (metrics.returncode, metrics.stderr) == (0, b"")


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Grafana's own model reads it and writes it again: a misspelt or misplaced field would be lost."""
    content = json.loads((MONITORING / "grafana.json").read_text())
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    # Belongs to the import, which asks for the data source, and is not part of what is imported.
    assert [name for name in content if name not in again] == ["__inputs"]
    del content["__inputs"]
    assert _only(content, again) == content


def _only(wanted: Any, found: Any) -> Any:
    """What was found under the names and places of what was wanted: the model adds its defaults."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {name: _only(value, found[name]) for name, value in wanted.items() if name in found}
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [_only(*pair) for pair in zip(wanted, found, strict=True)]
    return found


@pytest.fixture
def prometheus(worked_on: Path, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the project every second and has its rules; its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    exporter, thread = serve(load_params, 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "scrape_configs": [
            {"job_name": "geokr", "static_configs": [{"targets": [f"127.0.0.1:{exporter.server_port}"]}]}
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yaml'}",
            f"--storage.tsdb.path={tmp_path / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _asked(address, "count_over_time(geokr_info[1m]) > 2"):
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
        exporter.shutdown()
        thread.join(timeout=30)


def _asked(address: str, expression: str) -> list[Any]:
    """What Prometheus answers to an expression; empty while it does not answer."""
    try:
        answer = requests.get(f"{address}/api/v1/query", params={"query": expression}, timeout=30)
    except requests.ConnectionError:
        return []
    assert answer.status_code in (200, 503), f"{expression}: {answer.text}"
    return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []


@pytest.mark.slow
def test_prometheus_itself_answers_every_expression(prometheus: str) -> None:
    unanswered = [text for text in _expressions_of_dashboard() if not _asked(prometheus, text)]
    # The queue needs a Dagster, whose address the project of this test does not name.
    assert [text for text in unanswered if "geokr_dagster" not in text] == []
    groups = requests.get(f"{prometheus}/api/v1/rules", timeout=30).json()["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == {rule["alert"] for rule in _rules()}
    assert {name: rule["lastError"] for name, rule in rules.items() if rule.get("lastError")} == {}
    # A quiet project on a disk with room rings none of the grave ones.
    firing = {name for name, rule in rules.items() if rule["state"] == "firing"}
    assert firing & {"GeokrMetricsMissing", "GeokrMlflowDown", "GeokrChampionWorse"} == set()
