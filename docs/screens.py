"""Take the pictures of Dagster and MLflow that the documents show, from a finished demo: `make screens`, or `python docs/screens.py FOLDER`.

It starts both servers itself, on free ports of this machine and with an instance of Dagster that nothing else uses, opens each page in
chromium, waits for what the picture is about, and writes a PNG of at most 256 colours. What the pages show is only looked at by people: look at
each picture before it is committed.

Not here: the report's first screen, which is a picture of a file and needs no server.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from geokr_assets.ui import dagster_dev
from geokr_core.tracking.runs import PAGE_MODE

REPOSITORY = Path(__file__).parents[1]
DATABASE = "sqlite:///mlflow.db"
WIDTH = 1440
CLOSED_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""MLflow's own assistant opens on the first visit and covers a quarter of the page."""
PATIENCE_MS = 240_000
SETTLE_MS = 4_000
"""For charts and graphs, which are drawn after their names are there."""
GRAPH_CENTRE = (1420, 900)


@dataclass(frozen=True)
class Picture:
    """A page and what of it is shown.

    Attributes:
        name: of the file.
        address: of the page.
        awaited: text that has to be there.
        size: of the window, width and height in pixels.
        prepare: what is done on the page before the picture.
        corner: pixels at the left and the top that are cut off.
    """

    name: str
    address: str
    awaited: str
    size: tuple[int, int] = (WIDTH, 900)
    prepare: Callable[[Page], None] = lambda _: None
    corner: tuple[int, int] = (0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _serving(command: list[str], port: int, environment: dict[str, str]) -> Iterator[str]:
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{' '.join(command)}: no answer at {address}")
            time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):  # noqa: S310  # our own server
            return True
    except (urllib.error.URLError, OSError):
        return False


def _of_dagster(address: str) -> list[Picture]:
    return [
        Picture("asset-graph", f"{address}/asset-groups", "applications", (2300, 1760), _show_all_assets, (542, 110)),
        Picture("scores", f"{address}/assets/evaluation", "Latest materialization", (WIDTH, 1060)),
        Picture("promotion", f"{address}/assets/champion", "Latest materialization", (WIDTH, 1060)),
    ]


def _show_all_assets(page: Page) -> None:
    page.wait_for_timeout(SETTLE_MS)
    page.locator("body").press("Alt+e")  # unfolds all groups
    page.get_by_text("champion", exact=True).last.wait_for(timeout=PATIENCE_MS)
    page.wait_for_timeout(SETTLE_MS)
    page.mouse.move(*GRAPH_CENTRE)
    page.mouse.wheel(0, -40)  # down, from below the filter
    page.wait_for_timeout(3 * SETTLE_MS)  # the states of the assets come after their names


def _hide_path(page: Page) -> None:
    """Where the file lies on this machine, which is no one's business."""
    page.get_by_text("Path: ").first.evaluate("node => { node.style.visibility = 'hidden' }")


def _of_mlflow(address: str, client: MlflowClient) -> list[Picture]:
    experiment = client.get_experiment_by_name("geokr")
    if experiment is None:
        sys.exit("mlflow.db has no experiment `geokr`: run `make demo` first.")
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    version = client.get_model_version_by_alias("geokr-resnet18", "champion").version
    pages = f"{address}/#/experiments/{experiment.experiment_id}"
    run_id = _training(runs)
    trained = f"{pages}/runs/{run_id}"
    return [
        Picture("mlflow-runs", f"{pages}/runs{PAGE_MODE}", "evaluation", (WIDTH, 640)),
        Picture("mlflow-run", f"{trained}{PAGE_MODE}", "About this run"),
        Picture("mlflow-curves", f"{trained}/model-metrics{PAGE_MODE}", "consistency_loss", (WIDTH, 1500)),
        Picture(
            "mlflow-examples",
            f"{trained}/artifacts/{_last_examples(client, run_id)}{PAGE_MODE}",
            "examples",
            (WIDTH, 400),
            _hide_path,
        ),
        Picture(
            "registry",
            f"{address}/#/models/geokr-resnet18/versions/{version}{PAGE_MODE}",
            "Scores",
            (WIDTH, 1060),
        ),
    ]


def _training(runs: list[Run]) -> str:
    """The newest run of the preset itself that has curves."""
    for run in runs:
        if str(run.info.run_name).startswith("geokr ·") and "loss" in run.data.metrics:
            return str(run.info.run_id)
    sys.exit("mlflow.db has no training of `geokr`: run `make demo` first.")


def _last_examples(client: MlflowClient, run_id: str) -> str:
    return max(str(file.path) for file in client.list_artifacts(run_id, "examples"))


def _take(browser: BrowserContext, picture: Picture, folder: Path) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": picture.size[0], "height": picture.size[1]})
    page.goto(picture.address, timeout=PATIENCE_MS)
    expect(page.get_by_text(picture.awaited).first).to_be_visible(timeout=PATIENCE_MS)
    picture.prepare(page)
    page.wait_for_timeout(SETTLE_MS)
    shot = Image.open(BytesIO(page.screenshot(timeout=PATIENCE_MS))).convert("RGB")
    shot.crop((*picture.corner, *picture.size)).quantize(256).save(folder / f"{picture.name}.png", optimize=True)
    page.close()


def main(folder: Path) -> None:
    """Take all pictures into a folder."""
    chromium = shutil.which("chromium") or sys.exit("chromium is missing; on Debian: apt-get install chromium")
    ports = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as home:
        shutil.copy(REPOSITORY / ".dagster_home" / "dagster.yaml", home)
        mlflow = [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--workers",
            "1",
            "--backend-store-uri",
            DATABASE,
            "--port",
            str(ports[1]),
        ]
        with (
            _serving(dagster_dev(ports[0]), ports[0], {"DAGSTER_HOME": home}) as of_dagster,
            _serving(mlflow, ports[1], {}) as of_mlflow,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            context = browser.new_context()
            context.add_init_script(CLOSED_ASSISTANT)
            for picture in [*_of_mlflow(of_mlflow, MlflowClient(of_mlflow)), *_of_dagster(of_dagster)]:
                _take(context, picture, folder)
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "images")
