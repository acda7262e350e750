"""A recognised set of images with boxes, and the lines of text that many forms of labels are made of.

Not here: which forms there are (``formats``, ``yolo``), and what becomes of the images (``read``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import read_text
from geokr_core.evaluation.labelled.splits import Part

Box = tuple[float, float, float, float]
Mark = tuple[Box, str, bool]
"""A box, its class, and whether it is neither learnt nor scored (crowds, difficult objects)."""

BROKEN_FILE: Final = "images left out: labels not readable"
BROKEN_BOX: Final = "boxes left out: not readable"


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its boxes.

    Attributes:
        image: the file.
        marks: its boxes.
        part: where the set itself puts the image, or None.
        size: width and height that the labels declare, or None.
        is_relative: whether the boxes are shares of the image's width and height, not pixels.
    """

    image: Path
    marks: tuple[Mark, ...]
    part: Part | None = None
    size: tuple[int, int] | None = None
    is_relative: bool = False

    @property
    def group(self) -> str:
        """What must not be torn apart between training and test: the image."""
        return self.image.stem


@dataclass(frozen=True)
class FoundSet:
    """A recognised set.

    Attributes:
        name: of the form of its labels.
        classes: class names, where the set lists them; else in alphabetical order of what occurs.
        items: of the whole set.
        may_be_shown: whether its terms let its images appear in a report.
    """

    name: str
    classes: tuple[str, ...]
    items: Sequence[LabelledImage]
    may_be_shown: bool = True


def occurring(items: Sequence[LabelledImage]) -> tuple[str, ...]:
    """Names of all classes that have a box, in alphabetical order."""
    return tuple(sorted({name for item in items for _, name, _ in item.marks}))


def marks_of_lines(path: Path, mark_of: Callable[[str], Mark | None], findings: Findings) -> tuple[Mark, ...] | None:
    """Boxes of a text of one line each.

    Args:
        path: the text.
        mark_of: the box of a line that is not blank, or None for one that holds none; ``ValueError`` with what is expected.
        findings: what is wrong with the file or a line.

    Returns:
        The boxes in order; None where it is no text at all.

    Raises:
        EvaluationError: the file or a line is broken, and the policy is ``fail``.
    """
    try:
        lines = read_text(path).splitlines()
    except EvaluationError as error:
        findings.found(BROKEN_FILE, path, f"{str(error).removeprefix(f'{path}: ')}")
        return None
    marks = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            mark = mark_of(line)
        except ValueError as error:
            findings.found(BROKEN_BOX, f"{path}, line {number}", f"found {line!r}, expected {error}. Correct the line.")
            continue
        if mark is not None:
            marks.append(mark)
    return tuple(marks)
