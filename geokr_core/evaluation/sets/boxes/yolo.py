"""YOLO labels: a text an image, a line ``class x y width height`` a box, in shares of the image's width and height.

As Ultralytics, Roboflow, Darknet and LabelImg write them: ``images/`` beside ``labels/``, with or without folders of splits
in both; ``train/images`` beside ``train/labels``; or texts beside their images. Lines of corners (oriented boxes, outlines)
give the horizontal box around them. The classes are named in a ``.yaml`` file (``names``), ``classes.txt`` or ``obj.names``.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from geokr_core.errors import ConfigError, EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import (
    class_names,
    entries,
    images_in,
    named,
    number_of,
    read_lines,
    read_text,
)
from geokr_core.evaluation.labelled.splits import Part, part_of, settled
from geokr_core.evaluation.sets.boxes.found import FoundSet, LabelledImage, Mark, marks_of_lines
from geokr_core.step.strict_yaml import parse_yaml

_NAME_FILES: Final = ("classes.txt", "obj.names", "_darknet.labels")
_OTHER_TEXTS: Final = frozenset({"classes", "train", "val", "test"})
"""Texts without an image of their name that tools put among the labels."""

_LINE: Final = (
    "class x y width height, or class and the x y of three corners or more, each as a share of the image (0 to 1)"
)
_FARTHEST: Final = 2.0
"""A share beyond this is a pixel."""


def yolo(folder: Path, findings: Findings) -> FoundSet | None:
    """List the images of a set with YOLO labels; None where the folder holds none.

    Raises:
        EvaluationError: the classes are not named, or by two files otherwise; an image is in two splits; a label is broken
            and the policy is ``fail``.
    """
    places = [place for place in _places(folder) if _texts(*place[:2])]
    if not places:
        return None
    described = _described(folder)
    classes = _classes(folder, described, [labels for labels, _, _ in places])
    if classes is None:
        if all(labels == images for labels, images, _ in places):
            return None  # texts beside images may be anything
        raise EvaluationError(
            f"{folder}: its labels number the classes, and no file names them; expected `names` in a data.yaml, or a name a "
            "line in classes.txt, beside images/ and labels/."
        )
    said = _parts(folder, described)
    items: dict[Path, LabelledImage] = {}
    for labels, images, part in places:
        for item in _listed(labels, images, classes, findings):
            known = [said[key] for key in (item.image, item.image.parent) if key in said][:1]
            items[item.image] = LabelledImage(item.image, item.marks, known[0] if known else part, is_relative=True)
    return FoundSet("yolo", classes, list(items.values()))


def _places(folder: Path) -> Iterator[tuple[Path, Path, Part | None]]:
    """Folders that may hold labels, that of their images, and the split that their names speak of."""
    labels, images = folder / "labels", folder / "images"
    yield labels, images, None
    for below in entries(labels):
        if below.is_dir():
            yield below, images / below.name, part_of(below.name)
    for split in entries(folder):
        if split.is_dir() and (part := part_of(split.name)) is not None:
            yield split / "labels", split / "images", part
            yield split, split, part
    yield folder, folder, None


def _texts(labels: Path, images: Path) -> dict[str, Path]:
    """Label files by the name that they share with their image; beside images any other text is something else."""
    found = {path.stem: path for path in entries(labels) if path.suffix.lower() == ".txt"}
    names = {path.stem for path in images_in(images)} if labels == images else found.keys() - _OTHER_TEXTS
    return {stem: found[stem] for stem in found if stem in names}


def _listed(labels: Path, images: Path, classes: tuple[str, ...], findings: Findings) -> Iterator[LabelledImage]:
    texts, there = _texts(labels, images), {path.stem: path for path in images_in(images)}
    for stem in sorted({*texts, *there}):
        image = there.get(stem, images / f"{stem}.jpg")
        if stem not in texts:
            findings.noted("images without a label file, taken to show no object", image)
            yield LabelledImage(image, ())
        elif (marks := marks_of_lines(texts[stem], lambda line: _mark(line, classes), findings)) is not None:
            yield LabelledImage(image, marks)


def _mark(line: str, classes: tuple[str, ...]) -> Mark:
    try:
        number, *values = (number_of(value) for value in line.split())
    except ValueError as error:
        raise ValueError(_LINE) from error
    if not number.is_integer() or not 0 <= number < len(classes):
        raise ValueError(f"a class of 0 to {len(classes) - 1} ({named(classes)})")
    corners = len(values) >= 6 and len(values) % 2 == 0
    if not (corners or len(values) == 4) or not all(math.isfinite(v) and abs(v) <= _FARTHEST for v in values):
        raise ValueError(_LINE)
    if corners:
        across, down = values[::2], values[1::2]
        return (min(across), min(down), max(across), max(down)), classes[int(number)], False
    x, y, width, height = values
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), classes[int(number)], False


# --- what the set says of itself --------------------------------------------------------------------------------------


def _described(folder: Path) -> Mapping[str, Any]:
    """The file that describes the set: YAML with ``names``; empty where there is none."""
    found: dict[Path, Mapping[str, Any]] = {}
    for path in entries(folder):
        if path.suffix.lower() in {".yaml", ".yml"} and path.is_file():
            try:
                content = parse_yaml(read_text(path), str(path))
            except ConfigError as error:
                raise EvaluationError(str(error)) from error
            if isinstance(content, Mapping) and "names" in content:
                found[path] = content
    if len({str(content["names"]) for content in found.values()}) > 1:
        raise EvaluationError(
            f"{folder}: {named(path.name for path in found)} name the classes differently; expected one such file. "
            "Remove the other."
        )
    return next(iter(found.values()), {})


def _classes(folder: Path, described: Mapping[str, Any], labels: list[Path]) -> tuple[str, ...] | None:
    """Names of the classes in the order of their numbers; None where no file says them."""
    if "names" in described:
        names = described["names"]
        listed = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(listed, Mapping) or sorted(listed, key=str) != sorted(range(len(listed)), key=str):
            raise EvaluationError(f"{folder}: `names` is {names!r}; expected a name for each number from 0 on.")
        declared = described.get("nc", len(listed))
        if declared != len(listed):
            raise EvaluationError(
                f"{folder}: `nc` says {declared!r} classes, `names` has {len(listed)}; expected one number. Correct the file."
            )
        return class_names((listed[number] for number in range(len(listed))), folder)
    for place in dict.fromkeys([folder, *labels]):
        for path in (place / name for name in _NAME_FILES):
            if path.is_file():
                # The place of a line is the number of its class: a blank line would move all that follow.
                return class_names(read_text(path).rstrip().splitlines(), path)
    return None


def _parts(folder: Path, described: Mapping[str, Any]) -> dict[Path, Part]:
    """The split of images and folders of images that the describing file names, inside of the set."""
    said: dict[Path, list[Part]] = {}
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        value = described.get(part)
        for name in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            target = _inside(folder, described, str(name))
            if target is None:
                continue
            lists = target.suffix.lower() == ".txt"
            for path in (_inside(folder, described, line) for line in read_lines(target)) if lists else [target]:
                if path is not None:
                    said.setdefault(path, []).append(part)
    return {path: settled(found, path.name, folder) for path, found in said.items()}


def _inside(folder: Path, described: Mapping[str, Any], name: str) -> Path | None:
    """A path of the describing file that lies in the set; None for one of another machine or place."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", "."}]
    root = [part for part in str(described.get("path") or "").replace("\\", "/").split("/") if part not in {"", "."}]
    # Roboflow writes ../train/images for the folder train/images beside the file.
    tails = [parts[first:] for first in range(len(parts)) if ".." not in parts[first:]]
    places = [folder.joinpath(*root, *parts)] if root and ".." not in (*root, *parts) else []
    places += [folder.joinpath(*tail) for tail in tails]
    return next((path for path in places if path.exists()), None)
