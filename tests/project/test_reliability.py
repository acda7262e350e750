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
