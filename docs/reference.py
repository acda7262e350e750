"""Writes what documents take from the code: floors and packages, commands, file formats.

Run by `make reference`. In `docs/architecture.md` a generated part stands between ``<!-- NAME -->`` and ``<!-- end -->``; the
text around it is written by hand. Sentences come from the docstrings of the packages, floors from the import contract in
pyproject.toml. `docs/commands.md` and `docs/formats.md` are generated as a whole.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from geokr_core.acquisition.real_sets import data_reference
from geokr_core.cli import app
from geokr_core.commands.options import GROUPS
from geokr_core.step.tables import formats_reference

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


def commands_reference() -> str:
    """All commands with their options as Markdown; ``docs/commands.md`` holds exactly this text."""
    lines = ["# Commands", "", "What each command does, reads and writes. Made by `make reference`; do not edit.", ""]
    lines += [
        "Every command exits with 0 when it did what was asked, 2 when it refused with a sentence, 130 after Ctrl-C and 143 after SIGTERM.",
        "",
    ]
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for name, command in commands.items():
            if command.rich_help_panel == group:
                lines += _command(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str, command: Any) -> list[str]:
    words, _, table = (command.help or "").partition("\n\n\b\n")
    lines = [f"### geokr {name}", "", re.sub(r"(?<!\n)\n(?!\n)", " ", words), ""]
    if table:
        lines += ["```text", *table.splitlines(), "```", ""]
    rows = [_parameter(one) for one in command.params if one.name != "help"]
    return [*lines, "| option | default | meaning |", "|---|---|---|", *rows, ""] if rows else lines


def _parameter(one: Any) -> str:
    names = ", ".join(f"`{name}`" for name in one.opts) if one.param_type_name == "option" else f"`{one.name.upper()}`"
    shown = one.show_default if isinstance(one.show_default, str) else one.default
    default = "required" if one.required else "" if shown in (None, False, ()) else f"`{shown}`".replace("``", "`")
    meaning = re.sub(r"\s+", " ", one.help or "")
    return f"| {names} | {default} | {meaning} |".replace("{", "\\{")


WHOLE = {"commands": commands_reference, "data": data_reference, "formats": formats_reference}
"""Pages that are generated as a whole."""


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
    for name, make in WHOLE.items():
        (PAGE.parent / f"{name}.md").write_text(make(), encoding="utf-8")
    names = ", ".join((PAGE.name, *(f"{name}.md" for name in WHOLE)))
    sys.stdout.write(f"written in docs: {names}\n")
