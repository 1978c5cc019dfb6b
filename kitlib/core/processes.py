"""Processes that another process of the kit starts: one a device, ended with the one that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

LOOK_SECONDS = 1.0  # between two looks at the parent
STOP_SECONDS = 45.0  # torchrun gives its processes 30 to save

# torchrun, which ends, with the processes that it starts, when this process does. How they ended is said by them.
LAUNCHER = """
import logging, sys
logging.disable(logging.ERROR)
from kitlib.core.processes import end_with_parent
end_with_parent()
from torch.distributed.elastic.multiprocessing import errors
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main
try:
    main()
except errors.ChildFailedError as failed:
    sys.exit(max(1, failed.get_first_failure()[1].exitcode))
except SignalException as stopped:
    sys.exit(128 + stopped.sigval)
"""

# `kitlib`, which ends when the process that started it does
COMMAND = "from kitlib.core.processes import end_with_parent as e; e(); from kitlib.__main__ import main; main()"


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let an interrupt wait until the end of the block: an import of torch that is cut short cannot be repeated."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Send this process SIGTERM as soon as the one that started it is gone, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def launched() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """The number of this process among those that torchrun has started, on all machines; 0 for a single one."""
    return int(os.environ["RANK"]) if launched() else 0


def count() -> int:
    """How many processes torchrun has started, on all machines; 1 for a single one."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_first_process() -> bool:
    """Whether this process writes the results: it is the first of several, or the only one."""
    return rank() == 0


def run_on_devices(devices: int, words: Sequence[str]) -> int:
    """Run `kitlib WORDS` in one process a device, by torchrun; return the exit code, 0 if all went well.

    They are new processes, as one that has used a GPU cannot be forked, and write to this one's stderr. When this
    process is interrupted, they save, end, and are waited for.
    """
    command = [sys.executable, "-c", LAUNCHER, "--standalone", f"--nproc_per_node={devices}", "-m", "kitlib", *words]
    # A kernel shows what goes through its sys.stderr once, and what goes to its file descriptor twice in a plan.
    output: dict[str, Any] = {} if sys.stderr.isatty() else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # In a session of its own, so that Ctrl-C, and Jupyter's interrupt, reach this process alone.
    with subprocess.Popen(command, start_new_session=True, **output) as process:
        pump = threading.Thread(target=_copy, args=(process.stdout,), name="log", daemon=True)
        pump.start()
        try:
            code = process.wait()
            pump.join(LOOK_SECONDS)
            return code
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            raise
        finally:
            if process.poll() is None:
                process.kill()


def _copy(stream: IO[bytes] | None) -> None:
    """Copy what comes, as it comes, to stderr."""
    while stream and (block := os.read(stream.fileno(), 2**16)):
        sys.stderr.write(block.decode(errors="replace"))
        sys.stderr.flush()
