"""The operator's page: what there is of a project today, and what is stuck.

Everything comes from what the steps left in the store, from the records that wait for MLflow, and from MLflow where it
answers. Not here: whether the installation is in order (``doctor``).
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from geokr_core.chain.params import Params
from geokr_core.chain.record import STATE_FILE, read_record
from geokr_core.chain.status import StepStatus, status
from geokr_core.chain.steps import Folders, steps_of
from geokr_core.chain.versioning import DAMAGED_LOCK
from geokr_core.operation.disk_use import DiskUse, disk_use
from geokr_core.step.extras import lacking
from geokr_core.step.files import read_json
from geokr_core.step.summary import read_summary


@dataclass(frozen=True)
class Scenes:
    """How far the archive is.

    Attributes:
        seen: scenes of the inventory, quarantined ones included.
        usable: of these.
        cut: scenes that have chips.
        counted: scenes that have proportions.
        quarantined: by step.
    """

    seen: int
    usable: int
    cut: int
    counted: int
    quarantined: Mapping[str, int]


@dataclass(frozen=True)
class LastRun:
    """The last run of a step that did something.

    Attributes:
        ended: when, in UTC, as ISO 8601.
        data_version: of its output.
        numbers: what its summary shows.
        mlflow_url: page or URI of its MLflow run.
    """

    ended: str
    data_version: str
    numbers: Mapping[str, Any]
    mlflow_url: str | None


@dataclass(frozen=True)
class Champion:
    """What the last promotion decided, and on what evidence.

    Attributes:
        model_name: the registered model.
        version: the champion; None where there is none.
        challenger: the version that was judged last.
        reason: of the decision.
        gain: of the challenger over the champion; None where there was no champion.
        gain_interval: 95 %.
        scores: of the champion by criterion, as the last decision compared them.
        evidence: the MLflow run with results, report and scores.
    """

    model_name: str
    version: int | None
    challenger: int
    reason: str
    gain: float | None
    gain_interval: tuple[float | None, float | None]
    scores: Mapping[str, float]
    evidence: str | None


@dataclass(frozen=True)
class Overview:
    """A project today.

    Attributes:
        steps: what the next run will do.
        scenes: how far the archive is; None where no inventory was taken.
        data_version: of the frozen data set; None where there is none.
        last: the last run of each step that has run.
        champion: None where nothing was promoted yet.
        waiting_for_mlflow: runs of which records wait in files.
        disk: what lies in the store.
        free_bytes: on its disk.
        stuck: what does not go on by itself, a sentence each.
    """

    steps: tuple[StepStatus, ...]
    scenes: Scenes | None
    data_version: str | None
    last: Mapping[str, LastRun]
    champion: Champion | None
    waiting_for_mlflow: int
    disk: DiskUse
    free_bytes: int
    stuck: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        content = asdict(self)
        content["steps"] = [{**asdict(one), "output": str(one.output)} for one in self.steps]
        content["disk"]["leftovers"] = [str(path) for path in self.disk.leftovers]
        content["disk"]["held"] = {str(path): process for path, process in self.disk.held.items()}
        return content


def overview(params: Params, steps: list[StepStatus] | None = None) -> Overview:
    """Look at a project; nothing is changed.

    Args:
        params: the parameter file.
        steps: what `status` gave for it, if that is known already.
    """
    folders = Folders(params)
    last = {step.name: run for step in steps_of(params) if (run := last_run(folders, step.name)) is not None}
    disk = disk_use(params.store)
    waiting = _num_waiting()
    return Overview(
        tuple(status(params) if steps is None else steps),
        _scenes(params, folders),
        last["levir_kr"].data_version if "levir_kr" in last else None,
        last,
        _champion(folders, last),
        waiting,
        disk,
        _free_bytes(params.store),
        tuple(_stuck(disk)),
    )


def last_run(folders: Folders, step: str) -> LastRun | None:
    """What the store says of the last run of a step; None where it has not run."""
    state = folders.state(step)
    record = read_record(state)
    if record is None:
        return None
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((state / STATE_FILE).stat().st_mtime))
    return LastRun(ended, record.data_version, read_summary(state).numbers, record.mlflow_url)


def _scenes(params: Params, folders: Folders) -> Scenes | None:
    if not (folders["scenes"] / "inventory.parquet").is_file():
        return None
    from geokr_core.scenes.inventory import read_inventory
    from geokr_core.scenes.quarantine import quarantined
    from geokr_core.scenes.scene_outputs import scenes_in

    by_scene = [step.name for step in steps_of(params) if step.scenes is not None]
    inventory = read_inventory(folders["scenes"])
    refused: dict[str, int] = dict.fromkeys(("scenes", *by_scene), 0)
    for row in quarantined(folders["scenes"], *(folders[name] for name in by_scene)):
        refused[row["step"]] += 1
    made = {name: len(scenes_in(folders[name])) for name in ("chips", "proportions")}
    usable = len(inventory) - refused["scenes"]
    return Scenes(len(inventory), usable, made["chips"], made["proportions"], refused)


def _champion(folders: Folders, last: Mapping[str, LastRun]) -> Champion | None:
    path = folders["champion"] / "decision.json"
    if "champion" not in last or not path.is_file():
        return None
    decision = read_json(path)
    judged = decision["challenger"] if decision["promoted"] else decision["champion"]
    scores = {} if judged is None else judged["scores"]
    return Champion(
        decision["model_name"],
        decision["champion_version"],
        decision["challenger"]["version"],
        decision["reason"],
        decision["delta"],
        (decision["delta_ci_low"], decision["delta_ci_high"]),
        {name: fmean(score["per_seed"].values()) for name, score in scores.items()},
        last["champion"].mlflow_url,
    )


def _num_waiting() -> int:
    if lacking("mlflow"):
        return 0
    from geokr_core.tracking.server import tracking_uri
    from geokr_core.tracking.spool import spools_of

    return len(spools_of(tracking_uri()))


def _free_bytes(store: Path) -> int:
    place = store.resolve()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free


def _stuck(disk: DiskUse) -> Iterator[str]:
    for path in disk.leftovers:
        yield f"{path}: left by a process that was killed; the next run of its step removes it"
    if DAMAGED_LOCK.is_file():
        yield f"{DAMAGED_LOCK}: a damaged lock file of DVC was moved aside; delete it once dvc.lock is right"
    yield from _open_runs()


def _open_runs() -> Iterator[str]:
    """Runs of MLflow that say they are running and whose process is gone."""
    if lacking("mlflow"):
        return
    from geokr_core.tracking.health import health, runs_left_open

    found = health()
    if found.fault:
        yield f"MLflow at {found.place}: {found.fault}; `geokr doctor` says what to do"
    elif found.has_tables:
        for name in runs_left_open():
            yield f"MLflow's run {name} says it is running, but its process is gone; the step resumes it when it runs again"
