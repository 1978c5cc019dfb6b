"""The folds of a run: each one's guesses are kept when it is done, never made again, and joined at the end.

A model that was trained without fold k guesses the places of fold k (together: the out-of-fold guesses, which are
scored) and the test places (averaged over the folds).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from kitlib import competition, guesses
from kitlib.guesses import Guesses
from kitlib.runs import Run
from kitlib.tables import Places

log = logging.getLogger(__name__)


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


def finish(run: Run, places: Places, more: dict[str, object] | None = None) -> competition.Score:
    """Join the done folds into oof.npz, test.npz and metrics.json (with `more`), and return the out-of-fold score."""
    folds = done(run)
    held_out = [Guesses.load(folder(run, fold) / "oof.npz") for fold in folds]
    oof = guesses.stack(held_out)
    run.save_guesses("oof", oof)
    if all((folder(run, fold) / "test.npz").is_file() for fold in folds):
        run.save_guesses("test", guesses.average([Guesses.load(folder(run, fold) / "test.npz") for fold in folds]))
    score = competition.score_guesses(oof, places)
    by_fold = {str(k): competition.score_guesses(g, places).as_dict() for k, g in zip(folds, held_out, strict=True)}
    unanswered = int(np.sum(~oof.answered))
    run.finish({"oof": score.as_dict(), "folds": by_fold, "unanswered": unanswered} | (more or {}))
    log.info("run %s, folds %s, out of fold: %s", run.name, folds, score)
    return score
