"""Steps on Celery workers: a backfill over two of them, one killed in the middle, with the guard, PostgreSQL and redis of the stack."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_stack import started

from geokr_core.chain.params import load_params
from geokr_core.chain.run import run_step
from geokr_core.chain.scene_by_scene import scene_ids
from geokr_core.chain.steps import Folders
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_small_archive

NUM_SCENES = 200
SILENCE_SECONDS = 600  # longer than ten scenes take on a machine with much else to do
START = "mutation($p: LaunchBackfillParams!){launchPartitionBackfill(backfillParams: $p){__typename ... on LaunchBackfillSuccess{backfillId}}}"
BACKFILL = """query($id: String!){partitionBackfillOrError(backfillId: $id){
  ... on PartitionBackfill{status runs(limit: 100){status}}}}"""
EVENTS = """query($k: AssetKeyInput!){assetNodeOrError(assetKey: $k){... on AssetNode{
  assetMaterializations(limit: 1000){partition runId}}}}"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def _until(what: str, holds: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)


def _kill(pid: int) -> None:
    """A worker and the process that carries out its step, at once, as a power cut would."""
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        os.kill(process.pid, signal.SIGKILL)


def test_a_backfill_over_two_workers_survives_one_of_them(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    expected = make_small_archive(open_folder / "undisturbed", num_scenes=NUM_SCENES)
    for step in ("scenes", "land_cover", "chips", "proportions"):
        run_step(step, load_params(expected), RecordingReporter())
    archive = make_small_archive(open_folder / "archive", num_scenes=NUM_SCENES)
    chips = Folders(load_params(archive))["chips"]
    monkeypatch.setenv("GEOKR_CELERY_SILENCE_SECONDS", str(SILENCE_SECONDS))
    folder = open_folder / "celery"
    folder.mkdir()
    with started(folder, GEOKR_PARAMS=archive, GEOKR_EXECUTOR="celery", GEOKR_SCENES_PER_RUN=10) as stack:
        assert stack.end_of(stack.launch("__ASSET_JOB", "land_cover", "scenes"), 300) == "SUCCESS"
        scenes = scene_ids(load_params(archive))
        assert len(scenes) == NUM_SCENES
        assets = [{"path": ["chips"]}, {"path": ["proportions"]}]
        begun = time.monotonic()
        answer = stack.ask(START, p={"assetSelection": assets, "partitionNames": scenes})["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        _until("the first scenes", lambda: len(list(chips.glob("*.parquet"))) >= 30, 300)
        _kill(stack.pid("worker-1"))
        killed_at = len(list(chips.glob("*.parquet")))

        def backfill() -> Any:
            return stack.ask(BACKFILL, id=answer["backfillId"])["partitionBackfillOrError"]

        _until("the backfill ends", lambda: backfill()["status"].startswith("COMPLETED"), 2700)
        seconds = time.monotonic() - begun
        assert {run["status"] for run in backfill()["runs"]} == {"SUCCESS"}
        reported = {
            asset: stack.ask(EVENTS, k={"path": [asset]})["assetNodeOrError"]["assetMaterializations"]
            for asset in ("chips", "proportions")
        }
        # Steps were carried out by the workers, by both of them.
        logs = [(folder / "stack" / "logs" / f"worker-{k}.log").read_text() for k in (1, 2)]
        done = [log.count("succeeded in") for log in logs]
    versions = [
        [data_version(Folders(load_params(params))[step]) for step in ("chips", "proportions")]
        for params in (archive, expected)
    ]
    assert versions[0] == versions[1]
    counts = {asset: Counter(event["partition"] for event in events) for asset, events in reported.items()}
    for asset, of_scenes in counts.items():
        assert set(of_scenes) == set(scenes), asset
    again = sum(count > 1 for count in counts["chips"].values())
    # Only scenes of the step that died are reported a second time: they are skipped, and said to be there.
    assert again <= 10
    assert min(done) > 0, done
    record_property("killed_after_scenes", killed_at)
    record_property("reported_twice", again)
    record_property("seconds", round(seconds))
