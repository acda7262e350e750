"""YOLO labels as Ultralytics, Roboflow, Darknet and LabelImg write them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.boxes.read import BoxSet, read_box_set

WIDTH, HEIGHT = 96, 64
LINE = "1 0.25 0.5 0.25 0.5\n"  # 12 to 36 across, 16 to 48 down
BOX = [12.0, 16.0, 36.0, 48.0]


def read(folder: Path, **fields: object) -> BoxSet:
    section = {"name": folder.name, "kind": "detection", **fields}
    return read_box_set(folder, TaskConfig.model_validate(section), WIDTH, 1)


def splits(found: BoxSet) -> dict[str, list[str]]:
    return {split: sorted(found.names[k] for k in rows) for split, rows in found.rows.items()}


def add(images: Path, labels: Path, name: str, line: str | None = LINE, value: int = 90) -> None:
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)).save(images / f"{name}.png")
    if line is not None:
        (labels / f"{name}.txt").write_text(line)


def flat(folder: Path, names: str = "names: [ship, plane]\n", num: int = 4) -> Path:
    for k in range(num):
        add(folder / "images", folder / "labels", str(k))
    (folder / "data.yaml").write_text(names)
    return folder


def test_shares_of_the_image_become_its_pixels(tmp_path: Path) -> None:
    found = read(flat(tmp_path / "set"))
    assert (found.layout, found.classes) == ("yolo", ("ship", "plane"))
    assert [boxes.tolist() for boxes in found.boxes] == [[BOX]] * 4
    assert [labels.tolist() for labels in found.labels] == [[2]] * 4
    assert splits(found) == {"train": ["0", "1", "2"], "val": [], "test": ["3"]}


def test_boxes_lie_on_the_upright_image(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    exif = Image.Exif()
    exif[274] = 6
    (folder / "images" / "0.png").unlink()
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(folder / "images" / "0.jpg", exif=exif)
    assert read(folder).boxes[0].tolist() == [BOX]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}", "labels/{}"),
        ("{}/images", "{}/labels"),
        ("{}", "{}"),
    ],
)
def test_folders_of_splits_are_read_as_tools_write_them(tmp_path: Path, images: str, labels: str) -> None:
    folder = tmp_path / "set"
    for part, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        for name in names:
            add(folder / images.format(part), folder / labels.format(part), name)
    (folder / "classes.txt").write_text("ship\nplane\n")
    (folder / "README.roboflow.txt").write_text("exported\n")
    found = read(folder)
    assert splits(found) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert [boxes.tolist() for boxes in found.boxes] == [[BOX]] * 4


@pytest.mark.parametrize(
    "paths",
    [
        "train: images/first\nval: images/second\n",
        "path: ../datasets/set\ntrain: images/first\nval: ../images/second\n",
        "train: [images/first]\nval: second.txt\n",
    ],
)
def test_the_describing_file_says_the_splits_where_no_folder_does(tmp_path: Path, paths: str) -> None:
    folder = tmp_path / "set"
    for place, names in (("first", "abc"), ("second", "d")):
        for name in names:
            add(folder / "images" / place, folder / "labels" / place, name)
    (folder / "second.txt").write_text("./images/second/d.png\n")
    (folder / "data.yaml").write_text(f"names: {{0: ship, 1: plane}}\n{paths}")
    assert splits(read(folder)) == {"train": ["a", "b", "c"], "val": [], "test": ["d"]}


def test_an_image_that_the_describing_file_puts_into_two_splits_is_an_error(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set", "names: [ship, plane]\ntrain: images\nval: images\n")
    with pytest.raises(EvaluationError, match="images is in two splits"):
        read(folder, bad_items="skip")


def test_texts_beside_images_are_labels_only_where_the_classes_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for k in range(4):
        add(folder, folder, str(k))
    (folder / "notes.txt").write_text("flown in May\n")
    with pytest.raises(EvaluationError, match="do not lie as the layout one of .*yolo"):
        read(folder)
    (folder / "classes.txt").write_text("ship\nplane\n")
    assert [boxes.tolist() for boxes in read(folder).boxes] == [[BOX]] * 4


def test_corners_give_the_box_around_them(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    (folder / "labels" / "0.txt").write_text("0 0.25 0.25 0.5 0.5 0.25 0.75 0.125 0.5\n")
    found = read(folder)
    assert found.boxes[0].tolist() == [[12.0, 16.0, 48.0, 48.0]]
    assert found.labels[0].tolist() == [1]


def test_an_image_without_a_label_file_shows_no_object_and_is_counted(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    add(folder / "images", folder / "labels", "4", None)
    (folder / "labels" / "3.txt").write_text("\n")
    found = read(folder)
    assert [len(boxes) for boxes in found.boxes] == [1, 1, 1, 0, 0]
    assert any("without a label file, taken to show no object: 1 (4.png)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", r"found '7 0.5 0.5 0.1 0.1', expected a class of 0 to 1 \(ship, plane\)"),
        ("-1 0.5 0.5 0.1 0.1", "expected a class of 0 to 1"),
        ("0 40 30 20 10", r"each as a share of the image \(0 to 1\)"),
        ("0 0.5 0.5 0.1", "expected class x y width height"),
        ("0 0.5 0.5 0.1 0.1 0.9", "expected class x y width height"),
        ("0 0.5 nan 0.1 0.1", "expected class x y width height"),
        ("ship 0.5 0.5 0.1 0.1", "expected class x y width height"),
        ("0 0.5 0.5 0 0.1", "expected an area"),
    ],
)
def test_a_broken_line_is_an_error_by_file_and_line_or_left_out_and_counted(
    tmp_path: Path, line: str, message: str
) -> None:
    folder = flat(tmp_path / "set")
    (folder / "labels" / "0.txt").write_text(f"{LINE}{line}\n")
    with pytest.raises(EvaluationError, match=message):
        read(folder)
    found = read(folder, bad_items="skip")
    assert found.boxes[0].tolist() == [BOX]
    assert any(note.startswith("boxes left out") for note in found.notes)


def test_a_label_file_without_its_image_is_a_fault(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    (folder / "labels" / "9.txt").write_text(LINE)
    with pytest.raises(EvaluationError, match=r"9\.jpg: the labels name this image, but there is no such file"):
        read(folder)
    assert len(read(folder, bad_items="skip").images) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("nc: 2\n", "no file names them; expected `names` in a data.yaml"),
        ("names: {0: ship, 2: plane}\n", "expected a name for each number from 0 on"),
        ("names: ship\n", "expected a name for each number from 0 on"),
        ("names: [ship\n", "data.yaml"),
        ("nc: 3\nnames: [ship, plane]\n", "`nc` says 3 classes, `names` has 2"),
        ("names: [ship, ship]\n", "classes 0 and 1 are both named 'ship'"),
        ("names: [ship, no]\n", "class 1 is named False; expected text"),
        ("names: [ship, null]\n", "class 1 is named None; expected text"),
    ],
)
def test_classes_that_are_not_named_are_refused(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read(flat(tmp_path / "set", names))


def test_two_files_that_name_the_classes_otherwise_are_refused(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set")
    (folder / "other.yaml").write_text("names: [plane, ship]\n")
    with pytest.raises(EvaluationError, match=r"data\.yaml, other\.yaml name the classes differently"):
        read(folder)


def test_a_blank_line_among_the_names_would_move_the_classes_and_is_refused(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set", "nc: 2\n")
    (folder / "classes.txt").write_text("ship\n\nplane\n\n")
    with pytest.raises(EvaluationError, match=r"classes\.txt: class 1 is named ''"):
        read(folder)
    (folder / "classes.txt").write_text("ship\nplane\n\n")
    assert read(folder).classes == ("ship", "plane")
