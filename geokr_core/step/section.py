"""The base of every section of the parameter file. How a refused one is explained is in ``explain``."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
    """Base of all sections: frozen, and an unknown key is an error.

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

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def code_mark(cls) -> list[int]:
        """What `code_version` adds to the digest of a part that is kept alone: a scene, a finished run, a cell.

        The first version adds nothing, so that what was kept before versions counted is still known.
        """
        return [] if cls.code_version == 1 else [cls.code_version]


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
    return (
        section.model_dump(mode="json", exclude=_silent(section)) if isinstance(section, BaseModel) else dict(section)
    )
