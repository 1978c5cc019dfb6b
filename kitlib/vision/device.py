"""The device and the number type to compute with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.core.processes import launched

log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The device that KITLIB_DEVICE names, else CUDA, MPS or the CPU. Raises KitError if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = paths.device_name() or next(name for name, ok in available.items() if ok)
    if not available[name]:
        raise KitError(f"KITLIB_DEVICE: expected one of {[n for n, ok in available.items() if ok]}; got {name!r}")
    if name == "cuda" and launched():  # each process has a GPU of its own
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def count() -> int:
    """How many GPUs this process may use, 1 without any; none of them is initialised."""
    return max(1, torch.cuda.device_count())


def best_dtype(device: torch.device) -> torch.dtype:
    """The number type for matrix products on `device`: the one that KITLIB_PRECISION names, else the fastest.

    float32 means no autocast. bfloat16 is fast only in hardware: a T4 emulates it (so float16 there), and a CPU without
    AVX512-BF16 is slower with it. Raises KitError for float16 on a CPU, which computes 1 GFLOP/s in it.
    """
    if (name := paths.precision_name()) != "auto":
        if name == "float16" and device.type == "cpu":
            raise KitError("KITLIB_PRECISION: expected float32, bfloat16 or auto on a CPU; got float16")
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def precision_of(dtype: torch.dtype) -> str:
    """The name of a number type in KITLIB_PRECISION and params.json.

    >>> precision_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_of(settings: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The number type of a run with these settings; `best_dtype` if it recorded none.

    On a CPU float16 is replaced by float32, with a warning.
    """
    dtype = getattr(torch, settings["precision"]) if settings.get("precision") else best_dtype(device)
    if dtype == torch.float16 and device.type == "cpu":
        log.warning("the run uses float16, which is too slow on a CPU: float32 replaces it")
        return torch.float32
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The autocast context for `dtype`; it has no effect for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
