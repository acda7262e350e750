"""The base of every section of the parameter file, and how a refused one is explained."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


def explain(error: ValidationError, whole: str = "catalogue") -> str:
    """A validation error as lines a person can act on.

    Args:
        error: what pydantic found.
        whole: what a fault of no single key is said to be in.
    """
    lines = [
        f"{'.'.join(str(part) for part in problem['loc']) or whole}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_input=False)
    ]
    return "\n  ".join([f"{error.error_count()} wrong value(s):", *lines])


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


Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def as_plain(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A section as JSON-able values, for manifests, tags and fingerprints."""
    return section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section)
