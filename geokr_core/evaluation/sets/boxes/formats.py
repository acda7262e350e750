"""Forms of labels with boxes: NWPU VHR-10, VOC, DOTA, COCO and YOLO. Each recognises a folder and lists its images.

Boxes are left, top, right, bottom in pixels of the upright image, counted from its upper left corner. VOC and DOTA follow
their published descriptions; COCO is read from its JSON, since pycocotools neither checks what it reads nor knows splits.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element  # read in label_files

import numpy as np

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import (
    class_name,
    entries,
    flag_of,
    images_in,
    number_of,
    read_json_labels,
    read_lines,
    read_xml_labels,
    whole_number_of,
)
from geokr_core.evaluation.labelled.splits import Part, part_of, settled
from geokr_core.evaluation.sets.boxes.found import (
    BROKEN_BOX,
    BROKEN_FILE,
    FoundSet,
    LabelledImage,
    Mark,
    marks_of_lines,
    occurring,
)
from geokr_core.evaluation.sets.boxes.yolo import yolo
from geokr_core.rasters.image_files import IMAGE_SUFFIXES


def recognise(folder: Path, wanted: str, findings: Findings) -> FoundSet:
    """Find out how a set's labels are written.

    Args:
        folder: of the set.
        wanted: one of `FORMATS`, or ``auto``.
        findings: what is wrong with single labels.

    Raises:
        EvaluationError: the folder is missing, or holds none of the forms; a label is broken and the policy is ``fail``.
    """
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; point `evaluation.folder` at the folder of the labelled sets and name its "
            "subfolders in `evaluation.tasks`."
        )
    if wanted != "auto" and wanted not in FORMATS:
        raise EvaluationError(f"layout {wanted!r} is not known for detection; choose auto, {', '.join(FORMATS)}.")
    for name, recogniser in FORMATS.items():
        if wanted in {"auto", name} and (found := recogniser(folder, findings)) is not None:
            return found
    expected = wanted if wanted != "auto" else f"one of {', '.join(FORMATS)}"
    raise EvaluationError(
        f"{folder}: its files do not lie as the layout {expected} has them; expected at least COCO labels in a .json "
        "file beside images/. docs/tasks.md shows every layout."
    )


# --- NWPU VHR-10 ------------------------------------------------------------------------------------------------------

_NWPU_CLASSES: Final = (
    "airplane",
    "ship",
    "storage_tank",
    "baseball_diamond",
    "tennis_court",
    "basketball_court",
    "ground_track_field",
    "harbor",
    "bridge",
    "vehicle",
)
_NWPU_LINE: Final = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*(\d+)")


def _nwpu_vhr10(folder: Path, findings: Findings) -> FoundSet | None:
    texts = [path for path in entries(folder / "ground truth") if path.suffix.lower() == ".txt"]
    images = folder / "positive image set"
    items = [
        LabelledImage(images / f"{path.stem}.jpg", marks)
        for path in texts
        if (marks := marks_of_lines(path, _nwpu_mark, findings)) is not None
    ]
    return FoundSet("nwpu_vhr10", _NWPU_CLASSES, items, may_be_shown=False) if texts else None


def _nwpu_mark(line: str) -> Mark | None:
    found = _NWPU_LINE.search(line)
    if found is None or not 1 <= int(found[5]) <= len(_NWPU_CLASSES):
        raise ValueError("(x1,y1),(x2,y2),class with a class of 1 to 10")
    left, top, right, bottom = (float(found[k]) for k in range(1, 5))
    return (left, top, right, bottom), _NWPU_CLASSES[int(found[5]) - 1], False


# --- DOTA -------------------------------------------------------------------------------------------------------------


def _dota(folder: Path, findings: Findings) -> FoundSet | None:
    items: list[LabelledImage] = []
    num_files = 0
    for part_folder in entries(folder):
        labels = [path for path in entries(part_folder) if path.name.startswith("labelTxt") and path.is_dir()]
        part = part_of(part_folder.name)
        if not labels or part is None:
            continue
        images = {path.stem: path for path in images_in(part_folder / "images")}
        texts = [path for path in entries(labels[0]) if path.suffix.lower() == ".txt"]
        num_files += len(texts)
        for path in texts:
            if (marks := marks_of_lines(path, _dota_mark, findings)) is not None:
                image = images.get(path.stem, part_folder / "images" / f"{path.stem}.png")
                items.append(LabelledImage(image, marks, part))
    return FoundSet("dota", occurring(items), items, may_be_shown=False) if num_files else None


_DOTA_DIFFICULT: Final = {(): False, ("0",): False, ("1",): True, ("2",): True}
"""What may follow the class; the published splitting tool writes 2 where it cut an object in two."""


def _dota_mark(line: str) -> Mark | None:
    """A horizontal box around the four corners; None for the lines above the boxes."""
    if line.startswith(("imagesource", "gsd")):
        return None
    parts = line.split()
    try:
        points = np.array([number_of(value) for value in parts[:8]]).reshape(4, 2)
        name, *flag = parts[8:]
        difficult = _DOTA_DIFFICULT[tuple(flag)]
    except (KeyError, ValueError) as error:
        raise ValueError("x1 y1 x2 y2 x3 y3 x4 y4 class difficult") from error
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (left, top, right, bottom), name, difficult


# --- VOC --------------------------------------------------------------------------------------------------------------


def _voc(folder: Path, findings: Findings) -> FoundSet | None:
    """``Annotations`` beside ``JPEGImages``, or labels beside their images in folders of splits, as Roboflow exports."""
    items: list[LabelledImage] = []
    listed = _voc_lists(folder)
    places: list[tuple[Path, Path, Part | None]] = [(folder / "Annotations", folder / "JPEGImages", None)]
    places += [(path, path, part) for path in entries(folder) if path.is_dir() and (part := part_of(path.name))]
    num_files = 0
    for labels, images, part in places:
        files = [path for path in entries(labels) if path.suffix.lower() == ".xml"]
        num_files += len(files)
        there = {path.stem: path for path in images_in(images)} if files else {}
        for path in files:
            if listed and path.stem not in listed:
                continue
            item = _voc_item(path, images, there, findings)
            if item is not None:
                items.append(LabelledImage(item.image, item.marks, listed.pop(path.stem, part), item.size))
    for name in listed if num_files else ():
        message = f"lists {name!r}, but there are no labels of that name. Correct the line."
        findings.found("split entries without labels", folder / "ImageSets", message)
    return FoundSet("voc", occurring(items), items) if num_files else None


def _voc_lists(folder: Path) -> dict[str, Part]:
    """The part of each image by the lists of ``ImageSets/Main``."""
    parts: dict[str, set[Part]] = {}
    names: tuple[Part, ...] = ("train", "val", "test", "trainval")
    for part in names:
        path = folder / "ImageSets" / "Main" / f"{part}.txt"
        for line in read_lines(path) if path.is_file() else ():
            parts.setdefault(_listed_name(line), set()).add(part)
    return {name: settled(found, name, folder) for name, found in parts.items()}


def _listed_name(line: str) -> str:
    """The image of a line such as ``000001``, ``000001.jpg`` or ``000001 -1``."""
    *name, last = line.split()
    text = " ".join(name) if name and last in {"-1", "0", "1"} else line
    return Path(text).stem if Path(text).suffix.lower() in IMAGE_SUFFIXES else text


def _voc_item(path: Path, images: Path, there: Mapping[str, Path], findings: Findings) -> LabelledImage | None:
    try:
        root = read_xml_labels(path)
    except EvaluationError as error:
        findings.found(BROKEN_FILE, path, f"{str(error).removeprefix(f'{path}: ')}")
        return None
    marks = []
    for number, node in enumerate(root.iter("object"), start=1):
        try:
            marks.append(_voc_mark(node))
        except ValueError as error:
            message = f"object {number}: {error}; expected name and bndbox in each object. Correct the file."
            findings.found(BROKEN_BOX, path, message)
    # Labels and image of one name belong together; <filename> is what a tool happened to see when it wrote the labels.
    given = Path((root.findtext("filename") or "").replace("\\", "/")).name
    image = there.get(path.stem) or there.get(given) or there.get(Path(given).stem) or images / f"{path.stem}.jpg"
    return LabelledImage(image, tuple(marks), size=_voc_size(root))


def _voc_size(root: Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _voc_mark(node: Element) -> Mark:
    boxes, name = node.findall("bndbox"), (node.findtext("name") or "").strip()
    if len(boxes) != 1 or not name:
        raise ValueError(
            "an object has no name" if boxes and not name else f"an object has {len(boxes) or 'no'} bndbox"
        )
    try:
        left, top, right, bottom = (
            number_of(boxes[0].findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        raise ValueError(f"its bndbox holds something else than numbers ({error})") from error
    # VOC counts pixels from 1 and includes the last one.
    return (left - 1, top - 1, right, bottom), name, flag_of(node.findtext("difficult"), "difficult")


# --- COCO -------------------------------------------------------------------------------------------------------------


def _coco(folder: Path, findings: Findings) -> FoundSet | None:
    """JSON files in the folder, in ``annotations``, or in folders of splits, as Roboflow exports."""
    places = [folder, folder / "annotations", *(p for p in entries(folder) if p.is_dir() and part_of(p.name))]
    files = [path for place in places for path in entries(place) if path.suffix.lower() == ".json"]
    if any(path.stem.startswith("instances") for path in files):  # beside them lie captions and keypoints
        files = [path for path in files if path.stem.startswith("instances")]
    items: list[LabelledImage] = []
    classes: list[str] = []
    for path in files:
        content = read_json_labels(path)
        if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
            continue
        part = part_of(path.stem) or (part_of(path.parent.name) if path.parent != folder else None)
        if part == "test" and not content["annotations"]:
            findings.noted("label files of a test split without labels, left out", path)
            continue
        names = _coco_classes(path, content)
        items += _coco_items(folder, path, content, names, part if len(files) > 1 else None, findings)
        classes += [name for _, name in sorted(names.items()) if name not in classes]
    return FoundSet("coco", tuple(classes), items) if items else None


def _coco_classes(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    try:
        for category in content["categories"]:
            number = whole_number_of(category["id"])
            name = class_name(category["name"], f"{path}: category {number}")
            if names.setdefault(number, name) != name:
                raise _broken_coco(path, f"category {number} is both {names[number]!r} and {name!r}")
    except _BROKEN as error:
        raise _broken_coco(path, f"categories: {_said(error)}") from error
    return names


_BROKEN: Final = (KeyError, TypeError, ValueError, OverflowError)
"""What Python raises over labels that are not as they should be; `OverflowError` over a whole number of infinity."""


def _said(error: Exception) -> str:
    return f"{error} is missing or not listed" if isinstance(error, KeyError) else str(error)


def _broken_coco(path: Path, what: str) -> EvaluationError:
    return EvaluationError(
        f"{path}: broken COCO labels ({what}); expected images, annotations with bbox, image_id and category_id, and "
        "categories that agree with each other."
    )


def _coco_items(
    folder: Path,
    path: Path,
    content: Mapping[str, Any],
    classes: Mapping[int, str],
    part: Part | None,
    findings: Findings,
) -> Iterator[LabelledImage]:
    listed: dict[int, Mapping[str, Any]] = {}
    marks: dict[int, list[Mark]] = {}
    try:
        for image in content["images"]:
            number, name = whole_number_of(image["id"]), str(image["file_name"])
            if number in listed:
                message = (
                    f"image {name!r} has the id {number} of another one; expected an id an image. Correct the file."
                )
                findings.found("images left out: the id of another one", path, message)
                continue
            listed[number], marks[number] = image, []
        annotations = list(content["annotations"])
    except _BROKEN as error:
        raise _broken_coco(path, f"images: {_said(error)}") from error
    for number, annotation in enumerate(annotations, start=1):
        try:
            marks[whole_number_of(annotation["image_id"])].append(_coco_mark(annotation, classes))
        except _BROKEN as error:
            message = (
                f"annotation {number}: broken COCO labels ({_said(error)}); expected a bbox of four numbers, "
                "and an image_id and category_id that the file lists. Correct the file."
            )
            findings.found(BROKEN_BOX, path, message)
    roots = [path.parent, folder, folder / "images", path.parent.parent / "images"]
    if part is not None:
        roots += [
            place / sub.name
            for place in (folder, folder / "images")
            for sub in entries(place)
            if part_of(sub.name) == part
        ]
    for number, image in listed.items():
        name = str(image["file_name"]).replace("\\", "/")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EvaluationError(f"{path}: image {name!r} lies outside of the set; expected a path inside its folder.")
        found = next((root / name for root in roots if (root / name).is_file()), folder / "images" / name)
        yield LabelledImage(found, tuple(marks[number]), part, _coco_size(image))


def _coco_mark(annotation: Mapping[str, Any], classes: Mapping[int, str]) -> Mark:
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"its bbox is {box!r}")
    left, top, width, height = (number_of(value) for value in box)
    name = classes[whole_number_of(annotation["category_id"])]
    return (left, top, left + width, top + height), name, flag_of(annotation.get("iscrowd"), "iscrowd")


def _coco_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        width, height = whole_number_of(image["width"]), whole_number_of(image["height"])
    except _BROKEN:
        return None
    return (width, height) if width > 0 and height > 0 else None


FORMATS: Final[Mapping[str, Callable[[Path, Findings], FoundSet | None]]] = {
    "nwpu_vhr10": _nwpu_vhr10,
    "voc": _voc,
    "dota": _dota,
    "coco": _coco,
    "yolo": yolo,
}
"""Forms of labels, tried in this order."""
