"""A vision-language model is asked where it is: fine-tuned on right answers, then trained by what its answers earn.

    sft = train(Config(model="tiny", method="sft"), places, "sft")               # resumes when it was cut short
    run = train(Config(model="tiny", method="grpo", start_from="sft"), places, "grpo")

A guess's points are what sampled answers say. Its states are counted in them, or come from how likely the model finds
each name, whichever scores better on the places that the fold holds out; choice.json says which and by how much.

Each fold's checkpoints/fold_<k>/ holds adapter/ or model/ (see `vlm_models`), choice.json, and the history of the fit
under sft/ or grpo/. What was said while it learned is in rollouts/, of a second fold in the fold's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitlib import competition, crossfit, guesses, paths, pictures, rollouts, runs, vlm_data, vlm_models
from kitlib import folds as saved_folds
from kitlib.guesses import Guesses
from kitlib.labels import from_table
from kitlib.paths import KitError
from kitlib.runs import Run
from kitlib.tables import SPLITS, Places
from kitlib.views import best_device
from kitlib.vlm_data import Cases
from kitlib.vlm_guess import Prior, sampled, seen, state_likelihood
from kitlib.vlm_record import Recorder
from kitlib.vlm_settings import RATES, Config
from kitlib.vlm_talk import Sampler, Talk
from kitlib.vlm_tasks import Task

__all__ = ["Config", "Session", "merge", "predict", "task_of", "train", "train_fold"]


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
    todo = crossfit.chosen(places, folds_column, n_folds, [0] if only_folds is None else only_folds)
    vlm_models.check(config.model, config.four_bit, config.vllm)
    settings = asdict(config) | {"family": "vlm", "folds_column": folds_column, "n_folds": n_folds}
    settings["rate"] = config.rate or RATES[config.method]
    data = crossfit.checksums(places, folds_column)
    if config.start_from:
        data["start_from"] = _trained_before(settings, data, todo)
    run = runs.start(run_name, settings | crossfit.source(places), data=data, overwrite=overwrite)
    session = Session(run, places)

    def train_one(fold: int, left: float | None) -> None:
        if devices == 1:
            session.train_fold(fold, 1, left)
        else:
            crossfit.train_in_processes(run, fold, places.folder, devices, left)

    if crossfit.train_folds(run, todo, train_one, max_hours):
        choices = {str(fold): session.choice(fold) for fold in crossfit.done(run)}
        crossfit.finish(run, places, {"states_by": choices})
    return run


def train_fold(run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None) -> bool:
    """Train one fold of a run that `train` has started, in this process or as one of several; True when it is done."""
    run = runs.open_run(run_name)
    Session(run, crossfit.reread(run, data)).train_fold(fold, devices, max_hours)
    return crossfit.is_done(run, fold)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's models, averaged, guess of the places of `split`; all settings are the run's own."""
    session = Session(runs.open_run(run_name), places)
    return guesses.average([session.guess(fold, split) for fold in crossfit.done(session.run)])


def task_of(config: Config, places: Places) -> Task:
    """What the model is set to do with these places."""
    # Names of other countries are in no list of states.
    labels = {} if config.stream else {config.label: from_table(places.states, "state")}
    return config.task("Region" if places.template is None else "State", labels)


def merge(run_name: str, out: str | Path, fold: int | None = None) -> Path:
    """Write a fold's model, the first done fold's when None, with its adapter merged, for transformers and vLLM."""
    run = runs.open_run(run_name)
    done = crossfit.done(run)
    if not done or (fold is not None and fold not in done):
        raise KitError(f"run {run_name}: fold {fold} is not trained; there are {done or 'none'}")
    folder = crossfit.folder(run, done[0] if fold is None else fold)
    return vlm_models.merge(run.settings["model"], folder, Path(out))


