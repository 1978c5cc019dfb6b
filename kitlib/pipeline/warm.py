"""Kernels that start warm: one process imports the large libraries once, and each notebook's kernel is forked from it.

Importing torch, timm and Lightning takes 8 seconds of a core, which each notebook of a plan would spend anew. A fork
after CUDA has been touched is broken, and a training on a GPU does not mind the seconds: there, and on other systems
than Linux, kernels start as usual.

    with warm.server(["torch"]):
        kernel.execute(...)  # forked if the server is ready by then
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

LIBRARIES = ("timm", "pytorch_lightning", "sklearn.linear_model", "seaborn", "ipykernel.kernelapp")
TRL = ("trl.trainer.sft_trainer", "trl.trainer.grpo_trainer")
MODULE = "ipykernel_launcher"  # what a kernel's command starts
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, of either under WSL
READY = "ready\n"  # the server's first line; then comes the process of each kernel


def possible() -> bool:
    """Whether kernels can be forked: on Linux, without a GPU, and not in a sandbox that has no handles of processes."""
    if sys.platform != "linux" or any(Path(device).exists() for device in GPUS):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def server(libraries: Sequence[str] = LIBRARIES) -> Iterator[None]:
    """A server that imports `libraries` in the background and starts the kernels of this process in the meantime."""
    if not possible():
        yield
        return
    reply, ours = os.pipe()
    command = [sys.executable, "-m", "kitlib.pipeline.warm", str(ours), *libraries]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[ours], start_new_session=True, text=True)
    os.close(ours)
    try:
        with os.fdopen(reply) as replies:
            Forked.replies, Forked.requests, Forked.ready = replies, process.stdin, False
            yield
    finally:
        Forked.replies = Forked.requests = None
        process.kill()
        process.communicate()


class Process:
    """A forked kernel, with the methods of `subprocess.Popen` that jupyter_client calls."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid, self.handle = pid, os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs; its exit code is not known here."""
        return 0 if select.select([self.handle], [], [], 0)[0] else None

    def wait(self) -> int:
        """Wait for its end."""
        select.select([self.handle], [], [])
        os.close(self.handle)
        return 0

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone."""
        signal.pidfd_send_signal(self.handle, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Forked(LocalProvisioner):
    """Forks a kernel from the server, and starts it as usual where there is no server, or none that is ready."""

    requests: ClassVar[IO[str] | None] = None
    replies: ClassVar[IO[str] | None] = None
    ready: ClassVar[bool] = False
    patience: ClassVar[float] = 0.0  # seconds to wait for a server that still imports

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel by its command."""
        request = {
            "argv": cmd[cmd.index(MODULE) + 1 :],
            "env": kwargs["env"],
            "cwd": str(kwargs.get("cwd") or Path.cwd()),
        }
        if not (pid := self._fork(request)):
            return await super().launch_kernel(cmd, **kwargs)
        self.process = Process(pid)  # type: ignore[assignment]  # it expects a Popen
        self.pid = self.pgid = pid
        return self.connection_info

    @classmethod
    def _fork(cls, request: dict[str, Any]) -> int:
        """The process that the server forks for a request; 0 without one, or if it has died or imports for too long."""
        if cls.replies is None or cls.requests is None:
            return 0
        if not cls.ready:
            cls.ready = bool(select.select([cls.replies], [], [], cls.patience)[0]) and cls.replies.readline() == READY
        if not cls.ready:
            return 0
        try:
            cls.requests.write(json.dumps(request) + "\n")
            cls.requests.flush()
        except BrokenPipeError:
            return 0
        return int(cls.replies.readline() or 0)


def main(reply: int, libraries: Sequence[str]) -> None:
    """Import the libraries, then fork a kernel for each line of the standard input, until its end."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as in a kernel; read at import
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets ended children
    os.write(reply, READY.encode())
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.close(reply)
            _become_kernel(**json.loads(line))
        os.write(reply, f"{child}\n".encode())


def _become_kernel(argv: list[str], env: dict[str, str], cwd: str) -> None:
    """Run a kernel in this process, which is a fork of the server, to its end."""
    from ipykernel.kernelapp import IPKernelApp

    server = os.getppid()
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(server))
    os.chdir(cwd)
    sys.argv = [MODULE, *argv]
    IPKernelApp.launch_instance(argv, parent_handle=server)  # it ends when its parent does
    atexit._run_exitfuncs()
    os._exit(0)  # at once: taking a thousand modules apart takes 2 s


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
