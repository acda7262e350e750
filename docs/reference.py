"""Writes what `docs/architecture.md` takes from the code: the floors, and a sentence a package.

Run by `make reference`. A generated part stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is
written by hand. Sentences come from the docstrings of the packages, floors from the import contract in pyproject.toml.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "architecture.md"


def floors(project: Path) -> str:
    """The layers of the import contract as a picture, highest first."""
    config = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(
        c["layers"] for c in config["tool"]["importlinter"]["contracts"] if c.get("containers") == ["geokr_core"]
    )
    names = [re.split(r" [|:] ", layer) for layer in layers]
    width = max(len("   ".join(row)) for row in names) + 4
    rows = [f"│{'   '.join(row).center(width)}│" for row in names]
    between = f"\n├{'─' * width}┤\n"
    return f"```text\n┌{'─' * width}┐\n{between.join(rows)}\n└{'─' * width}┘\n```"


def packages(project: Path) -> str:
    """A table of all packages and top modules with the first sentence of each docstring."""
    lines = ["| package | what it holds |", "|---|---|"]
    for root in ("geokr_core", "geokr_assets"):
        for path in _rooms(project / root):
            name = path.relative_to(project).as_posix()
            dotted = name.removesuffix(".py").replace("/", ".").removeprefix("geokr_core.")
            lines.append(f"| [`{dotted}`](../{name}) | {_sentence(path)} |")
    return "\n".join(lines)


def page(text: str, project: Path = PROJECT) -> str:
    """The page with its generated parts written anew.

    Raises:
        ValueError: a part has no end.
    """
    for name, make in (("floors", floors), ("packages", packages)):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no <!-- {name} --> … <!-- end --> in {PAGE.name}")
        part = make(project)
        text = pattern.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def _rooms(root: Path) -> Iterator[Path]:
    """The package, its modules if it is the library, and all packages below; alphabetical, parents first."""
    yield root
    found = [init.parent for init in root.rglob("__init__.py") if init.parent != root]
    if root.name == "geokr_core":
        found += [module for module in root.glob("*.py") if module.name != "__init__.py"]
    yield from sorted(found, key=lambda path: path.relative_to(root).as_posix().removesuffix(".py").split("/"))


def _sentence(path: Path) -> str:
    source = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    written = page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(written, encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(PROJECT)} written\n")
