"""What a step shows for itself: some numbers, a table, a picture. Every door shows the same.

A step returns a `Summary`; `write_summary` keeps it beside the output so that a door which did not run the step
(Dagster after ``dvc repro``, a Pipes parent) shows it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geokr_core.step.files import read_json, whole_file, write_json

Number = int | float | str | bool


@dataclass(frozen=True)
class Summary:
    """Shown after a step in the terminal, in the Dagster UI and in MLflow.

    Attributes:
        numbers: single figures by name; names carry units (``seconds``, ``..._fraction``).
        table: rows of one small table (at most some 50), all with the same keys.
        picture_png: one thumbnail as PNG bytes, at most 200 kB, or None.
        warnings: what needs attention, e.g. each quarantined scene with its reason.
        pictures: further pictures by name, each at most 200 kB.
        texts: Markdown by name, e.g. a table whose cells are long.
    """

    numbers: Mapping[str, Number]
    table: Sequence[Mapping[str, Number]] = ()
    picture_png: bytes | None = None
    warnings: Sequence[str] = field(default=())
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``, ``preview.png`` and one ``picture-<number>.png`` a further picture into ``folder``.

    Raises:
        OSError: the file system refused.
    """
    content: dict[str, Any] = {
        "numbers": dict(summary.numbers),
        "table": [dict(row) for row in summary.table],
        "warnings": list(summary.warnings),
        "pictures": list(summary.pictures),
        "texts": dict(summary.texts),
        # The file is sorted by key, and who reads a table reads its first column first.
        "order": {
            "numbers": list(summary.numbers),
            "table": list(summary.table[0]) if summary.table else [],
            "texts": list(summary.texts),
        },
    }
    for number, picture in enumerate(summary.pictures.values()):
        with whole_file(folder / f"picture-{number}.png") as partial:
            partial.write_bytes(picture)
    write_json(folder / "summary.json", content)
    if summary.picture_png is not None:
        with whole_file(folder / "preview.png") as partial:
            partial.write_bytes(summary.picture_png)


def read_summary(folder: Path) -> Summary:
    """Read back what `write_summary` wrote.

    Raises:
        FileNotFoundError: the step has not been run.
    """
    content = read_json(folder / "summary.json")
    picture = folder / "preview.png"
    order = content.get("order", {})
    return Summary(
        numbers=_in_order(content["numbers"], order.get("numbers", ())),
        table=[_in_order(row, order.get("table", ())) for row in content["table"]],
        picture_png=picture.read_bytes() if picture.exists() else None,
        warnings=content["warnings"],
        pictures={
            name: (folder / f"picture-{number}.png").read_bytes()
            for number, name in enumerate(content.get("pictures", ()))
        },
        texts=_in_order(content.get("texts", {}), order.get("texts", ())),
    )


def _in_order(named: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The same with these names first, in this order; a summary of an earlier release has none."""
    return {name: named[name] for name in names if name in named} | dict(named)
