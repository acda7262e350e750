"""The base of every section of the parameter file. How a refused one is explained is in ``explain``."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from geokr_core.step.found_files import glob_fault


def unknown_name(what: str, found: str, known: Iterable[str]) -> str:
    """That a name is not known, which one may be meant, and which there are.

    Args:
        what: what the name stands for, e.g. ``scene product``.
        found: the name.
        known: names that there are.
    """
    names = list(known)
    close = difflib.get_close_matches(found, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {what} {found!r}; {hint}Known: {', '.join(names)}"


def _without_fault(pattern: str) -> str:
    if fault := glob_fault(pattern):
        raise ValueError(fault)
    return pattern


FilePattern = Annotated[str, AfterValidator(_without_fault)]
"""A pattern of paths below a folder; see `glob_fault`."""

Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Base of all that people write: frozen, an unknown key is an error, and no value is taken for one that was not meant.

    Pydantic makes 0 of ``no``, 1 of ``yes`` and the working directory of an empty path; a field that says neither that it is true
    or false refuses the first two, a path the third. Numbers are finite where the field does not say otherwise.

    Attributes:
        code_version: of the step that the section belongs to. Raised by hand whenever the step's code gives another output
            for the same inputs; every output made by the earlier code is then made again.
        without_effect: fields on which no result depends (threads, how often something is kept or shown). A changed one
            makes nothing again.
        silent_unless_given: fields that were added later and are null by default. At null they appear nowhere, so that what was
            made before they existed is still known.
    """

    code_version: ClassVar[int] = 1
    without_effect: ClassVar[frozenset[str]] = frozenset()
    silent_unless_given: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        has_section = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
        for one in _scalars(value, into_mappings=not has_section):
            if isinstance(one, bool) and not kinds & {bool, Any, object}:
                raise ValueError(
                    f"expected no truth value (found {one!r}, which YAML reads in yes, no, on, off, true and false). Write the number "
                    "that is meant, text between quotes, or null for nothing."
                )
            if isinstance(one, str) and not one.strip() and Path in kinds:
                raise ValueError(
                    f"expected a path (found {one!r}). Write `.` for the working directory, null for nothing."
                )
        return value

    @classmethod
    def code_mark(cls) -> list[int]:
        """What `code_version` adds to the digest of a part that is kept alone: a scene, a finished run, a cell.

        The first version adds nothing, so that what was kept before versions counted is still known.
        """
        return [] if cls.code_version == 1 else [cls.code_version]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    pending = [annotation]
    while pending:
        kind = pending.pop()
        yield bool if isinstance(kind, bool) else kind  # of a literal
        pending.extend(getattr(kind, "__args__", ()))


def _scalars(value: Any, *, into_mappings: bool) -> Iterator[Any]:
    """What lists, and mappings that are no sections, hold at last."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _scalars(part, into_mappings=into_mappings)
    elif isinstance(value, Mapping):
        for part in value.values() if into_mappings else ():
            yield from _scalars(part, into_mappings=into_mappings)
    else:
        yield value


def effective(section: BaseModel) -> dict[str, Any]:
    """A section as JSON-able values, without the fields on which no result depends, also not in sections within it."""
    left_out = {*getattr(section, "without_effect", ()), *_silent(section)}
    return {str(name): _effective(value) for name, value in section if name not in left_out}


def _silent(section: BaseModel) -> set[str]:
    """Fields that say nothing: null, and added after outputs without them were made."""
    return {name for name in getattr(section, "silent_unless_given", ()) if getattr(section, name) is None}


def _effective(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return effective(value)
    if isinstance(value, Mapping):
        return {str(key): _effective(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_effective(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_plain(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A section as JSON-able values, for manifests, tags and fingerprints."""
    if not isinstance(section, BaseModel):
        return dict(section)
    return section.model_dump(mode="json", exclude=_silent_within(section))


def _silent_within(value: Any) -> dict[Any, Any]:
    """Fields that say nothing, also of sections within a section, as pydantic wants to be told what to leave out."""
    if isinstance(value, BaseModel):
        parts: Iterable[tuple[Any, Any]] = value
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    else:
        return {}
    within = {key: found for key, part in parts if (found := _silent_within(part))}
    return {**within, **dict.fromkeys(_silent(value) if isinstance(value, BaseModel) else (), True)}
