"""A real Chromium for the tests that need one: the system's, or one that playwright brought.

`python tests/browser_helper.py` fetches one where there is none, for `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-precise-memory-info"]  # containers have no sandbox
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAYWRIGHT = [sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]
# A mirror that does not answer is given up after seconds, and another process's lock waited for.
APT = ["apt-get", "-qq", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=60"]
DEBIAN = [[*APT, "update"], [*APT, "install", "--yes", "--no-install-recommends", "chromium"]]


@contextmanager
def chromium() -> Iterator:
    """A headless browser of playwright's; where there is none the test is skipped with one reason."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("no browser to look at the page with: playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS, timeout=60_000)
        except Error as error:
            reason = str(error).strip().splitlines()[0].split(" at ")[0]
            pytest.skip(f"no Chromium to look at the page with ({reason}); `playwright install` brings one")
        try:
            yield browser
        finally:
            browser.close()


def starts() -> bool:
    """Whether there is a browser, and it can be started: Ubuntu's package is an empty one without snap."""
    try:
        with chromium():
            return True
    except pytest.skip.Exception:
        return False


def fetch() -> bool:
    """Get a browser from playwright, or as root from Debian; never asks, and gives up after minutes."""
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "10000"}
    for way in ([PLAYWRIGHT], DEBIAN if as_root else []):
        for command in way:
            try:
                subprocess.run(command, env=environment, timeout=300, check=False, **quiet)
            except (OSError, subprocess.TimeoutExpired):
                break
        if way and starts():
            return True
    return False


if __name__ == "__main__":
    if not starts():
        print("fetching a browser for the tests", flush=True)
        if not fetch():
            print("no browser could be had: the tests in one are skipped")
