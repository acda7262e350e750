"""Whether a step's output is current: everything that it is a function of, compared with the record of its last run.

An output is current if nothing that it depends on has changed since it was made, and if every file of it has the bytes
that were recorded. Both are asked by a stat a file (``contents``). The decision record 0028 tells the whole of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geokr_core.chain.calls import need
from geokr_core.chain.contents import Contents
from geokr_core.chain.params import Params
from geokr_core.chain.record import STATE_FILE, Record, read_record, read_sources
from geokr_core.chain.steps import STEPS, Folders, Step, source_folder
from geokr_core.chain.versioning import is_versioned, recorded_versions
from geokr_core.errors import DamagedOutputError, MissingInputError
from geokr_core.step.digests import file_md5, folder_version, text_digest
from geokr_core.step.plugins import GROUPS, plugins
from geokr_core.step.section import effective

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of ``geokr_core``, where built-in data files lie."""

_READ = ("output of ", "files below ")
"""How the names of inputs begin that other steps or people make."""


@dataclass(frozen=True)
class Judgement:
    """Where one step stands.

    Attributes:
        inputs: everything that its output is a function of, by name.
        fingerprint: digest of ``inputs``.
        record: of its last run; None where there is none that can be read.
        reasons: why it has to run, the most telling first; empty: its output is current.
        damaged: files of the output that are not what was recorded, and what is wrong with each.
        damaged_md5s: the md5 of each damaged file that is there.
        foreign: files in the output's folder that the step did not write.
    """

    inputs: Mapping[str, str]
    fingerprint: str
    record: Record | None
    reasons: tuple[str, ...]
    damaged: Mapping[str, str]
    damaged_md5s: Mapping[str, str]
    foreign: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        """Whether the step has nothing to do."""
        return not self.reasons


def judge(params: Params, step: Step, contents: Contents | None = None) -> Judgement:
    """Compare a step with the record of its last run.

    Args:
        params: the parameter file.
        step: a step of it.
        contents: what is known of the folders; asked anew by default.

    Raises:
        MissingInputError: an input has not been made yet, or a source folder is missing or empty.
    """
    contents = contents or Contents(params.store)
    folders = Folders(params)
    inputs = inputs_of(params, step, contents)
    record = read_record(folders.state(step.name))
    found = differences(params, step, record, contents)
    reasons = [*changes(params, step, inputs, record, contents)]
    if record is not None:
        if not folders[step.name].is_dir():
            reasons.append(f"its output {folders[step.name]} is gone")
        else:
            reasons += [f"{name}: {fault}" for name, fault in found.damaged.items()]
        if step.folder is None:
            reasons += [f"{name}: not written by this step" for name in found.foreign]
        if found.num_remade:
            reasons.append(f"{found.num_remade} files of single scenes were made since the whole step ran")
        reasons += _summary_faults(folders.state(step.name), record)
        if not reasons and step.outdated is not None and (reason := step.outdated(params, folders)):
            reasons.append(reason)
    now = contents.of_output(folders[step.name])
    md5s = {name: now[name] for name in found.damaged if name in now}
    return Judgement(inputs, text_digest(inputs), record, tuple(reasons), found.damaged, md5s, found.foreign)


def is_current(params: Params, step: Step) -> bool:
    """Whether the output of ``step`` is what its inputs and parameters give, unchanged since it was written.

    Raises:
        MissingInputError: an input has not been made yet.
    """
    return judge(params, step).is_current


def fingerprint(params: Params, step: Step) -> str:
    """Digest of everything that a step's output is a function of.

    Raises:
        MissingInputError: an input has not been made yet.
    """
    return text_digest(inputs_of(params, step, Contents(params.store)))


def inputs_of(params: Params, step: Step, contents: Contents) -> dict[str, str]:
    """Everything that a step's output is a function of, by a readable name.

    Raises:
        MissingInputError: an input has not been made yet, or a source folder is missing or empty.
    """
    folders, own = Folders(params), own_inputs(params, step)  # a section that is missing is named first
    require_inputs(params, step)
    read = {f"output of {name}": contents.version(folders[name]) for name in step.inputs_in(params)}
    for name in step.sources:
        read[f"files below {name}.folder"] = folder_version(contents.of_source(source_folder(params, name)))
    return read | own


def require_inputs(params: Params, step: Step) -> None:
    """Refuse a step whose inputs or raw data are not there.

    Raises:
        MissingInputError: an input has not been made yet, or a source folder is missing or empty.
    """
    for name in step.inputs_in(params):
        require(Folders(params)[name], f"run `geokr {STEPS[name].command}` first, or `geokr run` for the whole chain")
    for name in step.sources:
        require(source_folder(params, name), f"point `{name}.folder` at your data")


def own_inputs(params: Params, step: Step) -> dict[str, str]:
    """What a step depends on besides the outputs of others and the raw data: parameters, named files, code."""
    found: dict[str, str] = {}
    for name in step.sections:
        section = need(getattr(params, name), name)
        found[f"code of {name}"] = str(section.code_version)
        found |= dict(_flat(name, effective(section)))
    values = {json.loads(value) for value in found.values() if value.startswith('"')}
    for value in sorted(values - {""}):
        if Path(value).is_file():
            found[f"file {value}"] = file_md5(Path(value))
        for group in GROUPS:
            if point := plugins(group).get(value):
                release = f"{point.dist.name} {point.dist.version}" if point.dist else ""
                found[f"{group} {value}"] = f"{point.value} {release}"
    for place in step.data_files:
        found |= {f"built-in {place}/{name}": md5 for name, md5 in _built_in(PACKAGE / place).items()}
    if step.names_file:
        found["name of the parameter file"] = params.file
    return found


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Leaves of a section by dotted key; a list without sections in it is one leaf."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(f"{prefix}.{key}", part)
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            name = part.get("name", number) if isinstance(part, Mapping) else number
            yield from _flat(f"{prefix}.{name}", part)
    else:
        yield prefix, json.dumps(value, sort_keys=True)


