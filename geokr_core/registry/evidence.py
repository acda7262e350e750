"""What a registered version rests on: the scores of the evaluation for its card, and the records kept beside it.

Records (scores with their resampled values, the decision) are artifacts of the run that registered the version: as tags they would fill
its page with JSON.
"""

import math
import tempfile
from pathlib import Path
from typing import Any, Final

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from geokr_core.backbone.card import Comparison, Score
from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.charts import FEATURE_NAMES, PROTOCOL_NAMES, task_words
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import CELL_KEYS, headline_rows
from geokr_core.pictures.charts import INITIALISATION_NAMES
from geokr_core.registry.standing import GONE

EVIDENCE: Final = "evidence"
"""Folder of a run's artifacts with what a promotion rests on."""
SCORES: Final = "scores.json"
DECISION: Final = "decision.json"

_TAG_OF: Final = {SCORES: "geokr/scores", DECISION: "geokr/decision"}
"""Where earlier versions of GeoKR kept each record."""


def scores_of(evaluation: Path) -> list[Score]:
    """The scores of a backbone in an evaluation, each beside the other starts.

    Args:
        evaluation: output of the step.

    Returns:
        One for each task, protocol, features and amount of labels, by the metric that the task is judged by.

    Raises:
        MissingInputError: there is no evaluation.
        DamagedOutputError: a file of it is cut off or holds something else.
    """
    judged = Judged.read(evaluation)
    rows = headline_rows(judged.summary, judged.metrics)
    return [_score(judged, row) for row in rows[rows["initialisation"] == "geokr"].to_dict("records")]


def _score(judged: Judged, row: dict[Any, Any]) -> Score:
    task, metric = str(row["task"]), judged.metrics.of(str(row["task"]), str(row["metric"]))
    protocol, labels = (
        PROTOCOL_NAMES.get(row["protocol"], str(row["protocol"])),
        labels_name(str(row["labels_per_class"])),
    )
    features = "" if row["protocol"] == "fine_tune" else f" on {FEATURE_NAMES.get(row['features'], row['features'])}"
    facts = judged.tasks.get(task, {})
    return Score(
        task=task,
        kind=str(facts.get("kind", "scene_classification")),
        data_version=str(facts.get("data_version", "")),
        how=f"{protocol}{features}, {labels}",
        metric=metric.name,
        words=metric.words,
        value=float(row["mean"]),
        ci_low=_bound(row["ci_low"]),
        ci_high=_bound(row["ci_high"]),
        num_seeds=int(row["n_seeds"]),
        comparisons=tuple(_comparisons(judged, row, metric.sign)),
        task_words=task_words(task),
    )


def _comparisons(judged: Judged, row: dict[Any, Any], sign: int) -> list[Comparison]:
    cell = [row[key] for key in CELL_KEYS]
    same = judged.differences[(judged.differences[CELL_KEYS] == cell).all(axis=1)]
    keys = [key for key in CELL_KEYS if key != "features"]
    others = judged.summary[(judged.summary[keys] == [row[key] for key in keys]).all(axis=1)]
    found = []
    for difference in same.to_dict("records"):
        ours, _, name = str(difference["contrast"]).partition(" - ")
        theirs = others[others["initialisation"] == name]
        if ours != "geokr" or theirs.empty:
            continue
        beside = theirs[theirs["features"] == row["features"]]  # a colour histogram has features of its kind alone
        bounds = sorted(sign * float(difference[end]) for end in ("ci_low", "ci_high"))
        found.append(
            Comparison(
                other=INITIALISATION_NAMES.get(name, name),
                value=float((theirs if beside.empty else beside)["mean"].iloc[0]),
                difference=sign * float(difference["mean"]),
                ci_low=_bound(bounds[0]),
                ci_high=_bound(bounds[1]),
                items_overlap=bool(difference["items_overlap"]),
            )
        )
    return found


def _bound(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def keep_record(client: MlflowClient, version: ModelVersion, name: str, text: str) -> None:
    """Keep a record of a version, in place of an earlier one.

    Args:
        client: of the server.
        version: the version.
        name: `SCORES` or `DECISION`.
        text: JSON.
    """
    client.log_text(str(version.run_id), text, f"{EVIDENCE}/{name}")


def kept_record(client: MlflowClient, version: ModelVersion, name: str) -> str | None:
    """A record of a version; None where there is none or where the run that held it is gone.

    Args:
        client: of the server.
        version: the version.
        name: `SCORES` or `DECISION`.
    """
    path = f"{EVIDENCE}/{name}"
    try:
        there = version.run_id and any(info.path == path for info in client.list_artifacts(version.run_id, EVIDENCE))
    except MlflowException as error:
        if error.error_code not in GONE:
            raise
        there = False
    if not there:
        return version.tags.get(_TAG_OF[name])
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(str(version.run_id), path, folder)).read_text(encoding="utf-8")
