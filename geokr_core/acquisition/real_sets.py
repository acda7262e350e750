"""The real sets that ready-made parameter files read: what they are, and whether a folder holds them whole.

Nothing is downloaded here; fetching from catalogues is in ``fetching``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from geokr_core.errors import MissingInputError

State = Literal["whole", "missing", "not whole"]


@dataclass(frozen=True)
class RealSet:
    """A set.

    Attributes:
        folder: below the folder of all sets, for example ``tasks/eurosat``.
        what: sensor, ground, size.
        source: who made it, and where it was taken from.
        licence: its terms.
        mb: its size on disk.
        files: pattern below its folder -> number of files.
        beware: what a reader stumbles over.
    """

    folder: str
    what: str
    source: str
    licence: str
    mb: int
    files: Mapping[str, int]
    beware: str


@dataclass(frozen=True)
class Checked:
    """Whether a set is there.

    Attributes:
        folder: of the set.
        state: ``whole``, ``missing`` (no such folder) or ``not whole``.
        found: what is wrong with it; empty if nothing is.
    """

    folder: str
    state: State
    found: str = ""


@cache
def real_sets() -> Sequence[RealSet]:
    """All sets, scenes first."""
    content = yaml.safe_load(Path(__file__).with_name("real_sets.yaml").read_text(encoding="utf-8"))
    return [RealSet(folder, **entry) for folder, entry in content.items()]


def check_sets(folder: Path) -> list[Checked]:
    """Compare a folder with what the ready-made parameter files and the studies expect; files are counted, not read.

    Args:
        folder: with the subfolders ``scenes``, ``tasks`` and ``weights``.

    Raises:
        MissingInputError: there is no such folder.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; name the one that holds `scenes`, `tasks` and `weights`.")
    return [_checked(folder / one.folder, one) for one in real_sets()]


def _checked(place: Path, one: RealSet) -> Checked:
    if not place.is_dir():
        return Checked(one.folder, "missing", f"no folder {place}")
    wrong = []
    for pattern, expected in one.files.items():
        found = sum(path.is_file() and path.stat().st_size > 0 for path in place.glob(pattern))
        if found != expected:
            wrong.append(f"{pattern}: {found} file(s), expected {expected}")
    return Checked(one.folder, "not whole", "; ".join(wrong)) if wrong else Checked(one.folder, "whole")


def data_reference() -> str:
    """All sets as Markdown; ``docs/data.md`` holds exactly this text."""
    lines = [
        "# Data",
        "",
        "The real sets that `params/*.yaml` and the studies read. None is part of this repository: their terms differ, and some must not be passed on.",
        "Get them from their sources, put them into one folder as below, and compare:",
        "",
        "```console",
        "geokr check-data ../shared/data",
        "```",
        "",
        "It counts files, names what is missing, and ends with exit code 1 if anything is. The parameter files look in `../shared/data` beside the clone;",
        "tests that need real data look in `$GEOKR_REAL_DATA`, else there, and are skipped where it is not. To use another folder, override `scenes.folder`,",
        "`land_cover.folder` and `evaluation.folder`. You need none of this to try GeoKR: [ten minutes](start.md) run on a generated world.",
        "",
        "This page is made by `make reference` from the list that the command uses; do not edit it.",
    ]
    headings = {"scenes": "Scenes with land cover", "tasks": "Labelled sets", "weights": "Weights"}
    for kind, heading in headings.items():
        lines += ["", f"## {heading}"]
        for one in real_sets():
            if one.folder.startswith(f"{kind}/"):
                tree = ", ".join(
                    f"`{pattern}`" + (f" × {number:,}" if number > 1 else "") for pattern, number in one.files.items()
                )
                lines += ["", f"### {one.folder}", "", f"{one.what}.", "", "| | |", "|---|---|"]
                lines += [f"| from | {one.source} |", f"| licence | {one.licence} |"]
                lines += [f"| size | {one.mb} MB: {tree} |", f"| beware | {one.beware} |"]
    return "\n".join(lines) + "\n"
