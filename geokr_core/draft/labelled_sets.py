"""Which labelled sets a folder holds: each subfolder is shown to every kind of task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import entries
from geokr_core.evaluation.sets.boxes import formats
from geokr_core.evaluation.sets.classes import class_folders
from geokr_core.evaluation.sets.masks import layout
from geokr_core.evaluation.sets.masks.read import bands_of
from geokr_core.rasters.image_files import UnusableImageError, read_image

_MOST_READ: Final = 4
"""Images of a set that are tried until one can be read."""


@dataclass(frozen=True)
class FoundSet:
    """A labelled set.

    Attributes:
        name: of its folder.
        kind: of the task.
        layout: how its files lie, in words.
        classes: its classes.
        questions: what could not be decided.
        num_unnamed_bands: bands of its images that nothing names; 0 where their names are known.
        bands: names to be given in the file; None: the chain finds them by itself.
    """

    name: str
    kind: str
    layout: str
    classes: tuple[str, ...]
    questions: tuple[str, ...] = ()
    num_unnamed_bands: int = 0
    bands: tuple[str, ...] | None = None


def find_labelled_sets(folder: Path) -> tuple[list[FoundSet], list[str]]:
    """The labelled sets below a folder.

    Returns:
        The sets by name; and the names of the subfolders that no kind of task recognises.
    """
    found, unknown = [], []
    for path in entries(folder):
        if not path.is_dir():
            continue
        one = next(_recognised(path), None)
        if one is None:
            unknown.append(path.name)
        else:
            found.append(one)
    return found, unknown


def _recognised(folder: Path) -> Iterator[FoundSet]:
    """Each kind that takes the folder for one of its sets, those with the most telling layouts first."""
    kinds: tuple[tuple[str, Callable[[Path], FoundSet]], ...] = (
        ("segmentation", partial(_masks, kind="segmentation")),
        ("cloud_snow", partial(_masks, kind="cloud_snow")),
        ("detection", _boxes),
        ("scene_classification", _classes),
    )
    for _, recognise in kinds:
        try:
            yield recognise(folder)
        except EvaluationError:
            continue


def _masks(folder: Path, kind: str) -> FoundSet:
    found = layout.recognise(folder, "auto", kind, Findings("skip"))
    questions: tuple[str, ...] = ()
    if (kind, found.name) == ("cloud_snow", "folder"):
        questions = (
            "it has masks and no palette.csv, so it is taken for cloud and snow; for other classes write palette.csv",
        )
    words = f"layout {found.name}, {len(found.items)} images"
    return FoundSet(folder.name, kind, words, found.classes, questions, _num_unnamed_bands(folder, found))


def _num_unnamed_bands(folder: Path, found: layout.FoundSet) -> int:
    """How many bands the first readable image has, if the chain would ask for their names."""
    if found.bands:
        return 0
    for item in found.items[:_MOST_READ]:
        try:
            image = read_image(item.image)
        except UnusableImageError:
            continue
        try:
            bands_of(folder, found, [image], Findings("skip"))
        except EvaluationError:
            return int(image.pixels.shape[-1])
        return 0
    return 0


def _boxes(folder: Path) -> FoundSet:
    found = formats.recognise(folder, "auto", Findings("skip"))
    return FoundSet(folder.name, "detection", f"labels in the form {found.name}", found.classes)


def _classes(folder: Path) -> FoundSet:
    classes = class_folders(folder)
    return FoundSet(folder.name, "scene_classification", f"{len(classes)} class folders", classes)
