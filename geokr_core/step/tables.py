"""What the Parquet files of the chain hold, column by column: one description for documents, Dagster and tests.

The descriptions are data (``tables.yaml``); nothing here opens a file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import yaml

CLASS: Final = "{class}"
"""In a column's name: one column for each class of the legend."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: as in the file; it may hold `CLASS`.
        kind: its type in words (see ``tables.yaml``).
        meaning: one sentence, Markdown.
    """

    name: str
    kind: str
    meaning: str

    def names(self, classes: Iterable[str]) -> list[str]:
        """What the column is called in a file whose legend has these classes."""
        return [self.name.replace(CLASS, one) for one in classes] if CLASS in self.name else [self.name]


@dataclass(frozen=True)
class Table:
    """A kind of Parquet file.

    Attributes:
        step: that writes it.
        file: its name in the step's folder.
        row: what a row is.
        columns: all of them; those that come from other tables first.
        joins: names of the tables whose columns it holds, too.
    """

    step: str
    file: str
    row: str
    columns: tuple[Column, ...]
    joins: tuple[str, ...] = ()

    def meaning(self, name: str) -> str | None:
        """What a column of a file means; None where it is not described."""
        for column in self.columns:
            before, found, after = column.name.partition(CLASS)
            if name == column.name or (found and name.startswith(before) and name.endswith(after)):
                return column.meaning
        return None


@cache
def tables() -> Mapping[str, Table]:
    """All tables by their name, in the order of the chain."""
    content = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
    found: dict[str, Table] = {}
    for name, entry in content.items():
        joins = tuple(entry.get("joins", ()))
        left_out = set(entry.get("without", ()))
        columns = {c.name: c for other in joins for c in found[other].columns if c.name not in left_out}
        columns |= {column: Column(column, kind, meaning) for column, (kind, meaning) in entry["columns"].items()}
        found[name] = Table(entry["step"], entry["file"], entry["row"], tuple(columns.values()), joins)
    return found


def table_of(step: str, file: str) -> Table | None:
    """The table that a step writes under a name; None where there is none."""
    return next((table for table in tables().values() if (table.step, table.file) == (step, file)), None)


def formats_reference() -> str:
    """All tables as Markdown; ``docs/formats.md`` holds exactly this text."""
    lines = [
        "# File formats",
        "",
        "Every table that the chain writes, column by column. Made by `make reference` from the descriptions that Dagster shows and that a",
        "test compares with real files; do not edit. All are Parquet; those with a `geometry` are GeoParquet. Other files:",
        "[chips](chips.md), [Levir-KR](levir-kr.md), [embeddings](embeddings.md), [audit](audit.md).",
    ]
    for name, table in tables().items():
        own = [
            column for column in table.columns if all(column not in tables()[other].columns for other in table.joins)
        ]
        lines += ["", f"## {name}", "", f"`<store>/{table.step}/{table.file}`, one row {table.row}.", ""]
        if table.joins:
            lines += [f"The columns of {' and '.join(f'[{other}](#{other})' for other in table.joins)}, and", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{column.name.replace(CLASS, '<class>')}` | {column.kind} | {column.meaning} |" for column in own]
    return "\n".join(lines) + "\n"
