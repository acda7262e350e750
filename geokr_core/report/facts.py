"""``report.json``: what the page says, for programs. Pictures, and what only says how something is drawn, stay out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from geokr_core.report.cards import as_plain
from geokr_core.report.tables import Table

FACTS: Final = "report.json"

_RUN_COLUMNS: Final = (
    "variant",
    "seed",
    "architecture",
    "steps",
    "train_kl_nat",
    "validation_kl_nat",
    "best_constant_kl_nat",
)


def facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the page as JSON-able values.

    Args:
        content: what the templates are given.
    """
    return {
        "title": content["title"],
        "generated_world": content["generated_world"],
        "learnt": content["learnt"],
        "tasks": [as_plain(card) for card in content["cards"]],
        "sentences": list(content["headlines"]),
        "remarks": list(content["remarks"]),
        "losses": content["losses"],
        "scores": [_table(table) for table in content["tables"]],
        "differences": [_table(table) for table in content["differences"]],
        "label_efficiency": [_table(table) for table in content["efficiency"]],
        "per_class": [_table(page["table"]) for page in content["per_class"]],
        "confusion": [
            {
                "task": page["task"],
                "setting": page["caption"],
                "classes": list(page["labels"]),
                "counts": [[cell["count"] for cell in row["cells"]] for row in page["rows"]],
            }
            for page in content["confusions"]
        ],
        "applications": [
            {"title": part["title"], "sentence": part["sentence"], "rows": part["rows"]}
            for part in content["applications"]
        ],
        "pretraining": [dict(zip(_RUN_COLUMNS, run, strict=True)) for run in content["runs"]],
        "dataset": {
            **{name: value for name, value in content["dataset"].items() if name != "classes"},
            "classes": {part["name"]: float(part["share"]) for part in content["dataset"]["classes"]},
        },
        "provenance": dict(content["provenance"]),
        "made_by": f"geokr run --params {content['params_file']}",
    }


def _table(table: Table) -> dict[str, Any]:
    """A table as rows: heads by the names of their columns, entries by the words above them."""
    rows: Sequence[dict[str, Any]] = [
        {
            **{name: head.words for name, head in zip(table.corner, heads, strict=True)},
            **{
                column.words: None if entry is None else {key: text for key, text in asdict(entry).items() if text}
                for column, entry in zip(table.columns, entries, strict=True)
            },
        }
        for heads, entries in table.rows
    ]
    return {"title": table.title, "rows": rows}
