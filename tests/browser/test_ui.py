import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"),
]


def _write_params(root: Path) -> Path:
    world = root / "world"
    content = {
        "store": str(root / "store"),
        "world": {"folder": str(world), "seed": 3, "scene_size_px": 128, "num_scenes": 2, "task_images_per_class": 4},
        "scenes": {
            "folder": str(world / "scenes"),
            "collections": [
                {"name": "gaofen", "files": "*.tiff", "bands": ["blue", "green", "red", "nir"], "land_cover": "globe"}
            ],
        },
        "land_cover": {
            "folder": str(world / "land_cover"),
            "products": [{"name": "globe", "files": "**/*.tif", "legend": "globeland30", "year": 2020}],
        },
        "evaluation": {"folder": str(world / "tasks"), "tasks": [{"name": "scene_classification"}]},
        "champion": {"task": "scene_classification"},
    }
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"`dagster dev` ended with code {server.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds:.0f} s")


def _default_interrupt() -> None:
    # Started from a script in the background, the server inherits an ignored SIGINT, and then nothing but SIGKILL ends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def dagster_url(tmp_path: Path) -> Iterator[str]:
    """A real `dagster dev` as `make ui` starts it, with an instance and a world of its own."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(REPOSITORY / ".dagster_home" / "dagster.yaml", home)
    port = _free_port()
    with (tmp_path / "dev.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"],
            cwd=REPOSITORY,
            env={**os.environ, "DAGSTER_HOME": str(home), "GEOKR_PARAMS": str(_write_params(tmp_path))},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_default_interrupt,
        )
        family: list[psutil.Process] = []
        try:
            _wait_for(f"http://127.0.0.1:{port}/server_info", server, seconds=120)
            family = psutil.Process(server.pid).children(recursive=True)
            yield f"http://127.0.0.1:{port}"
            family = psutil.Process(server.pid).children(recursive=True)
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            finally:
                for process in psutil.wait_procs(family, timeout=10)[1]:
                    process.kill()
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)


def test_a_newcomer_materialises_an_asset_and_sees_what_came_of_it(dagster_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        page.goto(f"{dagster_url}/asset-groups")
        for group in ("raw_data", "levir_kr", "pretraining", "evaluation", "registry"):
            expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(4_000)  # the graph is laid out after its names are there
        page.screenshot(path=tmp_path / "groups.png")

        page.goto(f"{dagster_url}/assets/world")
        expect(page.get_by_text("Generate a small world").first).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="Materialize").first.click()
        expect(page.get_by_text("Launched run").first).to_be_visible(timeout=60_000)

        # Numbers of the summary, on the page that opens the list of materialisations.
        page.goto(f"{dagster_url}/assets/world?view=events")
        expect(page.get_by_text("num_scenes").first).to_be_visible(timeout=120_000)
        page.screenshot(path=tmp_path / "world.png")

        page.goto(f"{dagster_url}/runs")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "runs.png")
        browser.close()
    assert not errors
    assert len(list((tmp_path / "world" / "scenes").glob("*.tiff"))) == 2
