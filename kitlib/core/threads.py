"""How many threads compute, settled before the first library starts them."""

from __future__ import annotations

import os
import sys

import psutil


def count() -> int:
    """Threads to compute with: OMP_NUM_THREADS if it is set, else the physical cores that this process may use."""
    if named := os.environ.get("OMP_NUM_THREADS"):
        return int(named)
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def settle() -> None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY where they are not set, for this process and those that it starts.

    A waiting thread then gives its core away: on a busy machine threads that spin instead train 20 to 30 times slower.
    A library that was imported before has started its threads already and keeps them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(count()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
