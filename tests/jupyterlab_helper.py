"""A real JupyterLab on copies of the notebooks, as `make lab` opens it, driven in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kitlib.core import paths

KIT = ("kitlib", "notebooks", "Makefile", "pyproject.toml", "requirements.lock", ".gitignore", "data/README.md")
OPTIONS = "--no-browser --allow-root --ip=127.0.0.1 --port=0 --LabApp.expose_app_in_browser=True"
SETTINGS = {  # news from nobody; cells that are scrolled away stay on the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
CURRENT = "window.jupyterapp?.shell.currentWidget"
WAITING = "[...document.querySelectorAll('.jp-InputPrompt')].some(one => one.textContent.includes('*'))"
LONG = 120  # seconds for what takes seconds, on a machine that others use too


def copy_kit(folder: Path) -> Path:
    """A checkout of the kit as it is now, everything committed."""
    for name in KIT:
        source, target = paths.checkout() / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copy(source, target)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=test", "-c", "user.email=test", "commit", "--quiet", "--message", "The kit")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@dataclass
class Lab:
    """A running JupyterLab: its address with NAME for a notebook, and the process of `make lab`."""

    address: str
    process: psutil.Process

    def kernel_seconds(self) -> float:
        """Processor time of all kernels, which other people's work on this machine does not lengthen."""
        kernels = [one for one in self.process.children(recursive=True) if "ipykernel_launcher" in one.cmdline()]
        return sum(sum(one.cpu_times()[:2]) for one in kernels)


@contextmanager
def make_lab(kit: Path, own: Path) -> Iterator[Lab]:
    """`make lab` in a checkout; `own` is an empty folder for Jupyter's files."""
    for name, values in SETTINGS.items():
        file = own / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    folders = {f"JUPYTER_{name.upper()}_DIR": str(own / name) for name in ("config", "data", "runtime")}
    folders |= {f"JUPYTERLAB_{name.upper()}_DIR": str(own / name) for name in ("settings", "workspaces")}
    environment = os.environ | folders | {"IPYTHONDIR": str(own / "ipython"), "PYTHONPATH": str(kit)}
    for name in ("KITLIB_HOME", "KITLIB_GIVEN", "MAKEFLAGS"):  # MAKEFLAGS: of the `make` that runs the tests
        environment.pop(name, None)
    command = ["make", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed", f"ARGS={OPTIONS}", "lab"]
    with (own / "log").open("w") as log:
        started = subprocess.Popen(
            command, cwd=kit, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        process = psutil.Process(started.pid)
        try:
            yield Lab(_address(started, own), process)
        finally:
            _end([*process.children(recursive=True), process])


def _address(started: subprocess.Popen, own: Path) -> str:
    until = time.monotonic() + LONG
    while time.monotonic() < until and started.poll() is None:
        for file in (own / "runtime").glob("jpserver-*.json"):
            with suppress(ValueError):  # half written
                server = json.loads(file.read_text())
                return f"{server['url']}lab/tree/NAME?token={server['token']}"
        time.sleep(0.05)
    raise AssertionError(f"JupyterLab did not start:\n{(own / 'log').read_text()[-3000:]}")


def _end(processes: list[psutil.Process]) -> None:
    """End the server, its kernels, which have process groups of their own, and `make`."""
    for kind, patience in (("terminate", 5), ("kill", 5)):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                getattr(process, kind)()
        _, processes = psutil.wait_procs(processes, timeout=patience)


class Notebook:
    """A notebook that is open in JupyterLab, with its kernel."""

    def __init__(self, page: Any, address: str, copy: Path, **parameters: Any) -> None:
        """Open the copy of a notebook after setting some of its parameters."""
        book = json.loads(copy.read_text())
        [cell] = [cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        text = "".join(cell["source"])
        for name, value in parameters.items():
            line = re.compile(rf"^({name}: \w+ =) .*?(?=  #|$)", re.MULTILINE)
            assert line.search(text), f"{copy.name} has no parameter {name}"
            text = line.sub(lambda found, value=value: f"{found[1]} {value!r}", text)
        cell["source"] = text
        copy.write_text(json.dumps(book, ensure_ascii=False, indent=1))
        self.page, self.copy = page, copy
        page.goto(address.replace("NAME", copy.name))
        # the notebook that was open before is the current one at first
        current = f"{CURRENT}?.context?.path?.endsWith(v[0])"
        self.wait(f"{current} && {CURRENT}.sessionContext?.session?.kernel?.status === 'idle'", copy.name)

    def wait(self, condition: str, *values: Any) -> None:
        """Until a condition in JavaScript holds; `values` are its v[0], v[1] …"""
        self.page.wait_for_function(f"v => {condition}", arg=list(values), timeout=LONG * 1000)

    def menu(self, bar: str, item: str) -> None:
        """Choose from the menu bar."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{bar}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{item}")).first.click()

    def run_all(self, finish: bool = True) -> None:
        """Run all cells by the menu, and by default wait for the last."""
        self.menu("Run", "Run All Cells")
        self.wait(WAITING)
        if finish:
            self.finish()

    def finish(self) -> None:
        """Until no cell is waiting and the kernel is idle."""
        self.wait(f"!{WAITING} && {CURRENT}.sessionContext.session.kernel.status === 'idle'")

    def interrupt(self) -> None:
        """The square in the notebook's toolbar."""
        self.page.locator("[data-jp-item-name='interrupt'] :is(button, jp-button)").first.click()

    def save(self) -> None:
        """Save the copy."""
        self.menu("File", "Save Notebook")
        self.wait(f"!{CURRENT}.context.model.dirty")

    def cells(self) -> list[dict]:
        """The code cells as they would be saved, with their outputs."""
        book = self.page.evaluate(f"{CURRENT}.content.model.sharedModel.toJSON()")
        return [cell for cell in book["cells"] if cell["cell_type"] == "code"]

    def outputs(self, kind: str) -> list[dict]:
        """The outputs of all cells that are of one type ("error") or of one stream ("stderr")."""
        outputs = [output for cell in self.cells() for output in cell["outputs"]]
        return [one for one in outputs if kind in (one["output_type"], one.get("name"))]

    def cell(self, holds: str) -> Any:
        """The code cell on the page whose source holds these words."""
        return self.page.locator(".jp-CodeCell", has=self.page.locator(".jp-InputArea-editor", has_text=holds)).first

    def picture(self, path: Path, holds: str = "") -> None:
        """A screenshot, from the cell with these words on."""
        if holds:
            self.cell(holds).evaluate("cell => cell.scrollIntoView()")
        self.page.screenshot(path=path)
