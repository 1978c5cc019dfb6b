"""Kernels that are forked from a server with the large libraries."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from notebook_helper import code, headline, parameters, prose, write_notebook

from kitlib.pipeline import kernel, warm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not warm.possible(), reason="kernels start as usual"),
]

WHERE = "str(['colorsys' in sys.modules, sys.executable == os.environ['EXPECTED'], N, os.getppid()])"


def notebook(home: Path, *cells: str) -> Path:
    start = [prose("# 00 · Where"), parameters("N: int = 1  # a number"), code("import os, sys, subprocess")]
    return write_notebook(home / "00_where.ipynb", *start, *map(code, cells), headline("where", WHERE))


def wait_until_ready() -> None:
    assert select.select([warm.Forked.replies], [], [], 60)[0]


def test_a_forked_kernel_is_as_any_other_and_has_the_libraries(home, monkeypatch):
    monkeypatch.setenv("EXPECTED", sys.executable)
    plot = "import matplotlib.pyplot as plt\nassert 'inline' in plt.get_backend()"
    source = notebook(home, "assert subprocess.run(['false']).returncode == 1", plot, "assert not sys.stdin.read()")
    with warm.server(["colorsys"]):
        wait_until_ready()
        outcomes = [kernel.execute(source, home / "out.ipynb", {"N": n}) for n in (2, 3)]
    values = [outcome.headline["value"] for outcome in outcomes]
    server = int(values[0].rstrip("]").split()[-1])
    assert values == [f"[True, True, {n}, {server}]" for n in (2, 3)] and server != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert kernel.execute(source, home / "out.ipynb", {"N": 4}).headline["value"] == f"[False, True, 4, {os.getpid()}]"


def test_kernels_start_as_usual_while_the_server_imports_and_after_its_death(home, monkeypatch):
    monkeypatch.setenv("EXPECTED", sys.executable)
    source = notebook(home)
    with warm.server(["colorsys"]):
        with monkeypatch.context() as patch:
            patch.setattr(warm.select, "select", lambda *_: ([], [], []))
            assert warm.Forked._fork({}) == 0
        forked = kernel.execute(source, home / "out.ipynb", {}, heavy=True).headline["value"]
        assert not forked.endswith(f" {os.getpid()}]")
        os.kill(int(forked.rstrip("]").split()[-1]), signal.SIGKILL)
        assert kernel.execute(source, home / "out.ipynb", {}).headline["value"].endswith(f" {os.getpid()}]")


def test_a_forked_kernel_is_interrupted_and_a_dead_one_is_noticed(home):
    with warm.server([]):
        wait_until_ready()
        source = notebook(home, "import signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
        assert kernel.execute(source, home / "out.ipynb", {}).status == "failed"
        source = notebook(home, "import signal\nos.kill(os.getpid(), signal.SIGKILL)")
        assert "kernel died" in kernel.execute(source, home / "out.ipynb", {}).error


PROGRAM = """
import sys
from pathlib import Path
from kitlib.pipeline import kernel, warm
with warm.server(["colorsys"]):
    kernel.execute(Path(sys.argv[1]), Path(sys.argv[2]), {}, heavy=True)
"""


def test_a_forked_kernel_ends_when_the_plan_is_killed(home):
    source = notebook(home, f"open({str(home / 'who')!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(60)")
    plan = subprocess.Popen([sys.executable, "-c", PROGRAM, source, home / "out.ipynb"])
    deadline = time.monotonic() + 60
    while not (text := (home / "who").read_text() if (home / "who").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    plan.kill()
    plan.wait()
    while not ended(int(text)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ended(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_sandbox_without_handles_of_processes_and_a_gpu_have_no_server(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", lambda pid: os.close(-1))
        with warm.server([]):
            assert warm.Forked.replies is None
    monkeypatch.setattr(warm, "GPUS", (os.devnull,))
    with warm.server([]):
        assert warm.Forked.replies is None
