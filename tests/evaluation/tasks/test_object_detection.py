"""Boxes: layouts, bad boxes, orientation, and a detector that learns on our backbone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.sets.boxes.read import BoxSet, read_box_set
from geokr_core.evaluation.tasks.object_detection import ObjectDetection, oriented
from geokr_core.networks.runtime import Runtime
from geokr_core.testing import make_box_set

CPU = Runtime(torch.device("cpu"), bf16=False)


def start(architecture: str = "squeezenet1_1") -> Start:
    return Start("random", 0, architecture, None, (0.5,) * 3, (0.2,) * 3)


def cell(labels: str = "all", seed: int = 0) -> Cell:
    return Cell("set", "random", "fine_tune", "last", labels, seed)


def opened(root: Path, **fields: Any) -> ObjectDetection:
    section = {
        "name": "set",
        "kind": "detection",
        "image_size_px": 64,
        "decoder_channels": 32,
        "batch_size": 4,
        **fields,
    }
    config = EvaluationConfig.model_validate({"folder": root, "tasks": [section], "precision": "fp32", "threads": 1})
    task = open_task(config.tasks[0], config)
    assert isinstance(task, ObjectDetection)
    return task


def read(folder: Path, size_px: int = 64, **fields: object) -> BoxSet:
    section = {"name": folder.name, "kind": "detection", **fields}
    return read_box_set(folder, TaskConfig.model_validate(section), size_px, 1)


def picture(path: Path, width: int = 64, height: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def nwpu(folder: Path) -> None:
    for k in range(4):
        picture(folder / "positive image set" / f"{k:03d}.jpg")
        (folder / "ground truth").mkdir(exist_ok=True)
        (folder / "ground truth" / f"{k:03d}.txt").write_text("(10,20),(30,44),1\n( 5, 5),( 9, 9), 10 \n\n")


def voc(folder: Path) -> None:
    for k, split in enumerate(("train", "val")):
        picture(folder / "JPEGImages" / f"{k}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{k}.xml").write_text(
            f"<annotation><filename>{k}.jpg</filename><object><name>airplane</name><difficult>{k}</difficult><bndbox>"
            "<xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>44</ymax></bndbox></object></annotation>"
        )
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{k}\n")


def dota(folder: Path) -> None:
    for split in ("train", "val"):
        picture(folder / split / "images" / f"P_{split}.png")
        (folder / split / "labelTxt-v1.0").mkdir(parents=True)
        (folder / split / "labelTxt-v1.0" / f"P_{split}.txt").write_text(
            "imagesource:GoogleEarth\ngsd:0.15\n20 20 30 32 20 44 10 32 airplane 0\n"
        )


@pytest.mark.parametrize(
    ("write", "name", "shown"), [(nwpu, "nwpu_vhr10", False), (voc, "voc", True), (dota, "dota", False)]
)
def test_published_layouts_give_the_same_boxes(
    tmp_path: Path, write: Callable[[Path], None], name: str, shown: bool
) -> None:
    write(tmp_path / "set")
    found = read(tmp_path / "set")

    assert (found.layout, found.may_be_shown) == (name, shown)
    assert found.boxes[0][0].tolist() == [10, 20, 30, 44]
    assert found.classes[found.labels[0][0] - 1] == "airplane"
    assert len(found.rows["train"]) > 0
    assert len(found.rows["test"]) > 0


def test_difficult_objects_are_neither_learnt_nor_scored(tmp_path: Path) -> None:
    voc(tmp_path / "set")
    found = read(tmp_path / "set")
    assert [flags.tolist() for flags in found.ignored] == [[False], [True]]


def test_coco_boxes_follow_their_image_to_its_size(tmp_path: Path) -> None:
    folder = make_box_set(tmp_path / "set")
    whole, half = read(folder, 64), read(folder, 32)

    assert whole.images[0].shape == (64, 64, 3)
    assert half.images[0].shape == (32, 32, 3)
    assert half.boxes[0] == pytest.approx(whole.boxes[0] / 2)
    assert whole.classes == ("square", "bar")
    for image, boxes, labels in zip(whole.images, whole.boxes, whole.labels, strict=True):
        for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
            inside = image[top:bottom, left:right].mean()
            assert inside > 200 if label == 1 else inside < 40


def marks(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def no_area(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][2] = 0


def outside(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][:2] = [200, 200]


def sticking_out(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [50, 50, 40, 10]


def not_a_number(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "said", "noted", "num_boxes"),
    [
        (no_area, "expected an area", "no area: 1", 1),
        (not_a_number, "expected an area", "no area: 1", 1),
        (outside, "expected it inside", "outside of their image: 1", 1),
        (sticking_out, "expected it inside", "cut at the border of their image: 1", 2),
    ],
)
def test_broken_boxes_are_an_error_or_counted(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], said: str, noted: str, num_boxes: int
) -> None:
    folder = make_box_set(tmp_path / "set")
    marks(folder, damage)
    with pytest.raises(EvaluationError, match=said):
        read(folder)
    found = read(folder, bad_items="skip")

    assert any(noted in note for note in found.notes)
    assert len(found.boxes[0]) == num_boxes
    assert found.boxes[0].max() <= 64


def escaping(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "../../secret.png"


def unknown_category(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 99


def test_an_image_outside_of_the_set_is_refused_whatever_the_policy(tmp_path: Path) -> None:
    folder = make_box_set(tmp_path / "set")
    marks(folder, escaping)
    for policy in ("fail", "skip"):
        with pytest.raises(EvaluationError, match="outside of the set"):
            read(folder, bad_items=policy)


def test_labels_that_do_not_agree_are_refused_or_counted(tmp_path: Path) -> None:
    folder = make_box_set(tmp_path / "set")
    marks(folder, unknown_category)
    with pytest.raises(EvaluationError, match="annotation 1: broken COCO labels"):
        read(folder)
    found = read(folder, bad_items="skip")

    assert len(found.boxes[0]) == 1
    assert "boxes left out: not readable: 1 (annotations.json)" in found.notes


def test_missing_and_broken_images_are_named_or_counted(tmp_path: Path) -> None:
    folder = make_box_set(tmp_path / "set")
    (folder / "images" / "image_001.png").unlink()
    (folder / "images" / "image_002.png").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match=r"image_001.*no such file"):
        read(folder)
    found = read(folder, bad_items="skip")
    assert len(found.images) == 8
    assert any("missing or not readable: 2 (image_001.png, image_002.png)" in note for note in found.notes)


def test_broken_lines_are_refused_by_number(tmp_path: Path) -> None:
    nwpu(tmp_path / "set")
    (tmp_path / "set" / "ground truth" / "001.txt").write_text("(10,20),(30,44),1\n(1,2),(3),77\n")
    with pytest.raises(EvaluationError, match=r"001\.txt, line 2"):
        read(tmp_path / "set")


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_turn_with_their_image(turns: int, flip: bool) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[5:15, 20:50] = 255
    turned, boxes = oriented(image, np.array([[20, 5, 50, 15]], np.float32), turns=turns, flip=flip)
    left, top, right, bottom = boxes[0].astype(int)

    assert turned.shape[:2] == ((40, 60) if turns % 2 == 0 else (60, 40))
    assert (turned[top:bottom, left:right] == 255).all()
    assert (turned == 255).sum() == 3 * (bottom - top) * (right - left)


def test_an_image_without_boxes_can_be_turned() -> None:
    assert oriented(np.zeros((4, 6, 3), np.uint8), np.zeros((0, 4), np.float32), turns=1, flip=True)[1].shape == (0, 4)


# Roundings differ between processors and move AP50 as a seed does, so the steps are those after which six seeds were far above
# the bound: 1.00 each for Faster R-CNN, 0.50 to 0.63 for RetinaNet. With half of them a processor was found that falls below it.
@pytest.mark.parametrize(
    ("detector", "steps"), [("faster_rcnn", 120), pytest.param("retinanet", 300, marks=pytest.mark.slow)]
)
def test_a_detector_learns_and_is_the_same_for_the_same_seed(tmp_path: Path, detector: str, steps: int) -> None:
    make_box_set(tmp_path / "set", num_images=14)
    task = opened(tmp_path, steps=steps, learning_rates=[1e-3], detector=detector)
    found = task.measure(cell(), start())
    scores = {score.metric: score for score in found.scores}
    short = [opened(tmp_path, steps=2, detector=detector).measure(cell(), start()) for _ in range(2)]

    assert scores["ap50"].value > 0.3  # chance: nothing
    assert scores["map"].ci_low <= scores["map"].value <= scores["map"].ci_high
    assert (found.n, found.confusion, len(found.replicates)) == (4, (), 200)
    assert short[0] == short[1]


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_batchnorm_stays_as_it_is_and_a_random_one_has_seen_the_task(tmp_path: Path, detector: str) -> None:
    make_box_set(tmp_path / "set")
    task = opened(tmp_path, steps=1, detector=detector)
    first = task.learnt(cell(), start("resnet18"), task.set.rows["train"], 1e-3, CPU)
    second = task.learnt(cell(), start("resnet18"), task.set.rows["train"][:1], 1e-3, CPU)
    layers, others = (
        [m for m in model.backbone.pyramid.modules() if isinstance(m, nn.BatchNorm2d)]  # type: ignore[union-attr]
        for model in (first, second)
    )

    assert all(torch.equal(a.running_var, b.running_var) for a, b in zip(layers, others, strict=True))  # type: ignore[arg-type]
    assert all(torch.equal(a.weight, torch.ones_like(a.weight)) for a in layers)
    assert not torch.allclose(layers[0].running_var, torch.ones_like(layers[0].running_var))  # type: ignore[arg-type]
    assert "as pretrained" in str(task.budget)
    task.predicted(first, 0, start("resnet18"), CPU)


def test_images_under_research_terms_are_never_shown(tmp_path: Path) -> None:
    nwpu(tmp_path / "set")
    task = opened(tmp_path, steps=1, batch_size=1, show_images=True)
    assert task.measure(cell(), start()).gallery == ()


def test_classes_without_test_boxes_leave_the_mean_or_fail(tmp_path: Path) -> None:
    folder = make_box_set(tmp_path / "set")

    def only_squares(content: dict[str, Any]) -> None:
        content["annotations"] = [m for m in content["annotations"] if m["category_id"] == 1 or m["image_id"] < 6]

    marks(folder, only_squares)
    assert "no test box, left out of the means: bar" in opened(tmp_path).notes
    with pytest.raises(EvaluationError, match="'bar' has no box in the test split"):
        opened(tmp_path, absent_classes="fail")
