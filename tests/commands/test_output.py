"""What commands print: whole lines where a program or a file reads them."""

import json
from pathlib import Path

import pytest

from geokr_core.commands.output import link, show_numbers, show_rows

LONG = "a long reason " * 20


def test_rows_are_whole_lines_of_csv_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([{"scene": "a", "reason": LONG}], ["scene", "reason"])
    assert capsys.readouterr().out == f"scene,reason\na,{LONG}\n"


def test_rows_and_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([{"scene": "a", "reason": LONG}], ["scene"], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"scene": "a", "reason": LONG}]
    show_numbers({"num_scenes": 3, "share": 0.5}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"num_scenes": 3, "share": 0.5}


def test_numbers_are_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_numbers({"num_scenes": 3, "why": LONG})
    assert capsys.readouterr().out.splitlines() == ["num_scenes  3", f"why         {LONG}"]


def test_a_path_can_be_clicked_at_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert link(tmp_path) == str(tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert link(tmp_path) == tmp_path.as_uri()
