"""Every kind of task learns on the generated world: better than guessing, from random weights, in a few steps."""

from pathlib import Path

import pytest

from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.opening import open_task
from geokr_core.step.reporter import RecordingReporter
from geokr_core.world.config import WorldConfig
from geokr_core.world.tasks import write_tasks

BANDS = ["blue", "green", "red", "nir"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "tasks"
    write_tasks(WorldConfig(task_images_per_class=16), folder, RecordingReporter())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "metric", "chance"),
    [
        # Chance: one of eight classes; a ninth or a fifth of the pixels in every class; no box at all.
        ({"name": "scene_classification"}, "accuracy", 1 / 8),
        ({"name": "segmentation", "kind": "segmentation", "steps": 25, "batch_size": 8}, "miou", 1 / 17),
        ({"name": "cloud_snow", "kind": "cloud_snow", "bands": BANDS, "steps": 25, "batch_size": 8}, "miou", 1 / 9),
        ({"name": "detection", "kind": "detection", "steps": 60, "batch_size": 4, "image_size_px": 160}, "ap50", 0.05),
    ],
)
def test_a_task_of_the_world_is_learnt_better_than_by_chance(
    sets: Path, section: dict[str, object], metric: str, chance: float
) -> None:
    dense = section["name"] != "scene_classification"
    small = {"decoder_channels": 32, "learning_rates": [1e-3]} if dense else {}
    crops = {"crop_size_px": 96} if metric == "miou" else {}
    config = EvaluationConfig.model_validate(
        {
            "folder": sets,
            "tasks": [section | small | crops],
            "precision": "fp32",
            "fine_tune_steps": 40,
            "fine_tune_learning_rate": 1e-3,
            "batch_size": 16,
            "threads": 1,
        }
    )
    task = open_task(config.tasks[0], config)
    found = task.measure(
        Cell(task.name, "random", "fine_tune", "last", "all", 0),
        Start("random", 0, "squeezenet1_1", None, (0.5,) * 3, (0.2,) * 3),
    )
    values = {score.metric: score.value for score in found.scores}

    assert values[metric] > 1.5 * chance
