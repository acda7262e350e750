"""Files of labelled sets: split lists, pixels of any kind, and the count of what could not be used.

What the files of one kind of set mean is written with that kind: ``mask_layouts``, ``box_layouts``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from geokr_core.errors import EvaluationError
from geokr_core.rasters.open_raster import RASTER_ERRORS, open_raster

RASTER_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"}) | RASTER_SUFFIXES

Split = Literal["train", "val", "test"]


@dataclass
class Findings:
    """What is wrong with the items of a set: an error at once, or counted and reported, as the configuration says.

    Attributes:
        policy: ``fail`` raises at the first finding, ``skip`` counts.
        counted: kind of finding → the items it was found in.
    """

    policy: Literal["fail", "skip"]
    counted: dict[str, list[str]] = field(default_factory=dict)

    def found(self, kind: str, item: Path | str, message: str) -> None:
        """Raise or count.

        Args:
            kind: how the finding is summed up in the notes, e.g. ``images left out: not readable``.
            item: what it was found in.
            message: found, expected, what to do.

        Raises:
            EvaluationError: the policy is ``fail``.
        """
        if self.policy == "fail":
            raise EvaluationError(
                f"{item}: {message} Set `bad_items: skip` of this task to go on without it, counted and reported."
            )
        self.counted.setdefault(kind, []).append(str(Path(item).name))

    @property
    def notes(self) -> list[str]:
        """One line a kind of finding, with the number of items and the first of them."""
        return [
            f"{kind}: {len(items)} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
            for kind, items in self.counted.items()
        ]


def read_split(path: Path) -> list[str]:
    """The entries of a split file, one a line.

    Raises:
        EvaluationError: the file is empty or repeats an entry.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise EvaluationError(f"{path}: the split is empty; expected an image a line. Write it again.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EvaluationError(f"{path}: {twice!r} is listed more than once; expected every image once.")
    return names


def rows_by_split(
    splits: Sequence[Split | None], folder: Path, findings: Findings, what: str
) -> dict[Split, np.ndarray]:
    """Places of the usable items of each split, int64.

    Args:
        splits: split of each usable item, in order; None is none of them.
        folder: the set, for the message.
        findings: what was left out, for the message.
        what: what an item is, for the message.

    Raises:
        EvaluationError: the training or the test split has no usable item; validation may be empty.
    """
    rows: dict[Split, np.ndarray] = {}
    names: tuple[Split, ...] = ("train", "val", "test")
    for split in names:
        rows[split] = np.array([k for k, found in enumerate(splits) if found == split], dtype=np.int64)
        if not len(rows[split]) and split != "val":
            raise EvaluationError(
                f"{folder}: no usable {what} is left in the {split} split ({'; '.join(findings.notes) or 'none listed'})."
            )
    return rows


def read_pixels(path: Path) -> np.ndarray:
    """Pixels of an image as they are in the file.

    Args:
        path: JPEG, PNG or BMP (8-bit colour), or a TIFF of any bands and type.

    Returns:
        (H, W, C), any type.

    Raises:
        OSError: there is no such file, or it is none that can be read whole.
        ValueError: it holds no colours or bands.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        try:
            with open_raster(path) as source:
                return np.moveaxis(source.read(), 0, -1)
        except RASTER_ERRORS as error:
            raise OSError(f"{path}: {error}") from error
    try:
        with Image.open(path) as image:
            image.load()
            pixels = np.asarray(image.convert("RGB") if image.mode in {"P", "RGBA", "L", "1"} else image)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"found {pixels.dtype} of shape {pixels.shape}, expected 8-bit colour")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """A mask as it is in the file: (H, W) of codes, or uint8 (H, W, 3) of colours.

    Palette images give colours, grey ones codes.

    Raises:
        OSError: there is no such file, or it is none that can be read whole.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        pixels = read_pixels(path)
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(image.convert("RGB") if image.mode in {"P", "RGBA"} else image)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error


def listing(folder: Path, suffixes: Sequence[str] | frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files of a folder in order of their names; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def halves(groups: Sequence[str], chosen: Sequence[str] | None) -> tuple[list[int], list[int]]:
    """Training and test items of a set without split files: whole groups, never parts of one.

    Args:
        groups: of each item, e.g. the tile it was cut from.
        chosen: groups of the test split; None: every fourth group in order of names, at least one.

    Returns:
        Item numbers of training and of test.

    Raises:
        EvaluationError: a chosen group is not there, or nothing is left to learn from.
    """
    names = sorted(set(groups))
    test = list(names[3::4] or names[-1:]) if chosen is None else list(chosen)
    unknown = [name for name in test if name not in names]
    if unknown:
        raise EvaluationError(f"test_groups names {unknown[0]!r}; there are {', '.join(names[:20])}. Correct the name.")
    if len(test) == len(names):
        raise EvaluationError(f"All {len(names)} group(s) are in the test split; expected some to learn from.")
    return [k for k, name in enumerate(groups) if name not in test], [k for k, n in enumerate(groups) if n in test]
