"""The folds of a run: each one's guesses are kept when it is done, never made again, and joined at the end.

A model that was trained without fold k guesses the places of fold k (together: the out-of-fold guesses, which are
scored) and the test places (averaged over the folds).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import folds
from kitlib.data.places import Places
from kitlib.data.readers import read
from kitlib.evaluation import guesses, metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run

log = logging.getLogger(__name__)


def chosen(places: Places, column: str, n_folds: int, only: Sequence[int] | None = None) -> list[int]:
    """The folds to train, all when `only` is None; the saved folds are made where there are none yet.

    Raises KitError for an unknown fold or column.
    """
    table = folds.load_or_make(places, n_folds)
    if column not in folds.KINDS:
        raise KitError(f"folds_column {column!r}: allowed are {', '.join(folds.KINDS)}")
    todo = list(range(n_folds)) if only is None else list(only)
    if not todo or not set(todo) <= set(range(n_folds)):
        raise KitError(f"folds {todo}: allowed are {', '.join(map(str, sorted(table[column].unique())))}")
    return todo


def checksums(places: Places, column: str) -> dict[str, str]:
    """What stands for the places and, unless these are "given", for their saved folds."""
    return {"places": places.checksum} | ({} if column == "given" else {"folds": folds.folds_checksum(places)})


def source(places: Places) -> dict[str, Any]:
    """What a run's settings say about where its places come from, so that another process finds them."""
    return {"data": paths.relative(places.folder)} | ({"read": places.options} if places.options else {})


def reread(run: Run, data: str = "") -> Places:
    """The places of a run, from where its settings say or, when they are elsewhere now, from `data`."""
    return read(data or run.settings["data"], **run.settings.get("read", {}))


def train_folds(
    run: Run, todo: Sequence[int], train: Callable[[int, float | None], None], max_hours: float | None = None
) -> bool:
    """Train the folds of `todo` that are not done, by train(fold, hours left); False when one stays unfinished."""
    began = time.monotonic()
    for fold in todo:
        if not is_done(run, fold):
            train(fold, max_hours and max_hours - (time.monotonic() - began) / 3600)
        if not is_done(run, fold):
            log.warning("run %s: fold %d is not done yet; the same call goes on", run.name, fold)
            return False
    return True


def train_in_processes(
    run: Run, fold: int, data: Path, devices: int, max_hours: float | None, more: Sequence[str] = ()
) -> None:
    """`python -m kitlib train-fold` with one process a device, as a kernel that has touched a GPU cannot be forked.

    data: where the data set is; more: further options. Raises KitError when a process fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={devices}", "-m", "kitlib"]
    command += ["train-fold", run.name, str(fold), "--devices", str(devices), "--data", str(data), *more]
    command += ["--max-hours", str(max_hours)] if max_hours else []
    if code := subprocess.run(command, check=False).returncode:
        raise KitError(f"fold {fold} of run {run.name} ended with code {code}: its log above says why")


def folder(run: Run, fold: int) -> Path:
    """Where a fold's weights and guesses are."""
    return run.checkpoints / f"fold_{fold}"


def is_done(run: Run, fold: int) -> bool:
    """Whether the fold's guesses are there; the held-out ones are written last."""
    return (folder(run, fold) / "oof.npz").is_file()


def keep(run: Run, fold: int, held_out: Guesses, test: Guesses | None) -> None:
    """Write a fold's guesses, which makes it done."""
    if test is not None:
        test.save(folder(run, fold) / "test.npz")
    held_out.save(folder(run, fold) / "oof.npz")


def done(run: Run) -> list[int]:
    """The folds that are done, in ascending order."""
    return sorted(int(path.parent.name.removeprefix("fold_")) for path in run.checkpoints.glob("fold_*/oof.npz"))


def history(run: Run) -> pd.DataFrame:
    """What the fits of a run logged, with the columns fold and phase (the fit's folder)."""
    files = sorted(run.checkpoints.glob("fold_*/*/history.csv"))
    parts = [pd.read_csv(f).assign(fold=int(f.parts[-3].removeprefix("fold_")), phase=f.parts[-2]) for f in files]
    return pd.concat(parts, ignore_index=True)


def finish(run: Run, places: Places, more: dict[str, object] | None = None) -> metrics.Score:
    """Join the done folds into oof.npz, test.npz and metrics.json (with `more`), and return the out-of-fold score."""
    finished = done(run)
    held_out = [Guesses.load(folder(run, fold) / "oof.npz") for fold in finished]
    oof = guesses.stack(held_out)
    run.save_guesses("oof", oof)
    if all((folder(run, fold) / "test.npz").is_file() for fold in finished):
        run.save_guesses("test", guesses.average([Guesses.load(folder(run, fold) / "test.npz") for fold in finished]))
    score = metrics.score_guesses(oof, places)
    by_fold = {str(k): metrics.score_guesses(g, places).as_dict() for k, g in zip(finished, held_out, strict=True)}
    unanswered = int(np.sum(~oof.answered))
    run.finish({"oof": score.as_dict(), "folds": by_fold, "unanswered": unanswered} | (more or {}))
    log.info("run %s, folds %s, out of fold: %s", run.name, finished, score)
    return score
