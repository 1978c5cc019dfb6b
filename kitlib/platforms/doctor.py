"""Describe this machine: versions, device, threads, memory, disk."""

from __future__ import annotations

import platform
import shutil

import psutil
import torch

from kitlib import __version__
from kitlib.core import paths, threads
from kitlib.evaluation import runs
from kitlib.vision.device import best_device, best_dtype, precision_of

GIB = 2**30


def facts() -> dict[str, str]:
    """The properties of this machine that decide what can run and how fast, by name."""
    memory = psutil.virtual_memory()
    existing = next(folder for folder in (paths.home(), *paths.home().parents) if folder.is_dir())
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "kitlib": __version__,
        "python": platform.python_version(),
        **runs.library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": ", ".join([best_device().type, *gpus]),
        "precision": precision_of(best_dtype(best_device())),
        "cores": str(psutil.cpu_count()),
        "threads": str(threads.count()),
        "memory": f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        "disk": f"{shutil.disk_usage(existing).free / GIB:.1f} GiB free where data/ is",
    }