def _built_in(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): file_md5(path) for path in sorted(files)}


def require(folder: Path, remedy: str) -> None:
    """Refuse an input folder that is missing or empty.

    Raises:
        MissingInputError: it is.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; {remedy}.")
    if not any(folder.iterdir()):
        raise MissingInputError(f"{folder}: the folder is empty; {remedy}.")


def changes(
    params: Params, step: Step, inputs: Mapping[str, str], record: Record | None, contents: Contents
) -> Iterator[str]:
    """What a step's output depends on and is not what was recorded, one sentence each."""
    state = Folders(params).state(step.name)
    if record is None:
        yield (
            "its record cannot be read, or an earlier version wrote it"
            if (state / STATE_FILE).exists()
            else "it has not run yet"
        )
        return
    for name in [*inputs, *(name for name in record.inputs if name not in inputs)]:
        before, now = record.inputs.get(name), inputs.get(name)
        if before == now:
            continue
        if name.startswith("files below "):
            section = name.removeprefix("files below ").removesuffix(".folder")
            yield _changed_sources(params, section, read_sources(state).get(section, {}), contents)
        elif name.startswith(("output of ", "file ", "built-in ")):
            yield f"{name} changed" if before and now else f"{name} is {'new' if now else 'gone'}"
        else:
            yield f"{name}: {_shown(before)} → {_shown(now)}"


def own_changes(params: Params, step: Step, record: Record, contents: Contents) -> Iterator[str]:
    """What a step depends on besides what it reads, and is not what was recorded, one sentence each."""
    own = own_inputs(params, step)
    known = {name: value for name, value in record.inputs.items() if name in own or not name.startswith(_READ)}
    yield from changes(params, step, own, replace(record, inputs=known), contents)


def _shown(value: str | None) -> str:
    return "not set" if value is None else value if len(value) <= 60 else f"{value[:57]}…"


def _changed_sources(params: Params, section: str, before: Mapping[str, str], contents: Contents) -> str:
    folder = source_folder(params, section)
    now = contents.of_source(folder)
    kinds = {
        "changed": sorted(name for name in now if name in before and now[name] != before[name]),
        "new": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
    }
    counts = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    return f"files below {folder}: {', '.join(counts)}"


@dataclass(frozen=True)
class Differences:
    """How the output of a step differs from what was recorded.

    Attributes:
        damaged: files that are missing or not the bytes that were written, and which of the two.
        foreign: files that the step did not write.
        num_remade: files of single scenes that were made, and recorded with the scene, since the whole step ran.
    """

    damaged: Mapping[str, str] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    num_remade: int = 0


def differences(params: Params, step: Step, record: Record | None, contents: Contents) -> Differences:
    """Compare the output of a step with its record; steps that run scene by scene also with the records of the scenes."""
    folders = Folders(params)
    if record is None:
        scenes = step.outputs(folders)
        return Differences(scenes.damaged(deep=contents.deep) if scenes else {})
    now = contents.of_output(folders[step.name])
    changed = {name: _fault(name, now) for name, md5 in record.files.items() if now.get(name) != md5}
    added = sorted(now.keys() - record.files.keys())
    outputs = step.outputs(folders)
    if outputs is None or not (changed or added):
        return Differences(changed, tuple(added))
    shared = {outputs.shared: changed[outputs.shared]} if outputs.shared in changed else {}
    damaged = {**shared, **outputs.damaged(deep=contents.deep)}
    foreign = tuple(name for name in added if not outputs.owns(name))
    return Differences(damaged, foreign, len({*changed, *added} - {*damaged, *foreign}))


def _fault(name: str, now: Mapping[str, str]) -> str:
    return "not the bytes that were written" if name in now else "missing"


def _summary_faults(state: Path, record: Record) -> list[str]:
    def fault(name: str, md5: str) -> bool:
        try:
            return file_md5(state / name) != md5
        except OSError:
            return True

    return [f"{state / name}: its kept summary was damaged" for name, md5 in record.summary.items() if fault(name, md5)]


def require_undamaged_inputs(params: Params, step: Step, contents: Contents) -> None:
    """Refuse to read the output of another step that is not what that step wrote.

    What DVC itself brought (``dvc checkout``, ``dvc pull``) is what ``dvc.lock`` says, whatever was recorded here.

    Raises:
        DamagedOutputError: a file of an input is damaged; the message names each.
    """
    folders = Folders(params)
    versions = recorded_versions() if is_versioned(params.path) else {}
    for name in step.inputs_in(params):
        found = differences(params, STEPS[name], read_record(folders.state(name)), contents)
        if not found.damaged or versions.get(name) == contents.version(folders[name]):
            continue
        files = "; ".join(f"{folders[name] / file}: {fault}" for file, fault in list(found.damaged.items())[:10])
        raise DamagedOutputError(
            f"`geokr {step.command}` reads files that are damaged: {files}. "
            f"Run `geokr {STEPS[name].command}`, which makes them again, or `geokr run` for the whole chain."
        )
