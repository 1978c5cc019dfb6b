"""threads: importing kitlib configures them for this process and those that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kitlib.core import threads
from kitlib.core.errors import KitError

SHOW = "import os, kitlib, torch; print(os.environ['OMP_WAIT_POLICY'], torch.get_num_threads())"


def shown(**environment: str) -> list[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", SHOW], env=known | environment, capture_output=True, check=True)
    return done.stdout.decode().split()


def test_importing_kitlib_configures_threads_unless_they_are_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert shown() == ["PASSIVE", str(threads.count())]
    assert shown(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["ACTIVE", "1"]


def test_the_first_number_of_a_list_counts_and_other_texts_are_refused(monkeypatch):
    for named, expected in (("4,2", 4), (" 3 ", 3), ("02", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", named)
        assert threads.count() == expected
    for named in ("x", "auto", "0", "-1", "4,x", "1.5", "9" * 6000):
        monkeypatch.setenv("OMP_NUM_THREADS", named)
        with pytest.raises(KitError, match="OMP_NUM_THREADS: expected a whole number"):
            threads.count()
        threads.configure()  # must not fail: importing kitlib calls it, and the command line then says the sentence


@pytest.mark.parametrize(("physical", "allowed", "expected"), [(8, 16, 8), (8, 2, 2), (None, 3, 3)])
def test_a_thread_for_each_physical_core_that_may_be_used(physical, allowed, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(allowed)), raising=False)
    monkeypatch.setattr(threads.sys, "platform", "linux")
    assert threads.count() == expected
