"""Device and number type: what computes, and in which precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kitlib.core import paths
from kitlib.core.errors import KitError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The device named by KITLIB_DEVICE, else CUDA, else MPS, else the CPU; KitError if the named one is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = paths.device_name() or next(name for name, is_there in there.items() if is_there)
    if not there[name]:
        raise KitError(f"KITLIB_DEVICE={name}: no such device here; allowed are {[n for n, ok in there.items() if ok]}")
    return torch.device(name)


def best_dtype(device: torch.device) -> torch.dtype:
    """The number type for matrix products on `device`: the one named by KITLIB_PRECISION, else the fast one.

    float32 means no autocast. bfloat16 needs hardware to be fast: a T4 says that it supports it and emulates it (so
    float16 there), and a CPU without AVX512-BF16 is slower with it. Raises KitError for float16 on a CPU, which
    computes 1 GFLOP/s in it.
    """
    if (name := paths.precision_name()) != "auto":
        if name == "float16" and device.type == "cpu":
            raise KitError("KITLIB_PRECISION=float16 on a CPU: expected float32, bfloat16 or auto")
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def precision_of(dtype: torch.dtype) -> str:
    """The name of a number type, as KITLIB_PRECISION and params.json have it.

    >>> precision_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_of(settings: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The number type that a run with these settings computes in; `best_dtype` for one that recorded none.

    What a GPU learned in float16 guesses in float32 on a CPU, and a warning says so.
    """
    dtype = getattr(torch, settings["precision"]) if settings.get("precision") else best_dtype(device)
    if dtype == torch.float16 and device.type == "cpu":
        log.warning("the run computes in float16, which a CPU cannot: float32 is used here")
        return torch.float32
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The autocast context for `dtype`, which does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
