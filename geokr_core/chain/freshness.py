"""Whether a step's output is current: the fingerprint of everything that it depends on, and the record of its last run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geokr_core import __version__
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS, Folders, Step, source_folder
from geokr_core.errors import MissingInputError
from geokr_core.step.digests import data_version, file_md5, text_digest
from geokr_core.step.files import read_json
from geokr_core.step.section import as_plain


def fingerprint(params: Params, step: Step) -> str:
    """Digest of everything a step's result depends on: its sections, its inputs' data versions, the code's version.

    Raises:
        MissingInputError: an input has not been made yet.
    """
    folders = Folders(params)
    inputs: dict[str, str] = {}
    for name in step.inputs:
        remedy = f"run `geokr {STEPS[name].command}` first, or `geokr run` for the whole chain"
        inputs[name] = require(folders[name], remedy)
    for name in step.sources:
        inputs[f"source:{name}"] = require(source_folder(params, name), f"point `{name}.folder` at your data")
    sections = {name: as_plain(getattr(params, name)) for name in step.sections}
    named = {"params_file": params.file} if step.names_file else {}
    return text_digest(
        {"inputs": inputs, "sections": sections, "files": _files_named(sections), "code": __version__, **named}
    )


def _files_named(value: Any) -> dict[str, str]:
    """md5 of every file that a section names (a legend, initial weights), by path: editing it changes the result."""
    if isinstance(value, str):
        return {value: file_md5(Path(value))} if value and Path(value).is_file() else {}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {path: md5 for part in parts for path, md5 in _files_named(part).items()}


def require(folder: Path, remedy: str) -> str:
    """The data version of an input folder.

    Raises:
        MissingInputError: it is missing or empty.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; {remedy}.")
    if not any(folder.iterdir()):
        raise MissingInputError(f"{folder}: the folder is empty; {remedy}.")
    return data_version(folder)


def is_current(params: Params, step: Step) -> bool:
    """Whether the output of ``step`` is what its inputs and parameters give, unchanged since it was written."""
    folders = Folders(params)
    if not (folders.state(step.name) / "state.json").exists():
        return False
    return recorded(folders, step.name, fingerprint(params, step)) is not None


def recorded(folders: Folders, name: str, mark: str) -> Mapping[str, Any] | None:
    """What is recorded of the present output of a step, if it was made with the fingerprint ``mark`` and is unchanged."""
    record = folders.state(name) / "state.json"
    if not record.exists() or not folders[name].exists():
        return None
    state: Mapping[str, Any] = read_json(record)
    return state if state["fingerprint"] == mark and state["data_version"] == data_version(folders[name]) else None
