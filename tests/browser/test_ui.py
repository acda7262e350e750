from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opened_pages import CHROMIUM, needs_chromium
from tiny_worlds import tiny_world

PATIENCE_MS = 180_000
"""Of a page on a machine that does other things beside it."""

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


@pytest.fixture
def dagster_url(tmp_path: Path, start_dagster: Callable[..., Any]) -> str:
    """The address of a Dagster with a separate world."""
    return str(start_dagster(tiny_world(tmp_path)).url)


def test_a_newcomer_materialises_an_asset_and_sees_what_came_of_it(dagster_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        page.goto(f"{dagster_url}/asset-groups")
        for group in ("raw_data", "levir_kr", "pretraining", "evaluation", "registry"):
            expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(4_000)  # the graph is laid out after its names are there
        page.screenshot(path=tmp_path / "groups.png")

        page.goto(f"{dagster_url}/assets/world")
        expect(page.get_by_text("Generate a small world").first).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_role("button", name="Materialize").first.click()
        expect(page.get_by_text("Launched run").first).to_be_visible(timeout=PATIENCE_MS)

        # Numbers of the summary, on the page that opens the list of materialisations.
        page.goto(f"{dagster_url}/assets/world?view=events")
        expect(page.get_by_text("num_scenes").first).to_be_visible(timeout=PATIENCE_MS)
        page.screenshot(path=tmp_path / "world.png")

        page.goto(f"{dagster_url}/runs")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=PATIENCE_MS)
        page.screenshot(path=tmp_path / "runs.png")
        browser.close()
    assert not errors
    assert len(list((tmp_path / "world" / "scenes").glob("*.tiff"))) == 2
