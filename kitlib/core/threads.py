"""The number of compute threads, set before the first library starts them."""

from __future__ import annotations

import os
import sys

import psutil


def count() -> int:
    """The number of compute threads: OMP_NUM_THREADS if set, else the physical cores that this process may use."""
    if named := os.environ.get("OMP_NUM_THREADS"):
        return int(named)
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def configure() -> None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY, unless they are set, for this process and its children.

    PASSIVE lets a waiting thread release its core: on a busy machine, training with spinning threads is 20 to 30 times
    slower. Libraries that were imported earlier have started their threads already and keep them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(count()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