def _trained_before(settings: dict[str, Any], data: dict[str, str], todo: Sequence[int]) -> str:
    """A checksum of the run to start from. Raises KitError where it does not fit, or has seen what is held out."""
    name = settings["start_from"]
    before = runs.open_run(name)
    was = before.settings
    if was["family"] != "vlm" or not crossfit.done(before):
        raise KitError(f"start_from={name!r}: wanted is a run of this family with a trained fold")
    for key in ("model", "lora_rank", "lora_attention_only"):
        if was[key] != settings[key]:
            raise KitError(f"start_from={name!r} has {key}={was[key]!r}: allowed is the same, not {settings[key]!r}")
    if before.params["data"]["places"] == data["places"]:
        same = [key for key in ("folds_column", "n_folds") if was[key] != settings[key]]
        if same or before.params["data"].get("folds") != data.get("folds"):
            raise KitError(f"start_from={name!r} was trained on other folds: it has seen places that are held out here")
        if missing := sorted(set(todo) - set(crossfit.done(before))):
            raise KitError(f"start_from={name!r} has no fold {missing[0]}: there are {crossfit.done(before)}")
    return paths.digest(json.dumps(before.params["settings"], sort_keys=True), before.params["started"])


class Session:
    """A run with its data at hand: what its folds share."""

    def __init__(self, run: Run, places: Places) -> None:
        self.run, self.places = run, places
        self.config = Config.of_run(run.settings)
        self.packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}
        self.states = from_table(places.states, "state")
        self.task = task_of(self.config, places)

    def train_fold(self, fold: int, devices: int = 1, max_hours: float | None = None) -> None:
        """Train on what a fold does not hold out, then guess; returns early when the hours are over."""
        from kitlib import vlm_fit

        folder = crossfit.folder(self.run, fold)
        if not vlm_fit.is_done(folder / self.config.method) and not self._fit(fold, folder, devices, max_hours):
            return
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        held_out = self.parts(fold)[1]
        held = self._completed(fold, "train", held_out, self._choose(fold, held_out))
        test = self.guess(fold, "test") if "test" in self.packs else None
        crossfit.keep(self.run, fold, held, test)

    def _fit(self, fold: int, folder: Path, devices: int, max_hours: float | None) -> bool:
        from kitlib import vlm_fit, vlm_trainers

        config, inner = self.config, folder / self.config.method
        torch.manual_seed(config.seed)
        model, processor = self._starting(fold)
        learns, held_out = self.parts(fold)
        lesson = vlm_trainers.Lesson(self.cases("train", learns), "", self.places.views)
        if config.stream:
            views = vlm_data.stream_views(config.stream, config.stream_split)
            lesson = vlm_trainers.Lesson(None, config.stream, views)
        there = self.run.dir if not crossfit.done(self.run) else folder
        recorder = Recorder(rollouts.Writer(there / "rollouts"), config.environment)
        built = (self.run.settings, model, processor, self.task, lesson, inner, devices)
        trainer = vlm_trainers.sft(*built) if config.method == "sft" else vlm_trainers.grpo(*built, recorder)
        usable = held_out[~self.packs["train"].unusable_places[held_out]]
        looked = np.random.default_rng(config.seed).permutation(usable)[: config.eval_places]
        prior, cases = self.prior(fold), self.cases("train", looked)
        tau_km = self.task.tau_last_km

        def evaluate(model: Any, step: int) -> dict[str, float]:
            talks = sampled(cases, self.task, self._speaker(model, processor), config.samples, self._at_once)
            flat = [talk for row in talks for talk in row]
            each = [cases.row(i // config.samples) for i in range(len(flat))]
            rows = recorder.rows(step, "eval", each, flat, tau_km, [None] * len(flat))
            recorder.write(step, rows, config.samples)
            guess = prior.guesses(self.packs["train"].sample_id[looked], talks)
            return seen(guess, talks, self.places)

        how: dict[str, Any] = {"eval_steps": config.eval_steps, "max_hours": max_hours, "seed": config.seed}
        if not vlm_fit.fit(trainer, inner, evaluate=evaluate, **how):
            return False
        if trainer.is_world_process_zero():
            vlm_models.save(trainer.accelerator.unwrap_model(trainer.model), processor, folder)
            learned, of = vlm_models.n_learning(model)
            vlm_fit.finish(inner, {"steps": config.steps, "weights": of, "learning": learned})
        trainer.accelerator.wait_for_everyone()
        return True

    def _starting(self, fold: int) -> tuple[Any, Any]:
        """The model to train, with what an earlier run learned or with new weights of LoRA, and its processor."""
        config = self.config
        if config.start_from:
            before = runs.open_run(config.start_from)
            done = crossfit.done(before)
            folder = crossfit.folder(before, fold if fold in done else done[0])
            return vlm_models.reload(config.model, folder, four_bit=config.four_bit, learn=True)
        model, processor = vlm_models.load(config.model, config.four_bit, full=not config.lora_rank)
        return vlm_models.adapt(model, config.lora_rank, config.lora_attention_only), processor

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training places with a picture that a fold learns from, and all rows that it holds out."""
        table = saved_folds.load_or_make(self.places, n_folds=self.run.settings["n_folds"])
        held_out = table[self.run.settings["folds_column"]].to_numpy() == fold
        return np.flatnonzero(~held_out & ~self.packs["train"].unusable_places), np.flatnonzero(held_out)

    def prior(self, fold: int) -> Prior:
        """What the places that a fold learns from say without a picture."""
        rows = self.parts(fold)[0]
        points, position = self.places.points("train")[rows], self.places.state_position("train")[rows]
        idx = self.places.states["state_idx"].to_numpy()
        return Prior(self.states, idx, points, position, self.config.label, self.config.smoothing)

    def cases(self, split: str, rows: np.ndarray) -> Cases:
        """Places as they are asked about."""
        return vlm_data.places_cases(self.places, self.packs[split], rows, self.config.max_side, self.config.label)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's saved model says of the places in `rows` (of all when None)."""
        pack = self.packs[split]
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        chosen = self.choice(fold)["chosen"]
        said = self._said(fold, split, rows[~pack.unusable_places[rows]], [chosen])
        return self._completed(fold, split, rows, said[chosen])

    def _completed(self, fold: int, split: str, rows: np.ndarray, said: Guesses) -> Guesses:
        """Guesses for all places in `rows`, those without a picture too."""
        pack = self.packs[split]
        blind = rows[pack.unusable_places[rows]]
        parts = [said, self.prior(fold).blind(pack.sample_id[blind])] if len(blind) else [said]
        return guesses.stack(parts).at(pack.sample_id[rows])

    def _said(self, fold: int, split: str, rows: np.ndarray, ways: Sequence[str]) -> dict[str, Guesses]:
        """Guesses for places with pictures, with the states found in each of some ways: samples, likelihood."""
        config, prior, cases = self.config, self.prior(fold), self.cases(split, rows)
        speaker = self._speaker(*self.model(fold))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(config.seed)
            talks: list[list[Talk]] = sampled(cases, self.task, speaker, config.samples, self._at_once)
        found = {"samples": prior.guesses(self.packs[split].sample_id[rows], talks)}
        if "likelihood" in ways:
            scores = state_likelihood(cases, self.task, speaker, self.states, config.label)
            found["likelihood"] = prior.with_likelihood(found["samples"], scores)
        return {way: found[way] for way in ways}

    def _choose(self, fold: int, held_out: np.ndarray) -> Guesses:
        """Guesses for held-out places, by the better way to find states; choice.json says what each one scores."""
        rows = held_out[~self.packs["train"].unusable_places[held_out]]
        said = self._said(fold, "train", rows, ["samples", "likelihood"])
        scores = {way: competition.score_guesses(guess, self.places).state for way, guess in said.items()}
        chosen = max(scores, key=lambda way: scores[way])
        runs.write_json(crossfit.folder(self.run, fold) / "choice.json", {"chosen": chosen, "state_scores": scores})
        return said[chosen]

    def choice(self, fold: int) -> dict[str, Any]:
        """How a fold finds its states."""
        return json.loads((crossfit.folder(self.run, fold) / "choice.json").read_text())

    @cached_property
    def _loaded(self) -> dict[int, tuple[Any, Any]]:
        return {}

    def model(self, fold: int) -> tuple[Any, Any]:
        """A fold's trained model on its device, and its processor; one is kept."""
        if fold not in self._loaded:
            self._loaded.clear()
            config = self.config
            folder = crossfit.folder(self.run, fold)
            model, processor = vlm_models.reload(config.model, folder, four_bit=config.four_bit)
            self._loaded[fold] = (model if config.four_bit else model.to(best_device())), processor
        return self._loaded[fold]

    def _speaker(self, model: Any, processor: Any) -> Sampler:
        return Sampler(model, processor, self.config.reply_tokens, self.config.guess_temperature)

    @property
    def _at_once(self) -> int:
        """Conversations that are sampled at once: without gradients several times more fit than in training."""
        return max(self.config.samples, 8 * self.config.device_batch)
