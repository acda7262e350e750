"""The house as a whole: no import circle, no long file, no table that fights the formatter, and a map that is true."""

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import grimp
import networkx as nx
import pytest

PROJECT = Path(__file__).resolve().parents[2]
MAX_LINES = 450


def _sources(*roots: str) -> Iterator[Path]:
    for root in roots:
        yield from sorted((PROJECT / root).rglob("*.py"))


def _circles(*packages: str) -> list[list[str]]:
    """Modules that import each other in a ring, imports inside functions and under TYPE_CHECKING counted."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    imports = nx.DiGraph(
        (name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name)
    )
    return [sorted(ring) for ring in nx.strongly_connected_components(imports) if len(ring) > 1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert _circles("geokr_core", "geokr_assets") == []


def test_a_circle_inside_a_package_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ring_of_two"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("def late():\n    from ring_of_two import second\n")
    (package / "second.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ring_of_two.first import late\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    assert _circles("ring_of_two") == [["ring_of_two.first", "ring_of_two.second"]]


def test_no_source_file_is_long() -> None:
    lengths = {
        path.relative_to(PROJECT): len(path.read_text().splitlines()) for path in _sources("geokr_core", "geokr_assets")
    }
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_tables_are_one_name_a_line_or_data_files() -> None:
    marked = [
        f"{path.relative_to(PROJECT)}:{number}"
        for path in _sources("geokr_core", "geokr_assets", "tests")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# fmt: (skip|off)", line) and path != Path(__file__)
    ]
    assert marked == []


def test_no_lock_of_dvc_is_committed() -> None:
    """It holds what one machine made: scores differ in their last digits on another, and the tree would never be clean."""
    listed = subprocess.run(["git", "ls-files", "dvc.lock"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository")
    assert listed.stdout == ""


def test_no_data_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    paths = [PROJECT / name for name in listed.stdout.split("\0") if name and name != "uv.lock"]
    large = [str(path.relative_to(PROJECT)) for path in paths if path.is_file() and path.stat().st_size > 500_000]
    assert large == [], "a test that leaves files behind, or data that belongs into DVC"


def test_every_package_says_what_lives_there() -> None:
    page = _reference().packages(PROJECT)
    assert not re.search(r"\| +\|$", page, re.MULTILINE), "a package without a docstring"


def test_the_architecture_page_is_what_the_code_says() -> None:
    reference = _reference()
    page = reference.PAGE.read_text(encoding="utf-8")
    assert page == reference.page(page), "run `make reference`"


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", PROJECT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
