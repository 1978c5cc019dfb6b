"""Train a vision-language model to locate places: fine-tuning on target replies, then reinforcement learning (GRPO).

    sft = train(Config(model="tiny", method="sft"), places, "sft")               # resumes after an interruption
    run = train(Config(model="tiny", method="grpo", start_from="sft"), places, "grpo")
    run = train(Config(model="tiny", method="judge", candidates="knn"), places, "judge")   # `judging`

A guess's points come from sampled replies. Its state probabilities are counts in these, or come from the likelihood of
each name, whichever scores better on the held-out places of the fold; choice.json holds both scores.

checkpoints/fold_<k>/ holds adapter/ or model/ (see `loading`), choice.json, the training history in a folder named by
the method, and in said/ the replies behind the guesses (`reply_cache`). Replies during training are in rollouts/ of the
run, for the second and later folds in the fold's own folder.
"""

from __future__ import annotations

from pathlib import Path

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.evaluation import fold_files, runs
from kitlib.models.vlm import loading
from kitlib.models.vlm.session import Session

train, train_fold, predict = Session.train, Session.train_fold, Session.predict


def merge(run_name: str, out: str | Path, fold: int | None = None) -> Path:
    """Write a fold's model (the first trained fold's when None) with its adapter merged, for transformers and vLLM."""
    run = runs.open_run(run_name)
    if (family := run.settings["family"]) != "vlm":
        raise KitError(f"run {run_name}: expected a run of the family vlm; got one of {family}")
    done = fold_files.done_folds(run)
    if not done or (fold is not None and fold not in done):
        raise KitError(f"run {run_name}: fold {fold} is not trained; trained folds: {done or 'none'}")
    folder = fold_files.folder(run, done[0] if fold is None else fold)
    return loading.merge(paths.located("model", run.settings["model"]), folder, Path(out))
