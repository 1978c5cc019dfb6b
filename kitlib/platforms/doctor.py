"""Describe this machine: what place it is, versions, device, memory, disk, time left, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time

import psutil

from kitlib import __version__
from kitlib.core import paths, threads
from kitlib.evaluation import runs

GIB = 2**30
SPARE_GIB = 10  # a packed competition, features and a few runs
KAGGLE_HOURS = 12  # of a session
# variable that a place sets: its name
PLACES = {"KAGGLE_KERNEL_RUN_TYPE": "Kaggle", "COLAB_RELEASE_TAG": "Colab", "MODAL_TASK_ID": "Modal",
          "SLURM_JOB_ID": "Slurm"}  # fmt: skip
FOR_DEVELOPERS = ("dev",)


def facts() -> dict[str, str]:
    """The properties of this machine that decide what can run and how fast, by name."""
    memory = psutil.virtual_memory()
    existing = next(folder for folder in (paths.home(), *paths.home().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free / GIB
    missing = missing_extras()
    return {
        "kitlib": __version__,
        "place": place(),
        "python": platform.python_version(),
        **runs.library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        **_device(),
        "cores": str(psutil.cpu_count()),
        "threads": str(threads.count()),
        "memory": f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        "disk": f"{free:.1f} GiB free where data/ is" + (f": less than {SPARE_GIB}" if free < SPARE_GIB else ""),
        "hours left": hours_left(),
        "hub token": "present" if _has_hub_token() else "none (hf auth login, or HF_TOKEN): needed to push",
        **{f"extra {extra}": f"lacks {' '.join(names)}: {line}" for extra, (names, line) in missing.items()},
        "extras": "all there" if not missing else f"{len(missing)} not complete",
    }


def place() -> str:
    """Kaggle, Colab, Modal, Slurm or local; with the kind of session on Kaggle."""
    found = next((name for variable, name in PLACES.items() if os.environ.get(variable)), "local")
    kind = os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "")
    return f"{found}, {kind.lower()} session" if found == "Kaggle" else found


def hours_left() -> str:
    """The hours that remain of a session with a known end, in words."""
    if place().startswith("Kaggle"):
        left = KAGGLE_HOURS - (time.time() - psutil.Process(1).create_time()) / 3600  # since the container began
        return f"about {max(left, 0.0):.1f} of Kaggle's {KAGGLE_HOURS}: MAX_HOURS stops in time, saved"
    if re.fullmatch(r"\d{1,12}", end := os.environ.get("SLURM_JOB_END_TIME", "")):
        return f"{max((int(end) - time.time()) / 3600, 0.0):.1f} of the Slurm job: MAX_HOURS stops in time, saved"
    return "no limit is known here"


def missing_extras() -> dict[str, tuple[list[str], str]]:
    """The extras of the kit that are not complete: the packages they lack, and the command that installs them."""
    try:
        requirements = importlib.metadata.requires("kitlib") or []
    except importlib.metadata.PackageNotFoundError:  # a folder on sys.path
        requirements = []
    found: dict[str, list[str]] = {}
    for text in requirements:
        match = re.match(r"([\w.-]+)(.*?); *extra *== *['\"]([\w.-]+)['\"]", text)
        if match and match[3] not in FOR_DEVELOPERS and not _installed(match[1]):
            found.setdefault(match[3], []).append(match[1])
    target = "-e '.[{}]'" if paths.is_checkout() else "'kitlib[{}]'"
    return {extra: (names, f"pip install {target.format(extra)}") for extra, names in sorted(found.items())}


def gpu_fault(name: str, capability: tuple[int, int], built_for: list[str]) -> str:
    """What a GPU cannot do with this torch, in one sentence; "" for nothing.

    capability: its compute capability. built_for: `torch.cuda.get_arch_list()`; code for sm_80 runs on 8.x, code for
    compute_80 on all that is newer, too.

    >>> gpu_fault("P100", (6, 0), ["sm_75", "sm_80"])
    'P100 (sm_60) is too old for this torch, which is built for sm_75, sm_80: take another GPU, or KITLIB_DEVICE=cpu'
    """
    own = capability[0] * 10 + capability[1]
    built = [(kind, int(number)) for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(built_for))]
    if built and not any(n <= own and (kind == "compute" or n // 10 == own // 10) for kind, n in built):
        mend = "take another GPU, or KITLIB_DEVICE=cpu"
        age = "old" if own < min(n for _, n in built) else "new"
        return f"{name} (sm_{own}) is too {age} for this torch, which is built for {', '.join(built_for)}: {mend}"
    return f"{name} only emulates bfloat16: the kit computes in float16 there" if own < 80 else ""


def _device() -> dict[str, str]:
    import torch

    from kitlib.vision.device import best_device, best_dtype, precision_of

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    faults = [
        gpu_fault(name, torch.cuda.get_device_capability(index), torch.cuda.get_arch_list())
        for index, name in enumerate(gpus)
    ]
    facts = {"device": ", ".join([best_device().type, *gpus]), "precision": precision_of(best_dtype(best_device()))}
    return facts | ({"GPU": "; ".join(dict.fromkeys(filter(None, faults)))} if any(faults) else {})


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_hub_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
