"""The number of compute threads, set before the first library starts them."""

from __future__ import annotations

import os
import re
import sys

import psutil

from kitlib.core.errors import KitError, shown


def count() -> int:
    """The number of compute threads: OMP_NUM_THREADS if set, else the physical cores that this process may use.

    OpenMP also allows a list there, a number for each level of nesting; the first one counts. Raises KitError for any
    other text.
    """
    if named := os.environ.get("OMP_NUM_THREADS"):
        if not re.fullmatch(r"\s*0*[1-9][0-9]{0,3}\s*(,\s*[0-9]{1,4}\s*)*", named):
            raise KitError(
                f"OMP_NUM_THREADS: expected a whole number from 1 to 9999, or a list of them; got {shown(named)}"
            )
        return int(named.partition(",")[0])
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def configure() -> None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY, unless they are set, for this process and its children.

    PASSIVE lets a waiting thread release its core: on a busy machine, training with spinning threads is 20 to 30 times
    slower. Libraries that were imported earlier have started their threads already and keep them.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(count())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
