"""Sets of images with boxes: how their files lie, and reading them into memory.

A layout is a function that recognises a folder and lists its images with their boxes; `BOX_LAYOUTS` names them all. What
is learned from a set is written in ``object_detection``. The layouts of VOC and DOTA follow their published descriptions.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree  # only files of a configured folder; entities are refused below

import numpy as np
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.labelled_files import (
    Findings,
    Split,
    halves,
    listing,
    read_pixels,
    read_split,
    rows_by_split,
)

_OUTSIDE_PX: Final = 1.0
"""A box may reach this far out of its image before that is a finding: some tools count pixels from 1."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Labelled:
    """An image file and its boxes.

    Attributes:
        image: the file.
        boxes: left, top, right, bottom in pixels of the file.
        names: class name of each box.
        ignored: of each box, whether it is neither learnt nor scored (crowds, difficult objects).
        split: where the set itself puts the image, or None.
    """

    image: Path
    boxes: tuple[Box, ...]
    names: tuple[str, ...]
    ignored: tuple[bool, ...]
    split: Split | None = None


@dataclass(frozen=True)
class BoxLayout:
    """A recognised set.

    Attributes:
        name: of the layout.
        classes: class names, where the set lists them; else in alphabetical order of what occurs.
        items: of the whole set.
        may_be_shown: whether its terms let its images appear in a report.
    """

    name: str
    classes: tuple[str, ...]
    items: Sequence[Labelled]
    may_be_shown: bool = True


