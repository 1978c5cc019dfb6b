"""A vision-language model is asked where it is: fine-tuned on right answers, then trained by what its answers earn.

    sft = train(Config(model="tiny", method="sft"), places, "sft")               # resumes when it was cut short
    run = train(Config(model="tiny", method="grpo", start_from="sft"), places, "grpo")

A guess's points are what sampled answers say. Its states are counted in them, or come from how likely the model finds
each name, whichever scores better on the places that the fold holds out; choice.json says which and by how much.

Each fold's checkpoints/fold_<k>/ holds adapter/ or model/ (see `vlm_models`), choice.json, the history of the fit under
sft/ or grpo/, and under said/ every reply that its guesses are made of (`vlm_said`). What was said while it learned is
in rollouts/, of a second fold in the fold's own folder.
"""

from __future__ import annotations

from pathlib import Path

from kitlib.core.errors import KitError
from kitlib.evaluation import crossval, runs
from kitlib.models.vlm import loading
from kitlib.models.vlm.session import Session

train, train_fold, predict = Session.train, Session.train_fold, Session.predict


def merge(run_name: str, out: str | Path, fold: int | None = None) -> Path:
    """Write a fold's model, the first done fold's when None, with its adapter merged, for transformers and vLLM."""
    run = runs.open_run(run_name)
    done = crossval.done_folds(run)
    if not done or (fold is not None and fold not in done):
        raise KitError(f"run {run_name}: fold {fold} is not trained; there are {done or 'none'}")
    folder = crossval.folder(run, done[0] if fold is None else fold)
    return loading.merge(run.settings["model"], folder, Path(out))
