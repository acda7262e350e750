"""Many scenes through the UI: a backfill of small scenes ends, each scene is reported by itself, and the pages stay usable."""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opened_pages import CHROMIUM, needs_chromium

from geokr_core.chain.freshness import is_current
from geokr_core.chain.params import load_params
from geokr_core.chain.steps import STEPS
from geokr_core.testing import make_small_archive

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]

LATEST = "{partitionBackfillsOrError(limit: 1){... on PartitionBackfills{results{id}}}}"
LAUNCH_RUN = """mutation($p: ExecutionParams!){launchPipelineExecution(executionParams: $p){__typename
  ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
RUN = "query($id: ID!){runOrError(runId: $id){... on Run{status}}}"
BACKFILL = """query($id: String!){partitionBackfillOrError(backfillId: $id){
  ... on PartitionBackfill{status numPartitions runs(limit: 1000){id status tags{key value}}}}}"""
MATERIALISED = """query($k: AssetKeyInput!){assetNodeOrError(assetKey: $k){... on AssetNode{
  partitionStats{numMaterialized numFailed numPartitions}}}}"""
# What the page of an asset asks when someone opens it.
PAGE = """query($k: AssetKeyInput!){assetNodeOrError(assetKey: $k){... on AssetNode{
  partitionKeyConnection(limit: 1000, ascending: true){results} partitionStats{numMaterialized}
  assetMaterializations(limit: 20){runId partition metadataEntries{label __typename}}}}}"""


def _selector() -> dict[str, Any]:
    return {"repositoryLocationName": "geokr", "repositoryName": "__repository__"}


def _materialise(server: Any, *assets: str) -> None:
    launched = server.ask(
        LAUNCH_RUN,
        p={
            "selector": {
                **_selector(),
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": [a]} for a in assets],
            },
            "mode": "default",
            "runConfigData": {},
        },
    )["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    _until(lambda: server.ask(RUN, id=launched["run"]["runId"])["runOrError"]["status"], {"SUCCESS"}, {"FAILURE"}, 120)


def _until(state: Callable[[], str], good: set[str], bad: set[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (now := state()) not in good:
        assert now not in bad, now
        assert time.monotonic() < deadline, f"still {now} after {seconds:.0f} s"
        time.sleep(1)


def _stats(server: Any, asset: str) -> dict[str, int]:
    stats: dict[str, int] = server.ask(MATERIALISED, k={"path": [asset]})["assetNodeOrError"]["partitionStats"]
    return stats


def _launch(page: Any, server: Any) -> str:
    """Launch the backfill of all scenes as a person does; returns its id."""
    from playwright.sync_api import expect

    page.goto(f"{server.url}/locations/geokr/jobs/chips_and_proportions")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="All", exact=True).click()
    button = page.get_by_role("button", name="Launch backfill")
    expect(button).to_be_enabled(timeout=30_000)
    button.click()
    deadline = time.monotonic() + 60
    while not (found := server.ask(LATEST)["partitionBackfillsOrError"]["results"]):
        assert time.monotonic() < deadline, "no backfill was launched"
        time.sleep(0.5)
    return str(found[0]["id"])


def _visit(page: Any, server: Any, folder: Path) -> list[float]:
    """Open the pages that a person watches a backfill on; seconds until each shows its content."""
    from playwright.sync_api import expect

    seconds = []
    pages = (
        ("assets/proportions?view=partitions", "scene_0001"),
        ("overview/backfills", "Backfill"),
        ("runs", "Success"),
    )
    for address, text in pages:
        started = time.monotonic()
        page.goto(f"{server.url}/{address}")
        expect(page.get_by_text(text).first).to_be_visible(timeout=30_000)
        seconds.append(time.monotonic() - started)
        page.wait_for_timeout(2_000)  # someone looks at it
        page.screenshot(path=folder / f"{address.split('?')[0].replace('/', '_')}.png")
    return seconds


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("num_scenes", "limit_s"), [(20, 240.0), (500, 900.0)])
def test_a_backfill_of_small_scenes_ends_and_the_pages_stay_usable(
    num_scenes: int, limit_s: float, tmp_path: Path, start_dagster: Callable[..., Any]
) -> None:
    from playwright.sync_api import expect, sync_playwright

    params_file = make_small_archive(tmp_path / "archive", num_scenes=num_scenes)
    server = start_dagster(params_file, **({"GEOKR_SCENES_PER_RUN": "10"} if num_scenes == 20 else {}))
    _materialise(server, "scenes", "land_cover")
    latencies: list[float] = []
    pages: list[float] = []
    with sync_playwright() as playwright, ThreadPoolExecutor(1) as pool:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        backfill_id = _launch(page, server)
        started = time.monotonic()

        def follow() -> None:
            while server.ask(BACKFILL, id=backfill_id)["partitionBackfillOrError"]["status"] == "REQUESTED":
                assert time.monotonic() - started < limit_s, "the backfill takes too long"
                asked = time.monotonic()
                server.ask(PAGE, k={"path": ["proportions"]})
                latencies.append(time.monotonic() - asked)
                time.sleep(0.5)

        following = pool.submit(follow)
        while not following.done():
            pages += _visit(page, server, tmp_path)
        following.result()
        page.goto(f"{server.url}/assets/proportions?view=partitions&partition=scene_0001")
        expect(page.get_by_text("scene and land cover").first).to_be_visible(timeout=30_000)
        page.screenshot(path=tmp_path / "partition.png", full_page=True)
        browser.close()
    backfill = server.ask(BACKFILL, id=backfill_id)["partitionBackfillOrError"]
    seconds = time.monotonic() - started
    figures = {
        "num_scenes": num_scenes,
        "seconds": round(seconds, 1),
        "num_runs": len(backfill["runs"]),
        "query_median_s": round(statistics.median(latencies), 3),
        "query_max_s": round(max(latencies), 3),
        "page_median_s": round(statistics.median(pages), 2),
        "page_max_s": round(max(pages), 2),
    }
    sys.stderr.write(f"{figures}\n")
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert len(backfill["runs"]) <= -(-num_scenes // 10)
    wanted = {"numMaterialized": num_scenes, "numFailed": 0, "numPartitions": num_scenes}
    # The page's own counts follow the events with some delay.
    deadline = time.monotonic() + 60
    while any(_stats(server, asset) != wanted for asset in ("chips", "proportions")) and time.monotonic() < deadline:
        time.sleep(1)
    assert {asset: _stats(server, asset) for asset in ("chips", "proportions")} == {
        "chips": wanted,
        "proportions": wanted,
    }
    assert statistics.median(latencies) < 2.0, figures
    assert statistics.median(pages) < 10.0, figures
    params = load_params(params_file)
    assert is_current(params, STEPS["proportions"])
    # Each scene was reported by itself.
    table = server.ask(PAGE, k={"path": ["proportions"]})["assetNodeOrError"]["assetMaterializations"]
    assert len({event["partition"] for event in table}) == len(table)