@dataclass(frozen=True)
class BoxSet:
    """A set of images with boxes, in memory, scaled so that the longer side of every image is the same.

    Attributes:
        layout: name of its layout.
        classes: class names.
        images: uint8 (H, W, 3) each, red, green, blue.
        boxes: float32 (N, 4) each: left, top, right, bottom in pixels of `images`.
        labels: int64 (N,) each, 1 is the first class (0 is background).
        ignored: bool (N,) each.
        names: of the images.
        rows: items of each split; ``val`` may be empty.
        may_be_shown: whether a report may show its images.
        notes: what a person should know.
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


_NWPU_CLASSES: Final = (
    "airplane", "ship", "storage_tank", "baseball_diamond", "tennis_court", "basketball_court", "ground_track_field",
    "harbor", "bridge", "vehicle",
)  # fmt: skip
_NWPU_LINE: Final = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*(\d+)")


def _nwpu_vhr10(folder: Path) -> BoxLayout | None:
    texts = sorted((folder / "ground truth").glob("*.txt"))
    if not texts:
        return None
    items = []
    for path in texts:
        boxes, names = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            found = _NWPU_LINE.search(line)
            if found is None or not 1 <= int(found[5]) <= len(_NWPU_CLASSES):
                raise _line_error(path, number, line, "(x1,y1),(x2,y2),class with a class of 1 to 10")
            boxes.append((float(found[1]), float(found[2]), float(found[3]), float(found[4])))
            names.append(_NWPU_CLASSES[int(found[5]) - 1])
        image = folder / "positive image set" / f"{path.stem}.jpg"
        items.append(Labelled(image, tuple(boxes), tuple(names), (False,) * len(boxes)))
    return BoxLayout("nwpu_vhr10", _NWPU_CLASSES, items, may_be_shown=False)


def _coco(folder: Path) -> BoxLayout | None:
    files = [*sorted(folder.glob("*.json")), *sorted((folder / "annotations").glob("*.json"))]
    items: list[Labelled] = []
    classes: list[str] = []
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{path}: not JSON ({error}); expected COCO labels. Fetch the file again.") from error
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
            continue
        named = [s for s in ("train", "val", "test") if s in path.stem.lower()]
        items += _coco_items(folder, path, content, named[0] if len(files) > 1 and named else None)  # type: ignore[arg-type]
        classes += [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]) if c["name"] not in classes]
    return BoxLayout("coco", tuple(classes), items) if items else None


def _coco_items(folder: Path, path: Path, content: Mapping[str, Any], split: Split | None) -> list[Labelled]:
    try:
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        found: dict[int, list[tuple[Box, str, bool]]] = {int(image["id"]): [] for image in content["images"]}
        for mark in content["annotations"]:
            left, top, width, height = (float(v) for v in mark["bbox"])
            box = (left, top, left + width, top + height)
            found[int(mark["image_id"])].append((box, names[int(mark["category_id"])], bool(mark.get("iscrowd", 0))))
        entries = [(str(image["file_name"]), found[int(image["id"])]) for image in content["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path}: broken COCO labels ({type(error).__name__}: {error}); expected images, annotations with bbox, "
            "image_id and category_id, and categories that agree with each other."
        ) from error
    roots = [folder, folder / "images", *(folder / str(split) for _ in [0] if split), path.parent.parent / "images"]
    items = []
    for name, marks in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EvaluationError(f"{path}: image {name!r} lies outside of the set; expected a path inside its folder.")
        places = [root / name for root in roots]
        image = next((place for place in places if place.is_file()), places[1])
        items.append(Labelled(image, *(_columns(marks)), split))
    return items


def _columns(marks: Sequence[tuple[Box, str, bool]]) -> tuple[tuple[Box, ...], tuple[str, ...], tuple[bool, ...]]:
    return tuple(m[0] for m in marks), tuple(m[1] for m in marks), tuple(m[2] for m in marks)


def _voc(folder: Path) -> BoxLayout | None:
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        return None
    splits: dict[str, Split] = {}
    lists: tuple[Split, ...] = ("train", "val", "test")
    for split in lists:
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        if path.is_file():
            splits |= {line.split()[0]: split for line in read_split(path)}
    if splits and "test" not in splits.values():  # the published archives keep their test labels: judge on `val`
        splits = {name: "test" if split == "val" else split for name, split in splits.items()}
    items = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        if "<!ENTITY" in text:
            raise EvaluationError(f"{path}: declares XML entities, which labels have no use for; refused.")
        try:
            root = ElementTree.fromstring(text)  # noqa: S314  entities are refused above
            marks = [_voc_mark(node) for node in root.iter("object")]
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}: broken VOC labels ({error}); expected name and bndbox in each object."
            ) from error
        name = root.findtext("filename") or f"{path.stem}.jpg"
        image = folder / "JPEGImages" / Path(name).name
        if not splits or path.stem in splits:
            items.append(Labelled(image, *(_columns(marks)), splits.get(path.stem)))
    return BoxLayout("voc", tuple(sorted({n for item in items for n in item.names})), items)


def _voc_mark(node: ElementTree.Element) -> tuple[Box, str, bool]:
    box = node.find("bndbox")
    if box is None:
        raise ValueError("an object has no bndbox")
    left, top, right, bottom = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and includes the last one.
    return (left - 1, top - 1, right, bottom), str(node.findtext("name")), node.findtext("difficult") == "1"


def _dota(folder: Path) -> BoxLayout | None:
    items: list[Labelled] = []
    splits: dict[str, Split] = {"train": "train", "val": "test"}  # the labels of its test split are not public
    for name, split in splits.items():
        labels = sorted(path for path in (folder / name).glob("labelTxt*") if path.is_dir())
        for path in sorted(labels[0].glob("*.txt")) if labels else ():
            images = [p for p in listing(folder / name / "images") if p.stem == path.stem]
            image = images[0] if images else folder / name / "images" / f"{path.stem}.png"
            items.append(Labelled(image, *(_columns(_dota_marks(path))), split))
    return (
        BoxLayout("dota", tuple(sorted({n for item in items for n in item.names})), items, may_be_shown=False)
        if items
        else None
    )


def _dota_marks(path: Path) -> list[tuple[Box, str, bool]]:
    marks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if not parts or line.startswith(("imagesource", "gsd")):
            continue
        try:
            points = np.array([float(v) for v in parts[:8]]).reshape(4, 2)
            name, difficult = parts[8], len(parts) > 9 and parts[9] == "1"
        except (IndexError, ValueError) as error:
            raise _line_error(path, number, line, "x1 y1 x2 y2 x3 y3 x4 y4 class difficult") from error
        low, high = points.min(axis=0), points.max(axis=0)
        marks.append(((float(low[0]), float(low[1]), float(high[0]), float(high[1])), name, difficult))
    return marks


def _line_error(path: Path, number: int, line: str, expected: str) -> EvaluationError:
    return EvaluationError(f"{path}, line {number}: found {line!r}, expected {expected}. Correct the line.")


BOX_LAYOUTS: Final[Mapping[str, Callable[[Path], BoxLayout | None]]] = {
    "nwpu_vhr10": _nwpu_vhr10, "voc": _voc, "dota": _dota, "coco": _coco,
}  # fmt: skip
"""Layouts, tried in this order."""


def read_box_set(folder: Path, task: TaskConfig, size_px: int, threads: int) -> BoxSet:
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
    layout = _recognise(folder, task.layout)
    findings = Findings(task.bad_items)
    items = _with_splits(folder, layout.items, task)
    with ThreadPoolExecutor(threads) as pool:
        images = list(pool.map(lambda item: _read_image(item.image), items))
    kept = []
    for item, pixels in zip(items, images, strict=True):
        if isinstance(pixels, str):
            findings.found("images left out: missing or not readable", item.image, pixels)
            continue
        kept.append((item, *_scaled(pixels, _sound_boxes(item, pixels.shape, findings), size_px)))
    classes = {name: place for place, name in enumerate(layout.classes, start=1)}
    rows = rows_by_split([entry[0].split for entry in kept], folder, findings, "image")
    return BoxSet(
        layout=layout.name,
        classes=layout.classes,
        images=[entry[1] for entry in kept],
        boxes=[entry[2] for entry in kept],
        labels=[np.array([classes[entry[0].names[k]] for k in entry[3]], dtype=np.int64) for entry in kept],
        ignored=[np.array([entry[0].ignored[k] for k in entry[3]], dtype=bool) for entry in kept],
        names=tuple(entry[0].image.stem for entry in kept),
        rows=rows,
        may_be_shown=layout.may_be_shown,
        notes=(f"layout {layout.name}", *findings.notes),
    )


def _recognise(folder: Path, wanted: str) -> BoxLayout:
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; point `evaluation.folder` at the folder of the labelled sets and name its "
            "subfolders in `evaluation.tasks`."
        )
    if wanted != "auto" and wanted not in BOX_LAYOUTS:
        raise EvaluationError(f"layout {wanted!r} is not known for detection; choose auto, {', '.join(BOX_LAYOUTS)}.")
    for name, recogniser in BOX_LAYOUTS.items():
        if wanted in {"auto", name} and (found := recogniser(folder)) is not None:
            return found
    expected = wanted if wanted != "auto" else f"one of {', '.join(BOX_LAYOUTS)}"
    raise EvaluationError(
        f"{folder}: its files do not lie as the layout {expected} has them; expected at least COCO labels in a .json "
        "file beside images/. docs/tasks.md shows every layout."
    )


def _with_splits(folder: Path, items: Sequence[Labelled], task: TaskConfig) -> list[Labelled]:
    files: dict[Split, Path] = {
        "train": folder / "split_train.txt", "val": folder / "split_val.txt", "test": folder / "split_test.txt",
    }  # fmt: skip
    if files["train"].is_file() and files["test"].is_file():
        by_name = {key: item for item in items for key in (item.image.name, item.image.stem)}
        chosen: list[Labelled] = []
        for split, path in files.items():
            for name in read_split(path) if path.is_file() else ():
                if name not in by_name:
                    raise EvaluationError(
                        f"{path}: lists {name!r}, but no labels name such an image. Correct the line."
                    )
                item = by_name[name]
                chosen.append(Labelled(item.image, item.boxes, item.names, item.ignored, split))
        both = [name for name, count in Counter(item.image for item in chosen).items() if count > 1]
        if both:
            raise EvaluationError(f"{folder}: {both[0].name} is in two splits; a test image must never be learnt from.")
        return chosen
    if task.test_groups is None and all(item.split for item in items):
        return list(items)
    _, test = halves([item.image.stem for item in items], task.test_groups)
    in_test = set(test)
    return [
        Labelled(i.image, i.boxes, i.names, i.ignored, "test" if k in in_test else "train") for k, i in enumerate(items)
    ]


def _read_image(path: Path) -> np.ndarray | str:
    """Pixels uint8 (H, W, 3), or what is wrong with the file."""
    if not path.is_file():
        return "the labels name this image, but there is no such file; expected every labelled image. Fetch it again."
    try:
        pixels = read_pixels(path)
    except (OSError, ValueError) as error:
        return f"cannot be read as an image ({error}); fetch it again."
    if pixels.dtype != np.uint8 or pixels.shape[-1] < 3:
        return f"has {pixels.shape[-1]} band(s) of {pixels.dtype}; expected 8-bit red, green and blue."
    return np.ascontiguousarray(pixels[..., :3])


def _sound_boxes(item: Labelled, shape: Sequence[int], findings: Findings) -> tuple[np.ndarray, list[int]]:
    """Boxes float64 (N, 4) cut to the image, and their places among the item's."""
    height, width = shape[:2]
    boxes, places = [], []
    for place, box in enumerate(item.boxes):
        left, top, right, bottom = box
        shown = (
            f"box {place + 1} is ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in an image of {width} x {height} px"
        )
        if not np.isfinite(box).all() or right <= left or bottom <= top:
            findings.found("boxes left out: no area", item.image, f"{shown}; expected an area.")
            continue
        cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            findings.found("boxes left out: outside of their image", item.image, f"{shown}; expected it inside.")
            continue
        if max(abs(a - b) for a, b in zip(cut, box, strict=True)) > _OUTSIDE_PX:
            findings.found("boxes cut at the border of their image", item.image, f"{shown}; expected it inside.")
        boxes.append(cut)
        places.append(place)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), places


def _scaled(
    pixels: np.ndarray, sound: tuple[np.ndarray, list[int]], size_px: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    boxes, places = sound
    height, width = pixels.shape[:2]
    factor = size_px / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size != (width, height):
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        boxes = boxes * np.array([size[0] / width, size[1] / height] * 2)
    return pixels, boxes.astype(np.float32), places
