"""The site of the documents: every page can be reached, and what is generated from the code is what the code says."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import geokr_core

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix().removesuffix(".md") for path in DOCS.rglob("*.md"))
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _entries(page: str) -> Iterator[str]:
    """Pages that the toctrees of a page name."""
    folder = (DOCS / page).parent
    for tree in TOCTREE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        for line in tree.splitlines():
            if not line or line.startswith(":"):
                continue
            if "*" in line:
                yield from (
                    found.relative_to(DOCS).as_posix().removesuffix(".md") for found in folder.glob(f"{line}.md")
                )
            else:
                yield (folder / line).resolve().relative_to(DOCS).as_posix()


def test_every_page_is_reached_from_the_first_one_and_once() -> None:
    named = [entry for page in PAGES for entry in _entries(page)]
    assert sorted(set(named)) == sorted(named), "a page stands in two toctrees"
    reached, waiting = {"index"}, ["index"]
    while waiting:
        new = [entry for entry in _entries(waiting.pop()) if entry not in reached]
        reached.update(new)
        waiting += new
    assert sorted(reached) == PAGES


def test_pages_that_are_generated_are_what_the_code_says() -> None:
    reference = _reference()
    for name, make in reference.WHOLE.items():
        assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == make(), f"docs/{name}.md: run `make reference`"


def test_every_public_function_is_in_the_reference() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"auto(?:function|class):: (?:\w+\.)+(\w+)", page))
    assert set(geokr_core.__all__) - {"__version__"} - named == set()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_tutorials_run(tmp_path: Path) -> None:
    """All executed pages, from an empty cache: each cell within its minute, each assertion kept."""
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    cache = ["-D", f"nb_execution_cache_path={tmp_path / 'cache'}"]
    done = subprocess.run(
        [*build, *cache, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert (tmp_path / "html" / "tutorials" / "scientist.html").exists()


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
