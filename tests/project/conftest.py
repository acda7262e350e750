"""A copy of the project in which a change of CONTRIBUTING.md is made, by touching the files it names and no others."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
_COPIED = ("geokr_core", "geokr_assets", "tests", "docs", "CONTRIBUTING.md", "pyproject.toml", "params.yaml")


class Copy:
    """The project in another folder. It remembers which files were touched."""

    def __init__(self, folder: Path) -> None:
        """Copy what a contributor edits."""
        self.folder = folder
        self.touched: set[str] = set()
        for name in _COPIED:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(
                    source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images", "results")
                )
            else:
                shutil.copy(source, folder / name)

    def add(self, path: str, text: str) -> None:
        """Write a new file."""
        assert not (self.folder / path).exists(), path
        (self.folder / path).write_text(text, encoding="utf-8")
        self.touched.add(path)

    def append(self, path: str, text: str) -> None:
        """Write at the end of a file."""
        self._write(path, self.read(path) + text)

    def insert(self, path: str, after: str, text: str) -> None:
        """Write after the one place where ``after`` stands."""
        before = self.read(path)
        assert before.count(after) == 1, f"{path}: {before.count(after)} times {after!r}"
        self._write(path, before.replace(after, after + text))

    def replace(self, path: str, old: str, new: str) -> None:
        """Write ``new`` in place of ``old``, which stands there once."""
        before = self.read(path)
        assert before.count(old) == 1, f"{path}: {before.count(old)} times {old!r}"
        self._write(path, before.replace(old, new))

    def read(self, path: str) -> str:
        """Text of a file."""
        return (self.folder / path).read_text(encoding="utf-8")

    def python(self, *arguments: str, **environment: str) -> str:
        """Run Python on the copy; its output.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def test(self, *arguments: str) -> str:
        """Run tests of the copy; pytest's output."""
        return self.python("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments)

    def write_parameters(self) -> None:
        """What `make reference` does with docs/parameters.md."""
        (self.folder / "docs/parameters.md").write_text(
            self.python("-m", "geokr_core.cli", "parameters"), encoding="utf-8"
        )
        self.touched.add("docs/parameters.md")

    def only_touched(self, title: str, **names: str) -> None:
        """That the files touched are those which CONTRIBUTING.md lists under a heading.

        Args:
            title: the heading.
            names: what stands for ``<name>`` and the like in the paths listed.
        """
        recipe = self.read("CONTRIBUTING.md").split(f"\n### {title}\n")[1].split("\n#")[0]
        listed = {
            re.sub(r"<(\w+)>", lambda found: names[found[1]], path)
            for line in re.findall(r"^\d+\. (`[^:]*):", recipe, re.MULTILINE)
            for path in re.findall(r"`(.+?)`", line)
        }
        assert self.touched == listed

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")
        self.touched.add(path)


@pytest.fixture
def project_copy(tmp_path: Path) -> Copy:
    """A fresh copy of the project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return Copy(folder)
