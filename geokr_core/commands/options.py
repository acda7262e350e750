"""What commands share: options, the groups that ``geokr --help`` shows them in, and the form of their help."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

START: Final = "Start here"
STEPS_IN_ORDER: Final = "Steps of the chain, in order"
USE: Final = "Use the vectors of an archive"
LOOK: Final = "Look closer"
ARCHIVE: Final = "Get and give data"
REGISTRY: Final = "Registered backbones"
OPERATE: Final = "Operate"
ABOUT: Final = "About GeoKR"
GROUPS: Final = (START, STEPS_IN_ORDER, USE, LOOK, ARCHIVE, REGISTRY, OPERATE, ABOUT)

ParamsFile = Annotated[
    Path | None,
    typer.Option("--params", "-p", help="Parameter file.", show_default="$GEOKR_PARAMS, else params.yaml"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a value: section.key=value (repeatable)."),
]
Deep = Annotated[bool, typer.Option("--deep", help="Read every byte, also of files that have not been touched.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what else goes to the log file only.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Run even if the output is up to date.")]


def add(
    app: typer.Typer,
    command: Callable[..., Any],
    group: str,
    *,
    name: str | None = None,
    text: str | None = None,
    reads: str = "",
    section: str = "",
    writes: str = "",
    example: str = "",
) -> None:
    """Add a command to the program.

    Args:
        app: the program.
        command: what runs; it imports what it needs when it runs.
        group: one of `GROUPS`.
        name: how it is called; None: like the function.
        text: what it does; None: the function's docstring.
        reads: what it reads.
        section: the sections of the parameter file that it depends on.
        writes: what it writes, and where.
        example: a whole command line.
    """
    rows = {"Reads": reads, "Section": section, "Writes": writes, "Example": example}
    table = "\n".join(f"{row + ':':<9}{value}" for row, value in rows.items() if value)
    words = inspect.cleandoc(text or command.__doc__ or "")
    # A paragraph that begins with \b is not wrapped anew.
    app.command(name, help=f"{words}\n\n\b\n{table}" if table else words, rich_help_panel=group)(command)
