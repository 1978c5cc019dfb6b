"""A real Chromium for the tests that need one: the system's, or one that `playwright install` brought."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-precise-memory-info"]  # containers have no sandbox


@contextmanager
def chromium() -> Iterator:
    """A headless browser of playwright's; where there is none the test is skipped with one reason."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("no browser to look at the page with: playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS, timeout=60_000)
        except Error as error:
            reason = str(error).strip().splitlines()[0].split(" at ")[0]
            pytest.skip(f"no Chromium to look at the page with ({reason}); `playwright install` brings one")
        yield browser
        browser.close()
