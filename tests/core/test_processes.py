"""Processes end with the one that started them, also where it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from kitlib.core import processes

CHILD = """
import time
from kitlib.core import processes
processes.LOOK_SECONDS = 0.05
processes.end_with_parent()
print("begun", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_child_ends_when_its_parent_is_killed():
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not is_alive(child) and processes.LOOK_SECONDS == 1.0
