"""Start a run of a family, or open it again, in the number type that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kitlib.core import paths
from kitlib.data.places import Places
from kitlib.evaluation import crossval, runs
from kitlib.evaluation.runs import Run
from kitlib.vision import encoders
from kitlib.vision.device import best_device, best_dtype, dtype_of, precision_of


def precision(run_name: str, overwrite: bool = False) -> str:
    """The number type that a run is to compute in: the one that it was started in, else `views.best_dtype`.

    One named by KITLIB_PRECISION holds in any case; a run that was started in another is then refused by `runs.start`.
    """
    if paths.precision_name() == "auto" and not overwrite and run_name in runs.list_runs():
        dtype = dtype_of(runs.open_run(run_name).settings, best_device())
    else:
        dtype = best_dtype(best_device())
    return precision_of(dtype)


def start_run(
    family: str,
    config: Any,
    places: Places,
    run_name: str,
    folds_column: str,
    n_folds: int,
    overwrite: bool = False,
    checksums: Mapping[str, str] | None = None,
) -> Run:
    """The run of a family with a `Config`: started, or opened again when it was started with the same.

    checksums: of what decides the result besides settings, places and folds. An encoder that cannot be had is refused
    before a run begins, as is a run of that name that was started otherwise (KitError).
    """
    if overwrite or run_name not in runs.list_runs():
        encoders.load(config.encoder, config.image_size or None)
    settings = asdict(config) | {"family": family, "folds_column": folds_column, "n_folds": n_folds}
    settings["precision"] = precision(run_name, overwrite)
    data = crossval.checksums(places, folds_column) | dict(checksums or {})
    return runs.start(run_name, settings | crossval.source(places), data=data, overwrite=overwrite)
