"""Log lines as JSON: what each says, what they share, and that they are all there is on standard error."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geokr_core.errors import ConfigError
from geokr_core.step import logs
from geokr_core.step.logs import JsonReporter, json_log, log_fields, trace_id, wants_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def reporter(stream: io.StringIO) -> JsonReporter:
    return JsonReporter(json_log(logging.StreamHandler(stream)))


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_says_when_how_grave_and_what_it_belongs_to(reporter: JsonReporter, stream: io.StringIO) -> None:
    with log_fields(step="chips", partition="scene 1"):
        reporter.warning('two\nlines and a "quote"')
    reporter.info("outside")
    first, second = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (first["level"], first["message"]) == ("warning", 'two\nlines and a "quote"')
    assert (first["step"], first["partition"]) == ("chips", "scene 1")
    assert "step" not in second
    assert first["trace_id"] == second["trace_id"]


def test_a_trace_is_taken_over_or_begun_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "0af7651916cd43dd8448eb211c80319c"
    monkeypatch.setenv("TRACEPARENT", f"00-{given}-b7ad6b7169203331-01")
    assert trace_id() == given
    monkeypatch.setenv("TRACEPARENT", "no trace")
    begun = trace_id()
    assert re.fullmatch("[0-9a-f]{32}", begun)
    assert begun in os.environ["TRACEPARENT"]
    with log_fields(trace_id="f" * 32):
        assert trace_id() == "f" * 32


def test_a_step_has_a_beginning_and_an_end_with_its_seconds(reporter: JsonReporter, stream: io.StringIO) -> None:
    with reporter.step("chips", 4, 11) as ended:
        ended("up to date")
    with pytest.raises(ValueError, match="broken"), reporter.step("proportions", 5, 11):
        raise ValueError("broken")
    assert [(line["step"], line["level"], line["message"]) for line in lines(stream)] == [
        ("chips", "info", "chips begins"),
        ("chips", "info", "chips: up to date"),
        ("proportions", "info", "proportions begins"),
        ("proportions", "error", "proportions: failed"),
    ]
    assert lines(stream)[1]["seconds"] >= 0


def test_progress_is_ten_lines_and_figures_are_now_and_then(reporter: JsonReporter, stream: io.StringIO) -> None:
    with reporter.progress("cutting", 100) as advance:
        for _ in range(100):
            advance(1)
    for step in range(50):
        reporter.metrics({"loss": 1 / (step + 1), "kl": float("nan")}, step)
    assert [line["done"] for line in lines(stream)[:-1]] == list(range(10, 101, 10))
    assert lines(stream)[-1]["metrics"] == {"loss": 1.0}


def test_a_form_that_there_is_none_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "xml")
    with pytest.raises(ConfigError, match="expected one of text, json"):
        wants_json()


@pytest.mark.parametrize("switch", [["--log-format", "json"], []])
def test_all_that_a_run_tells_is_json_also_its_error(tmp_path: Path, switch: list[str]) -> None:
    """By the option and by the environment; and the file in the store holds the same lines."""
    arguments = ["--params", str(ROOT / "params.yaml"), "--set", f"store={tmp_path / 'store'}"]
    done = subprocess.run(
        [sys.executable, "-m", "geokr_core.cli", *switch, "scenes", *arguments],
        cwd=tmp_path,
        env={**os.environ, **({} if switch else {"GEOKR_LOG_FORMAT": "json"})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in told] == ["info", "error", "error"]
    assert "no such folder" in told[-1]["message"]
    assert told[1]["step"] == "scenes"
    assert len({line["trace_id"] for line in told}) == 1
    kept = (tmp_path / "store" / "geokr.log").read_text().splitlines()
    assert [json.loads(line)["message"] for line in kept] == ["scenes begins", "scenes: failed"]
