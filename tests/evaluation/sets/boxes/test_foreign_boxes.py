"""Boxes as people have them: renamed files, released splits, exports of tools, broken labels, pictures that are turned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.boxes import read as reading
from geokr_core.evaluation.sets.boxes.read import BoxSet, read_box_set

WIDTH, HEIGHT = 96, 64


def read(folder: Path, **fields: object) -> BoxSet:
    section = {"name": folder.name, "kind": "detection", **fields}
    return read_box_set(folder, TaskConfig.model_validate(section), WIDTH, 1)


def splits(found: BoxSet) -> dict[str, list[str]]:
    return {split: [found.names[k] for k in rows] for split, rows in found.rows.items()}


def picture(path: Path, value: int = 90, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def voc_xml(filename: str, width: int = WIDTH, height: int = HEIGHT, name: str = "ship") -> str:
    return (
        f"<annotation><filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>{name}</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"
        "</annotation>"
    )


def voc(folder: Path, num: int = 4, filename: Callable[[int], str] = lambda k: f"{k}.jpg", **lists: str) -> Path:
    for k in range(num):
        picture(folder / "JPEGImages" / f"{k}.jpg", 10 * k)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{k}.xml").write_text(voc_xml(filename(k)))
    for name, text in lists.items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    "filename",
    [
        lambda k: f"{k}.jpg",
        lambda k: str(k),
        lambda k: "unknown.png",
        lambda k: f"{(k + 1) % 4}.jpg",
        lambda k: rf"C:\data\{k}.jpg",
        lambda k: "",
    ],
)
def test_labels_belong_to_the_image_of_their_own_name(tmp_path: Path, filename: Callable[[int], str]) -> None:
    found = read(voc(tmp_path / "set", filename=filename))

    assert found.names == ("0", "1", "2", "3")
    assert [int(image.mean()) for image in found.images] == pytest.approx([0, 10, 20, 30], abs=1)


def test_a_file_that_the_labels_name_is_the_fallback(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set", filename=lambda k: f"ship_{k}.jpg")
    for k in range(4):
        (folder / "JPEGImages" / f"{k}.jpg").rename(folder / "JPEGImages" / f"ship_{k}.jpg")
    assert read(folder).names == ("ship_0", "ship_1", "ship_2", "ship_3")


def test_a_declared_size_that_is_not_the_images_is_a_fault(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    (folder / "Annotations" / "1.xml").write_text(voc_xml("1.jpg", HEIGHT, WIDTH))
    with pytest.raises(EvaluationError, match=r"1\.jpg: is 96 x 64 px upright, but its labels declare 64 x 96"):
        read(folder)
    found = read(folder, bad_items="skip")
    assert (found.names, found.notes[1]) == (("0", "2", "3"), "images left out: labels declare another size: 1 (1.jpg)")
    (folder / "Annotations" / "1.xml").write_text(voc_xml("1.jpg", 0, 0))  # some tools do not know
    assert len(read(folder).images) == 4


def test_boxes_lie_on_the_upright_image(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    upright[10:30, 10:30] = 255
    exif = Image.Exif()
    exif[274] = 6  # stored a quarter turn against the clock
    for path in (folder / "JPEGImages").iterdir():
        Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif, quality=95)
    found = read(folder)

    assert found.images[0].shape == (HEIGHT, WIDTH, 3)
    left, top, right, bottom = found.boxes[0][0].astype(int)
    assert (left, top, right, bottom) == (10, 10, 30, 30)
    assert found.images[0][top + 1 : bottom - 1, left + 1 : right - 1].min() > 230


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"trainval": "0\n1\n2\n", "test": "3\n"}, {"train": ["0", "1", "2"], "val": [], "test": ["3"]}),
        ({"train": "0\n1\n", "val": "2\n3\n"}, {"train": ["0", "1"], "val": [], "test": ["2", "3"]}),
        ({"train": "0\n1\n", "val": "2\n", "test": "3\n"}, {"train": ["0", "1"], "val": ["2"], "test": ["3"]}),
        (
            {"train": "0\n", "val": "1\n", "trainval": "0\n1\n", "test": "2\n3\n"},
            {"train": ["0"], "val": ["1"], "test": ["2", "3"]},
        ),
        ({"train": "0.jpg\n1.jpg\n", "test": "2 1\n3 -1\n"}, {"train": ["0", "1"], "val": [], "test": ["2", "3"]}),
        ({"train": "\ufeff0\r\n1\r\n", "test": "3\n"}, {"train": ["0", "1"], "val": [], "test": ["3"]}),
    ],
)
def test_the_usual_lists_of_voc_are_read_as_meant(
    tmp_path: Path, lists: dict[str, str], expected: dict[str, list[str]]
) -> None:
    assert splits(read(voc(tmp_path / "set", **lists))) == expected


def test_contradicting_lists_are_an_error_and_a_listed_image_without_labels_a_fault(tmp_path: Path) -> None:
    for lists in (
        {"train": "0\n1\n", "test": "1\n"},
        {"trainval": "0\n1\n", "test": "1\n"},
        {"train": "0\n1\n", "val": "1\n"},
    ):
        with pytest.raises(EvaluationError, match="1 is in two splits"):
            read(voc(tmp_path / "-".join(lists), **lists), bad_items="skip")
    folder = voc(tmp_path / "set", train="0\n1\n9\n", test="3\n")
    with pytest.raises(EvaluationError, match="'9', but there are no labels of that name"):
        read(folder)
    assert splits(read(folder, bad_items="skip"))["train"] == ["0", "1"]


def test_exports_with_labels_beside_their_images_are_read(tmp_path: Path) -> None:
    for split, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        for k in numbers:
            picture(tmp_path / "voc" / split / f"{k}_jpg.rf.abc.jpg")
            (tmp_path / "voc" / split / f"{k}_jpg.rf.abc.xml").write_text(voc_xml(f"{k}_jpg.rf.abc.jpg"))
            picture(tmp_path / "coco" / split / f"{k}.jpg", 10 * k)
        images = [{"id": k, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT} for k in numbers]
        marks = [{"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 20, 20]} for k in numbers]
        content = {
            "images": images,
            "annotations": marks,
            "categories": [{"id": 0, "name": "ships"}, {"id": 1, "name": "ship"}],
        }
        (tmp_path / "coco" / split / "_annotations.coco.json").write_text(json.dumps(content))
    for name in ("voc", "coco"):
        found = splits(read(tmp_path / name))
        assert {split: len(names) for split, names in found.items()} == {"train": 2, "val": 1, "test": 1}


def coco(folder: Path, files: dict[str, tuple[int, ...]], num: int = 4, **changes: Any) -> Path:
    """COCO label files by name, each with the images listed."""
    for k in range(num):
        picture(folder / "images" / f"{k}.jpg")
    (folder / "annotations").mkdir(exist_ok=True)
    for name, numbers in files.items():
        content = {
            "images": [{"id": k, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT} for k in numbers],
            "annotations": [
                {"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0} for k in numbers
            ],
            "categories": [{"id": 1, "name": "ship"}],
        }
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content | changes))
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train": (0, 1, 2), "val": (3,)}, {"train": ["0", "1", "2"], "val": [], "test": ["3"]}),
        ({"train": (0, 1), "val": (2,), "all": (0, 1, 2, 3)}, {"train": ["0", "1"], "val": [], "test": ["2"]}),
        (
            {"instances_train2017": (0, 1), "instances_val2017": (2,), "person_keypoints_train2017": (0, 1, 3)},
            {"train": ["0", "1"], "val": [], "test": ["2"]},
        ),
        ({"latest": (0, 1), "retrained": (2, 3)}, {"train": ["0", "1", "2"], "val": [], "test": ["3"]}),
        ({"trainval": (0, 1, 2), "test": (3,)}, {"train": ["0", "1", "2"], "val": [], "test": ["3"]}),
        ({"only": (0, 1, 2, 3)}, {"train": ["0", "1", "2"], "val": [], "test": ["3"]}),
    ],
)
def test_label_files_of_coco_are_read_once_and_split_as_they_say(
    tmp_path: Path, files: dict[str, tuple[int, ...]], expected: dict[str, list[str]]
) -> None:
    assert splits(read(coco(tmp_path / "set", files))) == expected


def test_a_test_file_without_labels_is_no_test_split(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set", {"train": (0, 1), "val": (2,)})
    bare = {"images": [{"id": 3, "file_name": "3.jpg"}], "annotations": [], "categories": []}
    (folder / "annotations" / "test.json").write_text(json.dumps(bare))
    found = read(folder)

    assert splits(found) == {"train": ["0", "1"], "val": [], "test": ["2"]}
    assert any("test split without labels" in note for note in found.notes)


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_an_image_of_two_coco_splits_is_an_error(tmp_path: Path, policy: str) -> None:
    with pytest.raises(EvaluationError, match=r"1\.jpg is in two splits"):
        read(coco(tmp_path / "set", {"train": (0, 1, 2), "test": (1, 3)}), bad_items=policy)


@pytest.mark.parametrize(
    "broken",
    [
        {"bbox": []},
        {"bbox": None},
        {"bbox": [1, 2, 3]},
        {"bbox": ["a", 1, 2, 3]},
        {"bbox": {}},
        {"category_id": 99},
        {"category_id": None},
        {"image_id": 99},
        {"image_id": "x"},
        {"image_id": 1.9},
        {"category_id": 1.9},
        {"category_id": True},
        {"iscrowd": "sometimes"},
        {"bbox": [10, 10, -5, 5]},
        {"bbox": [float("nan"), 1, 2, 3]},
    ],
)
def test_every_broken_box_is_an_error_or_left_out_and_counted(tmp_path: Path, broken: dict[str, object]) -> None:
    marks = [{"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 20, 20]} for k in range(4)]
    marks[1] |= broken  # type: ignore[operator]
    folder = coco(tmp_path / "set", {"a": (0, 1, 2, 3)}, annotations=marks)
    with pytest.raises(EvaluationError, match="bad_items: skip"):
        read(folder)
    found = read(folder, bad_items="skip")

    assert [len(boxes) for boxes in found.boxes] == [1, 0, 1, 1]
    assert any("boxes left out" in note and ": 1 (" in note for note in found.notes)


def test_declared_sizes_of_coco_are_compared_too(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT + k} for k in range(4)]
    folder = coco(tmp_path / "set", {"a": (0, 1, 2, 3)}, images=images)
    with pytest.raises(EvaluationError, match="declare 96 x 65 px"):
        read(folder)


def test_broken_label_files_are_an_error_by_name_or_left_out_and_counted(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    for content in (b"<annotation>", b"\xff\xfe\x00", b'<?xml version="1.0" encoding="ascii"?><a>\xe9</a>'):
        (folder / "Annotations" / "1.xml").write_bytes(content)
        with pytest.raises(EvaluationError, match=r"1\.xml"):
            read(folder)
        found = read(folder, bad_items="skip")
        assert (found.names, found.notes[1]) == (("0", "2", "3"), "images left out: labels not readable: 1 (1.xml)")
    (folder / "Annotations" / "1.xml").write_text(voc_xml("1.jpg").replace("<xmin>11<", "<xmin>left<"))
    assert [len(boxes) for boxes in read(folder, bad_items="skip").boxes] == [1, 0, 1, 1]


def test_labels_in_another_declared_encoding_keep_their_class_names(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    for k in range(4):
        text = f'<?xml version="1.0" encoding="gb2312"?>{voc_xml(f"{k}.jpg", name="船")}'
        (folder / "Annotations" / f"{k}.xml").write_bytes(text.encode("gb2312"))
    assert read(folder).classes == ("船",)


def test_leftovers_are_no_labels(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    for name in ("Annotations/._0.xml", "JPEGImages/._0.jpg", "Annotations/.DS_Store", "__MACOSX/Annotations/0.xml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert len(read(folder).images) == 4


def test_lines_that_are_broken_are_counted_where_bad_items_are_skipped(tmp_path: Path) -> None:
    for k in range(4):
        for split in ("train", "val"):
            picture(tmp_path / "set" / split / "images" / f"{split}{k}.png")
            labels = tmp_path / "set" / split / "labelTxt" / f"{split}{k}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_bytes(b"10 10 30 10 30 30 10 30 ship 0\n" + (b"10 10 ship\n" if k == 1 else b""))
    with pytest.raises(EvaluationError, match=r"train1\.txt, line 2: found '10 10 ship'"):
        read(tmp_path / "set")
    found = read(tmp_path / "set", bad_items="skip")
    assert [len(boxes) for boxes in found.boxes] == [1] * 8
    assert any("boxes left out: not readable: 2" in note for note in found.notes)


def test_a_grey_image_among_colour_ones_is_a_fault_and_a_grey_set_is_none(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    Image.open(folder / "JPEGImages" / "1.jpg").convert("L").save(folder / "JPEGImages" / "1.jpg")
    with pytest.raises(EvaluationError, match=r"1\.jpg.*mode L.*expected 8-bit RGB"):
        read(folder)
    assert read(folder, bad_items="skip").names == ("0", "2", "3")
    for path in (folder / "JPEGImages").iterdir():
        Image.open(path).convert("L").save(path)
    assert len(read(folder).images) == 4


def test_images_are_scaled_as_soon_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = voc(tmp_path / "set", num=12)
    held: list[int] = []
    read_image = reading.read_image

    def large(path: Path) -> Any:
        picture = read_image(path)
        held.append(0)
        return picture

    scaled = reading._scaled

    def noted(pixels: np.ndarray, size_px: int) -> np.ndarray:
        held.pop()
        return scaled(pixels, size_px)

    monkeypatch.setattr(reading, "read_image", large)
    monkeypatch.setattr(reading, "_scaled", noted)
    monkeypatch.setattr(reading, "_usable", lambda *a, **k: (len(held) == 0) and True)
    section = TaskConfig.model_validate({"name": "set", "kind": "detection"})
    found = read_box_set(folder, section, 48, 1)

    assert {image.shape for image in found.images} == {(32, 48, 3)}
    assert len(found.images) == 12  # none was held at full size when the first was looked at


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("<xmin>11<", "<xmin>1_1<"), "'1_1' is no number"),
        (lambda text: text.replace("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>"), "an object has 2 bndbox"),
    ],
)
def test_what_only_a_library_takes_for_a_box_is_none(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    folder = voc(tmp_path / "set")
    path = folder / "Annotations" / "1.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(EvaluationError, match=rf"1\.xml: object 1: .*{message}"):
        read(folder)
    assert any("boxes left out: not readable: 1 (1.xml)" in note for note in read(folder, bad_items="skip").notes)


@pytest.mark.parametrize(
    ("found", "put", "message"),
    [
        ('"categories": [', '"categories": [{"id": 1, "name": "car"}, ', "category 1 is both 'car' and 'ship'"),
        ('"categories": [', '"categories": [{"id": 1, "name": null}, ', "category 1 is named None; expected text"),
        (
            '"categories": [',
            '"categories": [{"id": 1, "name": "\\ud800"}, ',
            "category 1 is named '.ud800'; expected text",
        ),
        ('"categories": [', '"categories": [{"id": Infinity, "name": "car"}, ', "categories: inf is no whole number"),
        ('"images": [', '"images": [], "images": [', "the key 'images' is given twice"),
        ('"bbox": [', '"bbox": [], "bbox": [', "the key 'bbox' is given twice"),
    ],
)
def test_a_label_file_that_says_two_things_is_refused_by_name(
    tmp_path: Path, found: str, put: str, message: str
) -> None:
    folder = coco(tmp_path / "set", {"a": (0, 1, 2, 3)})
    path = next(folder.rglob("a.json"))
    path.write_text(path.read_text().replace(found, put, 1))
    with pytest.raises(EvaluationError, match=rf"a\.json.*{message}"):
        read(folder)


@pytest.mark.parametrize("bad", ["[1e999, 1, 5, 5]", f"[1{'0' * 400}, 1, 5, 5]", "[true, 1, 5, 5]", '["1_0", 1, 5, 5]'])
def test_numbers_that_are_none_are_broken_boxes(tmp_path: Path, bad: str) -> None:
    folder = coco(tmp_path / "set", {"a": (0, 1, 2, 3)})
    path = next(folder.rglob("a.json"))
    content = json.loads(path.read_text())
    content["annotations"][1]["bbox"] = "here"
    path.write_text(json.dumps(content).replace('"here"', bad))
    with pytest.raises(EvaluationError, match=r"annotation 2: broken|box 1 is"):
        read(folder)
    assert any(note.startswith("boxes left out") for note in read(folder, bad_items="skip").notes)


def test_labels_of_which_none_can_be_read_are_named_where_faults_are_skipped(tmp_path: Path) -> None:
    folder = voc(tmp_path / "set")
    for path in (folder / "Annotations").iterdir():
        path.write_text("<!DOCTYPE a [<!ENTITY x '5'>]>" + path.read_text())
    with pytest.raises(EvaluationError, match=r"no usable image is left \(images left out: labels not readable: 4 "):
        read(folder, bad_items="skip")


def test_flags_are_read_as_written_and_anything_else_is_broken(tmp_path: Path) -> None:
    marks = [{"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 20, 20]} for k in range(4)]
    for mark, flag in zip(marks, ("0", "1", False, True), strict=True):
        mark["iscrowd"] = flag  # type: ignore[assignment]
    found = read(coco(tmp_path / "coco", {"a": (0, 1, 2, 3)}, annotations=marks))
    assert [ignored.tolist() for ignored in found.ignored] == [[False], [True], [False], [True]]

    folder = voc(tmp_path / "voc")
    for k, flag in enumerate(("true", "0", "", "often")):
        path = folder / "Annotations" / f"{k}.xml"
        path.write_text(path.read_text().replace("<bndbox>", f"<difficult>{flag}</difficult><bndbox>"))
    with pytest.raises(EvaluationError, match=r"3\.xml: object 1: difficult is 'often', neither 0 nor 1"):
        read(folder)
    assert [ignored.tolist() for ignored in read(folder, bad_items="skip").ignored] == [[True], [False], [False], []]


@pytest.mark.parametrize(("end", "ignored"), [("ship 0", False), ("ship", False), ("ship 1", True), ("ship 2", True)])
def test_difficult_objects_of_dota_are_those_that_its_tools_mark(tmp_path: Path, end: str, ignored: bool) -> None:
    assert read(dota(tmp_path / "set", end)).ignored[0].tolist() == [ignored]


@pytest.mark.parametrize("end", ["large vehicle", "ship 3", "ship 1 0"])
def test_a_class_of_two_words_in_dota_is_a_broken_line(tmp_path: Path, end: str) -> None:
    with pytest.raises(EvaluationError, match="class difficult. Correct the line"):
        read(dota(tmp_path / "set", end))


def dota(folder: Path, end: str) -> Path:
    """An image a split, with one object whose line ends so."""
    for part in ("train", "val"):
        for name in ("images", "labelTxt"):
            (folder / part / name).mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / part / "images" / f"{part}.png")
        (folder / part / "labelTxt" / f"{part}.txt").write_text(f"10 10 30 10 30 30 10 30 {end}\n")
    return folder
