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

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import crossval, guesses, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.vlm import loading
from kitlib.models.vlm.config import RATES, Config
from kitlib.models.vlm.session import Session
from kitlib.models.vlm.tinker import client
from kitlib.models.vlm.tinker.session import RemoteSession
from kitlib.training.start import precision


def train(
    config: Config,
    places: Places,
    run_name: str,
    *,
    folds_column: str = "stratified",
    n_folds: int = 5,
    only_folds: Sequence[int] | None = None,
    devices: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a model and write what it guesses of the places that it did not see; go on where it was cut short.

    only_folds: the folds to train, the first alone when None, as one takes hours. devices, max_hours, overwrite: as for
    `multiview.train`. Raises KitError for an unknown fold or column, for a run to start from that does not fit, and for
    a run of that name that was started otherwise.
    """
    loading.check(config.model, config.four_bit, config.vllm)
    if config.model.startswith("tinker:"):
        client.check()
    todo = crossval.chosen(places, folds_column, n_folds, [0] if only_folds is None else only_folds)
    settings = asdict(config) | {"family": "vlm", "folds_column": folds_column, "n_folds": n_folds}
    settings["rate"] = config.rate or RATES[config.method]
    settings["precision"] = precision(run_name, overwrite)
    data = crossval.checksums(places, folds_column)
    if config.start_from:
        data["start_from"] = _trained_before(settings, data, todo)
    run = runs.start(run_name, settings | crossval.source(places), data=data, overwrite=overwrite)
    opened = session(run, places)

    def train_one(fold: int, left: float | None) -> None:
        if devices == 1:
            opened.train_fold(fold, 1, left)
        else:
            crossval.train_in_processes(run, fold, places.folder, devices, left)

    if crossval.train_folds(run, todo, train_one, max_hours):
        choices = {str(fold): opened.choice(fold) for fold in crossval.done(run)}
        crossval.finish(run, places, {"states_by": choices})
    return run


def train_fold(run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None) -> bool:
    """Train one fold of a run that `train` has started, in this process or as one of several; True when it is done."""
    run = runs.open_run(run_name)
    session(run, crossval.reread(run, data)).train_fold(fold, devices, max_hours)
    return crossval.is_done(run, fold)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's models, averaged, guess of the places of `split`; all settings are the run's own."""
    opened = session(runs.open_run(run_name), places)
    return guesses.average([opened.guess(fold, split) for fold in crossval.done(opened.run)])


def session(run: Run, places: Places) -> Session:
    """A run with its data at hand, its model here or at Tinker."""
    here = not run.settings["model"].startswith("tinker:")
    return Session(run, places) if here else RemoteSession(run, places)


def merge(run_name: str, out: str | Path, fold: int | None = None) -> Path:
    """Write a fold's model, the first done fold's when None, with its adapter merged, for transformers and vLLM."""
    run = runs.open_run(run_name)
    done = crossval.done(run)
    if not done or (fold is not None and fold not in done):
        raise KitError(f"run {run_name}: fold {fold} is not trained; there are {done or 'none'}")
    folder = crossval.folder(run, done[0] if fold is None else fold)
    return loading.merge(run.settings["model"], folder, Path(out))


def _trained_before(settings: dict[str, Any], data: dict[str, str], todo: Sequence[int]) -> str:
    """A checksum of the run to start from. Raises KitError where it does not fit, or has seen what is held out."""
    name = settings["start_from"]
    before = runs.open_run(name)
    was = before.settings
    if was["family"] != "vlm" or not crossval.done(before):
        raise KitError(f"start_from={name!r}: wanted is a run of this family with a trained fold")
    for key in ("model", "lora_rank", "lora_attention_only"):
        if was[key] != settings[key]:
            raise KitError(f"start_from={name!r} has {key}={was[key]!r}: allowed is the same, not {settings[key]!r}")
    if before.params["data"]["places"] == data["places"]:
        same = [key for key in ("folds_column", "n_folds") if was[key] != settings[key]]
        if same or before.params["data"].get("folds") != data.get("folds"):
            raise KitError(f"start_from={name!r} was trained on other folds: it has seen places that are held out here")
        if missing := sorted(set(todo) - set(crossval.done(before))):
            raise KitError(f"start_from={name!r} has no fold {missing[0]}: there are {crossval.done(before)}")
    return storage.digest(json.dumps(before.params["settings"], sort_keys=True), before.params["started"])
