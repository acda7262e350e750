"""The evaluation's own overhead: what a sweep over all four kinds of task spends outside of forward and backward passes."""

import time
from collections import defaultdict
from pathlib import Path

from geokr_core.backbone.config import BackboneConfig
from geokr_core.bench.measure import Measurement
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining
from geokr_core.world.config import WorldConfig

MAX_SECONDS = 240.0
"""What the sweep may take on two cores."""
MAX_SHARE_OUTSIDE = 0.15
TASKS = (
    {"name": "scene_classification", "kind": "scene_classification"},
    {"name": "segmentation", "kind": "segmentation", "crop_size_px": 96, "decoder_channels": 32, "batch_size": 8},
    {
        "name": "cloud_snow",
        "kind": "cloud_snow",
        "bands": ["blue", "green", "red", "nir"],
        "crop_size_px": 96,
        "decoder_channels": 32,
        "batch_size": 8,
    },
    {"name": "detection", "kind": "detection", "image_size_px": 160, "decoder_channels": 32, "batch_size": 4},
)


def bench_evaluate(folder: Path) -> Measurement:
    """Share of a sweep outside of forward and backward passes; at most the budget.

    Four tasks of the generated world, two initialisations, two amounts of labels, one seed, fine-tuning.
    """
    from geokr_core.backbone.build import build_bundle
    from geokr_core.evaluation.evaluate import evaluate
    from geokr_core.world.tasks import write_tasks

    reporter = RecordingReporter()
    write_tasks(WorldConfig(task_images_per_class=24), folder / "tasks", reporter)
    dataset = make_levir_kr(folder, num_chips=16)
    pretraining = make_pretraining(folder / "pretraining", dataset)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, folder / "backbone", reporter)
    config = EvaluationConfig.model_validate(
        {
            "folder": folder / "tasks",
            "tasks": TASKS,
            "initialisations": ["random", "geokr"],
            "seeds": [0],
            "protocols": ["fine_tune"],
            "labels_per_class": ["10%", "all"],
            "label_fractions": [0.1, 1.0],
            "fine_tune_steps": 20,
            "precision": "fp32",
        }
    )
    started = time.perf_counter()
    evaluate(config, folder / "backbone", pretraining, folder / "evaluation", folder / "cells", reporter)
    total = time.perf_counter() - started
    kept = [read_json(path) for path in (folder / "cells").iterdir()]
    seconds: dict[str, list[float]] = defaultdict(list)
    outside: dict[str, list[float]] = defaultdict(list)
    for cell in kept:
        seconds[cell["cell"]["task"]].append(cell["seconds"])
        outside[cell["cell"]["task"]].append(cell["seconds"] - cell["compute_seconds"])
    details = {"sweep_s": total, "sweep_budget_s": MAX_SECONDS}
    for task in sorted(seconds):
        details[f"{task}_s_a_cell"] = sum(seconds[task]) / len(seconds[task])
        details[f"{task}_share_outside"] = sum(outside[task]) / sum(seconds[task])
    share = sum(map(sum, outside.values())) / sum(map(sum, seconds.values()))
    on = "squeezenet1_1, 4 tasks of the generated world, 2 initialisations, 2 amounts of labels, 20 steps"
    return Measurement("evaluate", share, MAX_SHARE_OUTSIDE, len(kept), on, details)
