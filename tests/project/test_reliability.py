"""The page of reliability: its rows name tests that there are, and its figures come from their reports."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.test_x" name="test_one[3]"><properties>
<property name="damage" value="flip"/><property name="place" value="chips"/><property name="outcome" value="healed"/>
</properties></testcase>
<testcase classname="tests.a.test_x" name="test_one[4]"><properties>
<property name="damage" value="flip"/><property name="place" value="world"/></properties><failure/></testcase>
<testcase classname="tests.a.test_x" name="test_two"><skipped/></testcase>
<testcase classname="tests.b.test_y" name="test_three"/>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability", PROJECT / "docs" / "reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_names_tests_that_there_are() -> None:
    for row in yaml.safe_load((PROJECT / "docs" / "reliability.yaml").read_text(encoding="utf-8")):
        for test in row["tests"]:
            path, _, name = test.partition("::")
            assert (PROJECT / path).exists(), f"{row['done']}: no {path}"
            assert not name or f"def {name}(" in (PROJECT / path).read_text(encoding="utf-8"), test


def test_figures_are_those_of_the_reports(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    cases = list(script.cases_of(tmp_path / "report.xml").values())
    listed = [
        {"done": "a", "noticed": "b", "then": "c", "tests": ["tests/a/test_x.py"]},
        {"done": "d", "noticed": "e", "then": "f", "tests": ["tests/b"]},
        {"done": "g", "noticed": "h", "then": "i", "tests": ["tests/a/test_x.py::test_two"]},
    ]
    held = [line.rsplit(" | ", 1)[1] for line in script.rows(cases, listed).splitlines()[2:]]
    assert held == ["1 of 2, 1 skipped |", "1 of 1 |", "not run for this page, 1 skipped |"]
    table = script.damages(cases).splitlines()
    assert "| flip | 2 | 1 | 0 | 1 |" in table
    assert "| a file of `chips` | 1 | 1 | 0 | 0 |" in table
    assert "| **all** | 2 | 1 | 0 | 1 |" in table


def test_a_row_without_a_case_keeps_its_figure_and_says_that_it_is_an_earlier_one(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    cases = list(script.cases_of(tmp_path / "report.xml").values())
    listed = [
        {"done": name, "noticed": "e", "then": "f", "tests": [test]}
        for name, test in (("ran", "tests/b"), ("did", "tests/c"), ("never", "tests/d"))
    ]
    page = "| ran | e | f | x | 3 of 9 |\n| did | e | f | x | 7 of 8 |\n| never | e | f | x | not run for this page |\n"
    for _ in range(2):  # and says it once
        table = script.rows(cases, listed, script.earlier_figures(page))
        held = [line.rsplit(" | ", 1)[1] for line in table.splitlines()[2:]]
        assert held == ["1 of 1 |", "7 of 8, earlier |", "not run for this page |"]
        page = table
    assert "<!-- damages -->" in script.page("<!-- damages -->\nkept\n<!-- end -->", cases[-1:], listed)
    assert "kept" in script.page("<!-- damages -->\nkept\n<!-- end -->", cases[-1:], listed)
