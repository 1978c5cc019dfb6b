"""The files of a run's folds: guesses, checksums of all that a fold has written, which folds are done, history.

The refit, a model of all training places, is numbered like a fold, n_folds, and holds nothing out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run

log = logging.getLogger(__name__)


def folder(run: Run, fold: int) -> Path:
    """The folder of a fold's weights and guesses."""
    return run.checkpoints / f"fold_{fold}"


def save_fold(run: Run, fold: int, held_out: Guesses, test: Guesses | None) -> None:
    """Write a fold's guesses, and fold.json with the checksums of all files directly in its folder.

    oof.npz comes last and marks the fold as done.
    """
    where = folder(run, fold)
    if test is not None:
        test.save(where / "test.npz")
    with storage.atomic_write(where / "oof.npz") as beside:
        held_out.save(beside)
        files = [path for path in sorted(where.iterdir()) if path.is_file() and not path.name.startswith(".")]
        checksums = {path.name: storage.digest(path) for path in files if path.name not in ("fold.json", "oof.npz")}
        storage.write_json(where / "fold.json", checksums | {"oof.npz": storage.digest(beside)})


def check_fold(run: Run, fold: int) -> None:
    """Compare the files of a done fold with fold.json. Raises Damaged; a fold of an earlier kit, without it, passes."""
    where = folder(run, fold)
    mend = f"run the training of {run.name} again, which makes it anew, or delete {paths.relative(where)}"
    if (where / "fold.json").is_file():
        storage.compare(where, storage.read_json(where / "fold.json", mend=mend), mend)


def discard_damaged(run: Run) -> list[int]:
    """Delete the guesses of done folds whose files are not as they were written; return these folds."""
    damaged = []
    for fold in done(run):
        try:
            check_fold(run, fold)
            Guesses.load(folder(run, fold) / "oof.npz")
        except Damaged as error:
            log.warning("run %s: %s; fold %d is completed anew", run.name, str(error).partition(": expected")[0], fold)
            (folder(run, fold) / "oof.npz").unlink()
            damaged.append(fold)
    return damaged


def is_done(run: Run, fold: int) -> bool:
    """Whether the fold's held-out guesses, its last file, exist."""
    return (folder(run, fold) / "oof.npz").is_file()


def done(run: Run) -> list[int]:
    """The folds that are done, in ascending order, the refit last."""
    return sorted(int(path.parent.name.removeprefix("fold_")) for path in run.checkpoints.glob("fold_*/oof.npz"))


def done_folds(run: Run) -> list[int]:
    """The folds that are done, in ascending order, without the refit."""
    return [fold for fold in done(run) if not is_refit(run.settings, fold)]


def answering(run: Run) -> list[int]:
    """Those that guess places which no fold has held out: the refit where it is done, else all folds that are."""
    return [fold for fold in done(run) if is_refit(run.settings, fold)] or done(run)


def is_refit(settings: Mapping[str, Any], fold: int) -> bool:
    """Whether that is the number of the refit of a run with these settings."""
    return bool(settings.get("refit")) and fold == settings["n_folds"]


def count(settings: Mapping[str, Any]) -> int:
    """The models of a run with these settings: its folds, and the refit if it has one."""
    return int(settings["n_folds"]) + bool(settings.get("refit"))


def history(run: Run) -> pd.DataFrame:
    """The logged training history of a run, with the columns fold and phase (the fit's folder); empty without any."""
    files = sorted(run.checkpoints.glob("fold_*/*/history.csv"))
    parts = []
    for file in files:
        with storage.reading(file):
            parts.append(pd.read_csv(file).assign(fold=int(file.parts[-3][len("fold_") :]), phase=file.parts[-2]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"fold": [], "phase": []})
