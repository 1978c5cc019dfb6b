"""Execute one notebook by papermill in a kernel of this Python, with progress messages and a clean stop.

Papermill takes a second to import: `runner` imports this module only when a step runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from nbclient.exceptions import DeadKernelError
from traitlets import default

from kitlib.core import storage
from kitlib.core.headline import HEADLINE_MIME
from kitlib.pipeline import warm
from kitlib.pipeline.notebook import Value, without_bars, without_machine

log = logging.getLogger(__name__)

SHOW_PROGRESS = "from kitlib.core import progress as _progress; _progress.show_log()"
# Here, where the exception itself is at hand, its class and cause tell whether it is the user's to mend (`sentence`).
NAME_USER_ERRORS = (
    "from kitlib.core import errors as _errors; get_ipython().set_custom_exc((Exception,), "
    "lambda shell, kind, error, trace, tb_offset=None: shell.showtraceback((kind, error, trace) "
    "if (text := _errors.sentence(error)) is None else (_errors.KitError, _errors.KitError(text), trace), "
    "tb_offset=tb_offset))"
)
FORKED = EntryPoint("kitlib-forked", "kitlib.pipeline.warm:Forked", KernelProvisionerFactory.GROUP_NAME)


@dataclass
class Outcome:
    """The result of an execution; `cell` is the number of the last code cell that was started, as in In [n]."""

    status: str  # done, failed or interrupted
    seconds: float
    cell: int
    headline: dict[str, Any] = field(default_factory=lambda: {"label": "", "value": "", "wrote": []})
    error: str = ""
    user_error: bool = False  # a KitError: `error` is its one sentence


class ThisPython(KernelSpecManager):
    """Offers one kernel, this interpreter, regardless of the installed kernels."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernel's command and environment."""
        environment = {
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # avoids a warning at every start
            "TQDM_MININTERVAL": os.environ.get("TQDM_MININTERVAL", "1"),  # a notebook is written anew for each
        }
        quiet = "--IPKernelApp.log_level=50"  # warns at each start that its loopback port is not encrypted
        lines = [f"--IPKernelApp.exec_lines={line}" for line in (SHOW_PROGRESS, NAME_USER_ERRORS)]
        settings = get_kernel_dict(extra_arguments=[*lines, quiet])
        settings["metadata"] = {"kernel_provisioner": {"provisioner_name": FORKED.name}}
        return KernelSpec(**settings, env=environment)


class Kernel(AsyncKernelManager):
    """A kernel of this Python; the latest one can be interrupted from a signal handler."""

    latest: ClassVar[Kernel | None] = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        KernelProvisionerFactory.instance().provisioners[FORKED.name] = FORKED
        Kernel.latest = self

    @default("kernel_spec_manager")
    def _this_python(self) -> ThisPython:
        return ThisPython(parent=self)

    def interrupt(self) -> None:
        """Send SIGINT to the kernel and its children; an idle kernel ignores it."""
        if isinstance(self.provisioner, LocalProvisioner) and self.provisioner.pgid:  # None until it is started
            os.killpg(self.provisioner.pgid, signal.SIGINT)


class Stopped(Exception):
    """Raised between two cells after a request to stop."""


class Progress:
    """Logs each cell with the prose before it, and starts no further cell after a request to stop."""

    def __init__(self, total: int) -> None:
        self.total, self.cell, self.about, self.stop = total, 0, "", False

    def start(self, cell: Any, cell_index: int) -> None:
        """Log the cell; nbclient calls this before each cell, including prose."""
        if self.stop:
            raise Stopped
        if cell.cell_type == "markdown" and cell.source.strip():
            first = re.match(r"#+ *(.+)|[^.?!:]+", cell.source.strip())  # the heading, else the first sentence
            text = " ".join((first.group(1) or first.group()).split()) if first else ""
            self.about = textwrap.shorten(re.sub("[*`]", "", text), 90, placeholder=" …")
        elif cell.cell_type == "code" and cell.source.strip():
            self.cell += 1
            if not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
                log.info("  cell %d of %d · %s", self.cell, self.total, self.about)


def execute(source: Path, output: Path, values: dict[str, Value], heavy: bool = False) -> Outcome:
    """Execute the notebook `source` with `values` and write it to `output` after every cell.

    heavy: it imports torch, and waits for a `warm.server` that does so already.
    Ctrl-C and SIGTERM interrupt the running cell, so that training can save; a second one ends the kernel at once.
    """
    began = time.perf_counter()
    cells = json.loads(source.read_text())["cells"]
    code = sum(cell["cell_type"] == "code" and bool("".join(cell["source"]).strip()) for cell in cells)
    progress = Progress(code + bool(values))
    warm.Forked.patience = 120.0 if heavy else 0.0  # it would import the same libraries
    output.parent.mkdir(parents=True, exist_ok=True)
    status, error, user_error = "done", "", False
    with _stopping(progress):
        try:
            papermill.execute_notebook(
                _literal(source),
                _literal(output),
                parameters=values,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stderr,
                stderr_file=sys.stderr,
                coalesce_streams=True,
                kernel_manager_class=Kernel,
                on_cell_start=progress.start,
            )
        except papermill.PapermillExecutionError as broken:
            status, user_error = "failed", broken.ename == "KitError"
            error = broken.evalue if user_error else f"{broken.ename}: {broken.evalue}"
        except DeadKernelError:
            status, error = "failed", "the kernel died, most often because memory ran out"
        except (Stopped, RuntimeError, KeyboardInterrupt):
            if not progress.stop:
                raise
    if progress.stop:
        status, error = "interrupted", ""
    outcome = Outcome(status, time.perf_counter() - began, progress.cell, error=error, user_error=user_error)
    for headline in _tidy(output):
        outcome.headline = headline
    return outcome


def _literal(path: Path) -> str:
    """A path for papermill, which puts parameters into what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _stopping(progress: Progress) -> Iterator[None]:
    """Convert SIGINT and SIGTERM to an interrupt of the running cell."""

    def stop(signal_number: int, frame: object) -> None:
        if progress.stop:
            raise KeyboardInterrupt
        progress.stop = True
        log.warning("stopping: the running cell is interrupted and can save; a second signal ends it at once")
        if Kernel.latest is not None:
            Kernel.latest.interrupt()

    Kernel.latest = None
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tidy(output: Path) -> list[dict[str, Any]]:
    """Remove this machine's folders from an executed notebook; return its headlines."""
    notebook = json.loads(output.read_text())
    about = notebook["metadata"].get("papermill", {})
    for place in ("input_path", "output_path"):
        about.pop(place, None)
    notebook["metadata"]["papermill"] = _shortened(about)
    without_bars(notebook)
    headlines = []
    for cell in notebook["cells"]:
        cell["metadata"] = _shortened(cell["metadata"])
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["source"] = _shortened(cell["source"])
        cell |= {"outputs": _shortened(cell["outputs"])} if "outputs" in cell else {}
        data = (result.get("data", {}) for result in cell.get("outputs", []))
        headlines += [bundle[HEADLINE_MIME] for bundle in data if HEADLINE_MIME in bundle]
    storage.write_json(output, notebook, indent=1)  # as Jupyter indents
    return headlines


def _shortened(content: Any) -> Any:
    """JSON with `without_machine` of every text, except pictures."""
    if isinstance(content, dict):
        return {key: value if key.startswith("image/") else _shortened(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_shortened(value) for value in content]
    return without_machine(content) if isinstance(content, str) else content
