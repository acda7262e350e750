"""The plots of DVC, as `make setup` has them show: without a network, a line a variant and seed."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from opened_pages import CHROMIUM, needs_chromium

REPOSITORY = Path(__file__).parents[2]
HISTORY = "variant,seed,step,train_kl,validation_kl\n" + "".join(
    f"{variant},{seed},{step},{1 / step},{2 / step}\n"
    for variant in ("geokr", "shuffled")
    for seed in (0, 1)
    for step in (10, 20)
)


def filled_by_dvc(folder: Path) -> Path:
    """The page that ``dvc plots show`` writes of a history, in a project with this one's pipeline and templates."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / ".dvc" / "plots", folder / ".dvc" / "plots")
    page = runpy.run_path(str(REPOSITORY / "docs" / "plots_page.py"))["plots_page"]()
    (folder / ".dvc" / "plots.html").write_text(page, encoding="utf-8")
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n[plots]\n    html_template = plots.html\n")
    history = folder / "data" / "store" / "pretraining" / "history.csv"
    history.parent.mkdir(parents=True)
    history.write_text(HISTORY)
    command = [str(Path(sys.executable).parent / "dvc"), "plots", "show", "-o", "shown"]
    subprocess.run(command, cwd=folder, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=True, capture_output=True)
    return folder / "shown" / "index.html"


@pytest.mark.slow
@pytest.mark.browser
@needs_chromium
def test_the_plots_show_without_a_network(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    page_file = filled_by_dvc(tmp_path)
    with sync_playwright() as playwright:
        nothing_is_found = "--host-resolver-rules=MAP * ~NOTFOUND"
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", nothing_is_found]
        )
        page = browser.new_page()
        asked, errors = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        expect(page.locator("svg.marks")).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "plots.png")
        lines = page.locator("svg .mark-line path").count()
        browser.close()
    assert asked == [page_file.as_uri()]
    assert not errors
    assert lines == 8  # two variants with two seeds, two curves of each
