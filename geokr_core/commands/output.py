"""How results are shown: tables at a terminal; CSV or JSON where the output goes to a file or a program.

Nothing is cut off or wrapped outside a terminal. Paths at a terminal are links.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer


def show_json(content: Any) -> None:
    """Print a value as indented JSON."""
    import json

    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def show_numbers(numbers: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print single figures by name, one a line."""
    if as_json:
        show_json(dict(numbers))
        return
    width = max(map(len, numbers), default=0)
    for key, value in numbers.items():
        typer.echo(f"{key:<{width}}  {value}")


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool = False) -> None:
    """Print a table at a terminal, CSV where the output goes to a file or a program, or JSON."""
    import csv

    if as_json:
        show_json([dict(row) for row in rows])
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(str(row[column]), overflow="fold") for column in columns))
        Console().print(table)
    else:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def link(path: Path) -> str:
    """A path as it is shown: at a terminal a ``file://`` address that can be clicked, else the path alone."""
    return path.resolve().as_uri() if sys.stdout.isatty() else str(path)
