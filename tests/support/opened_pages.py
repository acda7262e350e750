"""A page of ours in a real browser, from the disk. Found through ``pythonpath``."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)")


@contextmanager
def opened_page(path: Path) -> Iterator[Any]:
    """The page, once its chips are there; a script's error, or a request to the network, fails the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1400, "height": 900}, accept_downloads=True)
        opened.set_default_timeout(120_000)  # milliseconds: a page of 40 MB on a machine that others use
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        opened.goto(path.as_uri())
        opened.wait_for_selector(".chip")
        yield opened
        assert problems == []
        browser.close()
