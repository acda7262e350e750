"""What is recorded of a step's last run: everything that its output is a function of, and the md5 of every file of it.

The record lies in ``<store>/.state/<step>/state.json``, beside the output and never inside. It carries its own digest: a
damaged record is as good as none, and the step runs again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from geokr_core.step.digests import text_digest
from geokr_core.step.files import write_json

STATE_FILE = "state.json"
SOURCES_FILE = "sources.json"
"""md5 of every source file as the last run found it, to say which one changed since."""


@dataclass(frozen=True)
class Record:
    """One step's last run.

    Attributes:
        inputs: everything that the output is a function of, by a readable name.
        fingerprint: digest of ``inputs``.
        data_version: of the output.
        files: md5 of each file of the output, by its path below the folder.
        summary: the same of the kept summary, below the folder of the record.
        mlflow_url: page or URI of the MLflow run, if one was opened.
    """

    inputs: Mapping[str, str]
    fingerprint: str
    data_version: str
    files: Mapping[str, str]
    summary: Mapping[str, str] = field(default_factory=dict)
    mlflow_url: str | None = None


def write_record(folder: Path, record: Record, sources: Mapping[str, Mapping[str, str]]) -> None:
    """Keep a record, and the source files that it is about.

    Raises:
        OSError: the file system refused.
    """
    content = asdict(record)
    write_json(folder / SOURCES_FILE, sources)
    write_json(folder / STATE_FILE, {**content, "digest": text_digest(content)})


def read_record(folder: Path) -> Record | None:
    """The record of a step; None where there is none, or where it is damaged or of an earlier version of GeoKR."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        digest = content.pop("digest")
        return Record(**content) if digest == text_digest(content) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_sources(folder: Path) -> Mapping[str, Mapping[str, str]]:
    """The source files as the last run found them; empty where that is not known."""
    try:
        content = json.loads((folder / SOURCES_FILE).read_text(encoding="utf-8"))
        return {str(name): dict(files) for name, files in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
