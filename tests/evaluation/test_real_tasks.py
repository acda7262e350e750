"""Downstream tasks on real labelled sets: their layouts are read whole, and a cell of each is measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geokr_core.evaluation.cells import Cell, DownstreamTask, Measurement, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.opening import open_task

RGB = ("red", "green", "blue")


@pytest.fixture
def real_tasks(real_data: Path) -> Path:
    return real_data / "tasks"


def opened(
    folder: Path, name: str, kind: str, evaluation: dict[str, Any] | None = None, **fields: Any
) -> DownstreamTask:
    section = {"name": name, "kind": kind, **fields}
    settings = {"folder": folder, "tasks": [section], "precision": "fp32", "threads": 1, **(evaluation or {})}
    config = EvaluationConfig.model_validate(settings)
    return open_task(config.tasks[0], config)


def measured(
    task: DownstreamTask, protocol: str = "fine_tune", features: str = "last", labels: str = "10%"
) -> Measurement:
    name = "colour_histogram" if features == "histogram" else "random"
    start = Start(name, 0, "squeezenet1_1", None, (0.5,) * 3, (0.2,) * 3, RGB)  # type: ignore[arg-type]
    return task.measure(Cell(task.name, name, protocol, features, labels, 0), start)  # type: ignore[arg-type]


def test_dubai_is_split_by_tile_and_measured(real_tasks: Path, tmp_path: Path) -> None:
    source = real_tasks / "dubai" / "Semantic segmentation dataset"
    (tmp_path / "dubai").mkdir()
    for tile in (1, 2, 3):  # the small ones: decoding all 72 takes longer than a test may
        (tmp_path / "dubai" / f"Tile {tile}").symlink_to(source / f"Tile {tile}")
    task = opened(
        tmp_path, "dubai", "segmentation", test_groups=["Tile 2"], downscale=4, crop_size_px=64, steps=2, batch_size=4
    )
    found = measured(task)

    assert found.classes == ("building", "land", "road", "vegetation", "water")
    assert (found.n, found.label_fraction) == (9, 2 / 18)
    assert "layout dubai" in task.notes
    # Shares of the SOURCE's own masks of tile 2, without the 2.3 % that bear no label.
    truth = np.array(found.confusion).sum(axis=1)
    assert truth / truth.sum() == pytest.approx([0.126, 0.610, 0.130, 0.059, 0.075], abs=0.01)


def test_l8_biome_has_its_own_validation_split_and_no_snow(real_tasks: Path) -> None:
    task = opened(real_tasks, "l8_biome", "cloud_snow", steps=2, batch_size=4, crop_size_px=64, learning_rates=[1e-3])
    found = measured(task)

    assert task.bands == ("blue", "green", "red", "nir")
    assert found.n == 5
    assert any("left out of the means: snow" in note for note in task.notes)
    assert found.per_class["iou"][4] is None
    assert {score.metric for score in found.scores} >= {"miou", "cloud_precision", "cloud_recall", "over_screening"}


def test_nwpu_vhr10_is_read_from_its_own_labels_and_never_shown(real_tasks: Path) -> None:
    task = opened(
        real_tasks,
        "nwpu_vhr10",
        "detection",
        image_size_px=128,
        steps=1,
        batch_size=1,
        decoder_channels=32,
        show_images=True,
        bad_items="skip",
    )
    found = measured(task, labels="1%")

    assert "layout nwpu_vhr10" in task.notes
    assert (found.n, len(found.classes)) == (60, 10)
    assert found.gallery == ()
    assert sum(len(boxes) for boxes in task.set.boxes) == 1648  # type: ignore[attr-defined]


def test_eurosat_has_nearest_neighbours_of_colours(real_tasks: Path) -> None:
    task = opened(real_tasks, "eurosat", "scene_classification")
    found = measured(task, "knn", "histogram", "10%")

    assert (found.n, found.label_fraction) == (2500, 0.1)
    assert found.scores[0].value > 0.4  # chance: 0.1
