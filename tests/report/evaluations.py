"""Small evaluations that tests of the report are made of."""

from pathlib import Path

import pandas as pd

from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.results import RESULT_COLUMNS, write_tables
from geokr_core.evaluation.statistics import differences, summarise
from geokr_core.evaluation.task_kinds import KNOWN_METRICS
from geokr_core.report.headline import Primary, headline
from geokr_core.step.files import write_json

PRIMARY = Primary("fields", "linear_probe", "last", "all")


def results_of(task: str = "fields", *, half_width: float = 0.02, **values: list[float]) -> pd.DataFrame:
    """Accuracy rows: a list of values a seed for each initialisation."""
    rows = [
        {
            "task": task,
            "dataset": task,
            "initialisation": name,
            "label_fraction": 1.0,
            "labels_per_class": "all",
            "protocol": "linear_probe",
            "features": "histogram" if name == "colour_histogram" else "last",
            "seed": seed,
            "metric": "accuracy",
            "value": value,
            "n": 100,
            "ci_low": value - half_width,
            "ci_high": value + half_width,
            "backbone_version": "b.dir",
            "data_version": "d.dir",
            "architecture": "squeezenet1_1",
        }
        for name, scores in values.items()
        for seed, value in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def said_of(results: pd.DataFrame) -> str:
    """The headline of results."""
    nothing = pd.DataFrame()
    judged = Judged(
        results,
        summarise(results),
        differences(results),
        nothing,
        nothing,
        confusion={},
        tasks={},
        cells=(),
        gallery={},
        settings={},
    )
    return headline(judged, PRIMARY)


def write_evaluation(folder: Path, results: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, results, differences(results), KNOWN_METRICS)
    matrix = {
        "protocol": "linear_probe",
        "features": "last",
        "labels_per_class": "all",
        "seed": 0,
        "labels": ["Field", "<b>Bold</b>"],
        "matrix": [[41, 9], [13, 37]],
    }
    tasks = sorted(set(results["task"]))
    write_json(folder / "confusion.json", {task: {"geokr": matrix, "random": matrix} for task in tasks})
    write_json(folder / "evaluation.json", {"seeds": [0, 1, 2]})
    return folder
