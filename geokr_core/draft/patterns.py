"""Patterns that match some files and no others, as short as can be."""

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

MOST_PATTERNS: Final = 20
"""More patterns than these no one wants to read in a parameter file."""


def patterns_of(wanted: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """Patterns, see ``found_files.glob_fault``, that together match all of some paths and none of others.

    Args:
        wanted: paths with forward slashes, at least one.
        others: paths that must not be matched.

    Returns:
        One pattern where one can do it, else one a path.
    """
    kept_out = set(others) - set(wanted)
    for pattern in _candidates(wanted):
        if all(matches(pattern, path) for path in wanted) and not any(matches(pattern, path) for path in kept_out):
            return (pattern,)
    return tuple(_escaped(path) for path in wanted)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path."""
    return _matches(pattern.split("/"), path.split("/"))


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    if not pattern or not path:
        return not pattern and not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[k:]) for k in range(len(path)))
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


def _candidates(wanted: Sequence[str]) -> Iterator[str]:
    folders, names = zip(*(path.rpartition("/")[::2] for path in wanted), strict=True)
    folder = os.path.commonpath(folders) if all(folders) else ""
    below = f"{_escaped(folder)}/" if folder else ""
    endings = {PurePosixPath(name).suffix for name in names}
    ending = _escaped(endings.pop()) if len(endings) == 1 else ""
    before, after = _escaped(_common_start(names)), _escaped(_common_start([n[::-1] for n in names])[::-1])
    deep = "" if len(set(folders)) == 1 else "**/"
    if len(wanted) == 1:
        yield _escaped(wanted[0])
        return
    for start in dict.fromkeys((below + deep, below + "**/", "**/")):
        yield f"{start}*{ending}"
    for start in dict.fromkeys((below + deep, below + "**/")):
        yield f"{start}{before}*{ending}"
        yield f"{start}*{after}"
        yield f"{start}{before}*{after}"


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    same = next((k for k, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:same]


def _escaped(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
