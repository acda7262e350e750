"""Reading a set of images with boxes into memory: every image is scaled as soon as it is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.splits import Split, rows_by_split, with_splits
from geokr_core.evaluation.sets.boxes.formats import recognise
from geokr_core.evaluation.sets.boxes.found import LabelledImage
from geokr_core.evaluation.task_kinds import DetectionConfig
from geokr_core.rasters.image_files import LONE_GREY, UnusableImageError, read_image, read_in_threads

_OUTSIDE_PX: Final = 1.0
"""A box may reach this far out of its image before that is a fault: some tools count pixels from 1."""


@dataclass(frozen=True)
class BoxSet:
    """A set of images with boxes, in memory, scaled so that the longer side of every image is the same.

    Attributes:
        layout: form of its labels.
        classes: class names.
        images: uint8 (H, W, 3) each, red, green, blue.
        boxes: float32 (N, 4) each: left, top, right, bottom in pixels of `images`.
        labels: int64 (N,) each, 1 is the first class (0 is background).
        ignored: bool (N,) each.
        names: of the images.
        rows: items of each split; ``val`` may be empty.
        may_be_shown: whether a report may show its images.
        notes: what a reader needs to know about the set.
    """

    layout: str
    classes: tuple[str, ...]
    images: Sequence[np.ndarray]
    boxes: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    ignored: Sequence[np.ndarray]
    names: tuple[str, ...]
    rows: Mapping[Split, np.ndarray]
    may_be_shown: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """An item with its image, scaled; or what is wrong with it."""

    item: LabelledImage
    pixels: np.ndarray | None = None
    width: int = 0
    height: int = 0
    is_grey: bool = False
    fault: tuple[str, str] = ("", "")


def read_box_set(folder: Path, task: DetectionConfig, size_px: int, threads: int) -> BoxSet:
    """Read a set of images with boxes.

    Args:
        folder: of the set.
        task: its layout and what to do with bad items.
        size_px: longer side that every image is scaled to.
        threads: files decoded at a time.

    Returns:
        The set.

    Raises:
        EvaluationError: the folder is no known layout; an image or a box cannot be used and the policy is ``fail``; or
            nothing is left of a split.
    """
    findings = Findings(task.bad_items)
    found = recognise(folder, task.layout, findings)
    items = with_splits(folder, found.items, task.test_groups, findings)
    read = read_in_threads(lambda item: _read_item(item, size_px), items, threads)
    all_grey = all(each.is_grey for each in read if each.pixels is not None)
    kept, boxes, places = [], [], []
    for each in read:
        if not _usable(each, findings, all_grey=all_grey):
            continue
        sound, where = _sound_boxes(each, findings)
        kept.append(each)
        boxes.append(sound)
        places.append(where)
    classes = {name: place for place, name in enumerate(found.classes, start=1)}
    marks = [[each.item.marks[k] for k in where] for each, where in zip(kept, places, strict=True)]
    return BoxSet(
        layout=found.name,
        classes=found.classes,
        images=[each.pixels for each in kept if each.pixels is not None],
        boxes=boxes,
        labels=[np.array([classes[name] for _, name, _ in some], dtype=np.int64) for some in marks],
        ignored=[np.array([ignored for _, _, ignored in some], dtype=bool) for some in marks],
        names=tuple(each.item.image.stem for each in kept),
        rows=rows_by_split([each.item.part for each in kept], folder, findings, "image"),
        may_be_shown=found.may_be_shown,
        notes=(f"layout {found.name}", *findings.notes),
    )


def _read_item(item: LabelledImage, size_px: int) -> _Read:
    """The image of an item, scaled: at full size no more images are in memory than there are threads."""
    kind = "images left out: missing or not readable"
    if not item.image.is_file():
        return _Read(
            item,
            fault=(
                kind,
                "the labels name this image, but there is no such file; expected every labelled image. Fetch it again.",
            ),
        )
    try:
        picture = read_image(item.image)
        is_grey = picture.is_grey and picture.pixels.dtype == np.uint8
        pixels = np.repeat(picture.pixels, 3, axis=-1) if is_grey else picture.as_rgb8()
    except UnusableImageError as error:
        return _Read(item, fault=(kind, str(error)))
    height, width = pixels.shape[:2]
    if item.size not in {None, (width, height)}:
        declared = f"{item.size[0]} x {item.size[1]}" if item.size else ""
        message = (
            f"is {width} x {height} px upright, but its labels declare {declared} px; expected one size, since boxes would lie "
            "elsewhere. Correct the labels, or the file that they name."
        )
        return _Read(item, fault=("images left out: labels declare another size", message))
    return _Read(item, _scaled(pixels, size_px), width, height, is_grey)


def _usable(read: _Read, findings: Findings, *, all_grey: bool) -> bool:
    kind, message = read.fault
    if kind:
        findings.found(kind, read.item.image, message)
        return False
    if read.is_grey and not all_grey:
        findings.found("images left out: grey among colour images", read.item.image, LONE_GREY)
        return False
    if read.is_grey:
        findings.noted("grey images, read as equal red, green and blue", read.item.image)
    return True


def _sound_boxes(read: _Read, findings: Findings) -> tuple[np.ndarray, list[int]]:
    """Boxes float32 (N, 4) cut to the image and scaled with it, and their places among the item's."""
    assert read.pixels is not None  # is usable  # noqa: S101
    width, height, image = read.width, read.height, read.item.image
    boxes, places = [], []
    across, down = (width, height) if read.item.is_relative else (1, 1)
    for place, (given, _, _) in enumerate(read.item.marks):
        left, top, right, bottom = box = (given[0] * across, given[1] * down, given[2] * across, given[3] * down)
        shown = (
            f"box {place + 1} is ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in an image of {width} x {height} px"
        )
        if not np.isfinite(box).all() or right <= left or bottom <= top:
            findings.found("boxes left out: no area", image, f"{shown}; expected an area.")
            continue
        cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            findings.found("boxes left out: outside of their image", image, f"{shown}; expected it inside.")
            continue
        if max(abs(a - b) for a, b in zip(cut, box, strict=True)) > _OUTSIDE_PX:
            findings.found("boxes cut at the border of their image", image, f"{shown}; expected it inside.")
        boxes.append(cut)
        places.append(place)
    scale = np.array([read.pixels.shape[1] / width, read.pixels.shape[0] / height] * 2)
    return (np.array(boxes, dtype=np.float64).reshape(-1, 4) * scale).astype(np.float32), places


def _scaled(pixels: np.ndarray, size_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    factor = size_px / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
