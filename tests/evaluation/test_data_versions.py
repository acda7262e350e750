"""The version of a labelled set is that of its images and labels, whatever systems and editors leave beside them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.opening import open_task
from geokr_core.step.digests import data_version
from geokr_core.testing import make_box_set, make_image_set, make_mask_set


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (make_image_set, {"kind": "scene_classification"}),
        (make_mask_set, {"kind": "segmentation", "crop_size_px": 32}),
        (make_mask_set, {"kind": "land_cover_mapping", "chip_size_px": 16}),
        (make_box_set, {"kind": "detection", "image_size_px": 64}),
    ],
)
def test_leftovers_are_no_part_of_a_labelled_set(
    make: Callable[[Path], Path], task: dict[str, object], tmp_path: Path
) -> None:
    folder = make(tmp_path / "labelled")
    config = EvaluationConfig.model_validate({"folder": tmp_path, "tasks": [{"name": "labelled", **task}]})

    def version() -> str:
        return open_task(config.tasks[0], config).data_version

    before = version()
    assert before == data_version(folder), "a set without leftovers has the version that DVC gives it"
    image = max(folder.rglob("*.*"), key=lambda path: path.suffix in (".png", ".jpg", ".tif"))
    for name in (".DS_Store", "Thumbs.db", f"{image.name}~"):
        (image.parent / name).write_bytes(b"left behind")
    assert version() == before
    (image.parent / "notes.txt").write_text("mine")
    assert version() != before
