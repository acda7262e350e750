"""What a materialisation or a check shows in the browser: a `Summary` or a `Finding` turned into Dagster metadata.

An entry is first built as Pipes spells it (``{"type": …, "raw_value": …}``), because the training process, which
does not load Dagster, shows the same things by the same rules as the steps that run inside Dagster.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from geokr_core.step.markdown import plain
from geokr_core.step.summary import Number
from geokr_core.step.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    import dagster as dg

    from geokr_core.chain.checks import Finding
    from geokr_core.chain.run import Outcome

MAX_PICTURE_BYTES = 200_000
"""Pictures are kept in the event log, base64 in Markdown; larger ones would slow down every page that lists events."""

_LONG_NAME_PARTS = 3

Raw = str | int | float | bool | Mapping[str, object]


class Entry(TypedDict):
    """One metadata value as Dagster Pipes spells it."""

    type: str
    raw_value: Raw


def of_outcome(outcome: "Outcome") -> dict[str, Entry]:
    """Metadata of a materialisation.

    Args:
        outcome: what the step did.

    Returns:
        Sentences (why a backbone was promoted, a line a task), the pictures, the tables, each number by its name (Dagster plots numbers over time), warnings, the output's
        path, its data version, and the link to the MLflow run if there is one.
    """
    summary = outcome.summary
    entries: dict[str, Entry] = numbers(_sentences(summary.numbers))
    if summary.picture_png is not None:
        entries["preview"] = _picture(summary.picture_png, str(outcome.folder))
    for name, picture in summary.pictures.items():
        entries[name] = _picture(picture, str(outcome.folder))
    if summary.table:
        entries["table"] = table(summary.table)
    for name, markdown in summary.texts.items():
        entries[name] = {"type": "md", "raw_value": markdown}
    # Scores of single cells have names too long for a page; they stand in the table, and in MLflow.
    entries |= numbers({name: value for name, value in summary.numbers.items() if name.count("/") < _LONG_NAME_PARTS})
    if "num_chips" in summary.numbers:
        entries["dagster/row_count"] = {"type": "int", "raw_value": int(summary.numbers["num_chips"])}
    if summary.warnings:
        entries["warnings"] = {"type": "md", "raw_value": "\n".join(f"- {plain(line)}" for line in summary.warnings)}
    entries["path"] = {"type": "path", "raw_value": str(outcome.folder.resolve())}
    entries["data version"] = {"type": "text", "raw_value": outcome.data_version}
    if outcome.was_current:
        entries["was up to date"] = {"type": "bool", "raw_value": True}
    if outcome.mlflow_url:
        # Without a server there is no page to open, only the run's address in the tracking store.
        kind = "url" if outcome.mlflow_url.startswith("http") else "text"
        entries["MLflow run"] = {"type": kind, "raw_value": outcome.mlflow_url}
    return entries


def _sentences(values: Mapping[str, Number]) -> dict[str, Number]:
    """Values of several words: what people read first, and what Dagster therefore gets first."""
    return {name: value for name, value in values.items() if isinstance(value, str) and " " in value}


def columns_of(path: "Path", described: Table | None = None) -> dict[str, "dg.MetadataValue[Any]"]:
    """Columns and number of rows of a Parquet file, by its footer alone; nothing where it cannot be read.

    Args:
        path: the file.
        described: what its columns mean.
    """
    import dagster as dg
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.ParquetFile(path)
        columns = [
            dg.TableColumn(
                field.name, str(field.type).replace("large_", ""), described.meaning(field.name) if described else None
            )
            for field in footer.schema_arrow
        ]
        num_rows = footer.metadata.num_rows
    except (OSError, pa.ArrowException):
        return {}
    return {
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns)),
        "dagster/row_count": dg.MetadataValue.int(num_rows),
    }


def of_finding(finding: "Finding") -> dict[str, Entry]:
    """Metadata of a check: its picture, its numbers and its table."""
    entries = numbers(finding.numbers)
    if finding.picture_png is not None:
        entries["picture"] = _picture(finding.picture_png, "the log")
    if finding.table:
        entries["table"] = table(finding.table)
    return entries


def numbers(values: Mapping[str, Number]) -> dict[str, Entry]:
    """One entry a number; what JSON has no number for (NaN, infinity) becomes text."""
    return {name: _number(value) for name, value in values.items()}


def table(rows: Sequence[Mapping[str, Number]]) -> Entry:
    """A table; the columns are those of the first row."""
    columns = [{"name": name, "type": _column_type([row[name] for row in rows])} for name in rows[0]]
    records = [{name: _number(value)["raw_value"] for name, value in row.items()} for row in rows]
    return {"type": "table", "raw_value": {"records": records, "schema": columns}}


def curves(points: Sequence[tuple[int, Mapping[str, float]]], max_rows: int = 40) -> dict[str, Entry]:
    """The curves of a training as a table of at most ``max_rows`` points, evenly thinned, the last one always kept."""
    if not points:
        return {}
    names = sorted({name for _, values in points for name in values})
    stride = math.ceil(len(points) / max_rows)
    thinned = [*points[: len(points) - 1 : stride], points[-1]]
    rows = [{"step": step, **{name: values.get(name, "") for name in names}} for step, values in thinned]
    return {"curves": table(rows)}


def as_dagster(entries: Mapping[str, Entry]) -> dict[str, "dg.MetadataValue[Any]"]:
    """Turn entries into Dagster's own metadata values."""
    return {name: _value(entry) for name, entry in entries.items()}


def _value(entry: Entry) -> "dg.MetadataValue[Any]":
    import dagster as dg

    raw = entry["raw_value"]
    if isinstance(raw, Mapping):
        columns = [dg.TableColumn(column["name"], column["type"]) for column in raw["schema"]]  # type: ignore[attr-defined]
        records = [dg.TableRecord(record) for record in raw["records"]]  # type: ignore[attr-defined]
        return dg.MetadataValue.table(records, dg.TableSchema(columns))
    value: dg.MetadataValue[Any] = getattr(dg.MetadataValue, entry["type"])(raw)
    return value


def _picture(png: bytes, folder: str) -> Entry:
    if len(png) > MAX_PICTURE_BYTES:
        text = f"The picture has {len(png) // 1000} kB, too much for the event log (200 kB): see `{folder}`."
        return {"type": "md", "raw_value": text}
    return {"type": "md", "raw_value": f"![preview](data:image/png;base64,{base64.b64encode(png).decode()})"}


def _number(value: Number) -> Entry:
    if isinstance(value, bool):
        return {"type": "bool", "raw_value": value}
    if isinstance(value, float):
        return (
            {"type": "float", "raw_value": value} if math.isfinite(value) else {"type": "text", "raw_value": str(value)}
        )
    if isinstance(value, int):
        return {"type": "int", "raw_value": value}
    return {"type": "text", "raw_value": str(value)}


def _column_type(values: Sequence[Number]) -> str:
    kinds = {_number(value)["type"] for value in values}
    if kinds <= {"int", "float"}:
        return "float" if "float" in kinds else "int"
    return "bool" if kinds == {"bool"} else "string"
