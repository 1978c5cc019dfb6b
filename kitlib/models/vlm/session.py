"""A run of a vision-language model with its data at hand: what its folds share, how one is trained and guesses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data import pictures
from kitlib.data.places import SPLITS, Places
from kitlib.evaluation import crossval, guesses, metrics, runs
from kitlib.evaluation.crossval import Unfinished, is_first_process
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.vlm import dataset, loading, reply_cache
from kitlib.models.vlm.config import RATES, Config
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.dialogue import Talk
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.conversation.vocabulary import from_table
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.guessing import Prior, asked, seen
from kitlib.models.vlm.reply_cache import Said
from kitlib.training.session import TorchSession
from kitlib.vision.device import best_device


def task_of(config: Config, places: Places) -> Task:
    """What the model is set to do with these places."""
    # Names of other countries are in no list of states.
    labels = {} if config.stream else {config.label: from_table(places.states, "state")}
    return config.task("Region" if places.template is None else "State", labels)


class Session(TorchSession[Config]):
    """The model of each fold, on this machine."""

    family = "vlm"
    config_type = Config
    ONE_FOLD = True  # one takes hours
    ways: tuple[str, ...] = ("samples", "likelihood")  # to find states

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        super().__init__(run, places, *args, **options)
        self.packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}
        self.states = from_table(places.states, "state")
        self.task = task_of(self.config, places)

    @classmethod
    def open(cls, run: Run, places: Places, *args: Any, **options: Any) -> Session:
        """The session of a run, its model here or at Tinker."""
        from kitlib.models.vlm.tinker.session import RemoteSession

        here = not run.settings["model"].startswith("tinker:")
        return Session(run, places, *args, **options) if here else RemoteSession(run, places, *args, **options)

    @classmethod
    def check(
        cls,
        config: Config,
        places: Places,
        folds_column: str,
        todo: Sequence[int],
        recorded: Mapping[str, Any] | None,
        **options: Any,
    ) -> dict[str, str]:
        """Refuse a model that cannot be had, and a run to start from that does not fit; a checksum of the latter."""
        from kitlib.models.vlm.tinker import client

        loading.check(config.model, config.four_bit, config.vllm)
        if config.model.startswith("tinker:"):
            client.check()
        return {"start_from": _starting_run(config, places, folds_column, todo)} if config.start_from else {}

    @classmethod
    def resolve(cls, config: Config, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """The number type and the learning rate."""
        return super().resolve(config, recorded) | {"rate": config.rate or RATES[config.method]}

    def fit_fold(self, fold: int) -> None:
        """Train the model, then choose how its states are found."""
        from kitlib.models.vlm import trainer as vlm_fit

        if not vlm_fit.is_done(self.folder(fold) / self.config.method):
            self._fit(fold)
        if is_first_process():
            self._choose(fold)

    def _fit(self, fold: int) -> None:
        """Train to the end. Raises Unfinished when the hours are over before."""
        from kitlib.models.vlm import trainer as vlm_fit

        config, folder = self.config, self.folder(fold)
        inner = folder / config.method
        torch.manual_seed(config.seed)
        model, processor = self._starting(fold)
        lesson = vlm_fit.Lesson(self.cases("train", self.parts(fold)[0]), "", self.places.views)
        if config.stream:
            views = dataset.stream_views(config.stream, config.stream_split)
            lesson = vlm_fit.Lesson(None, config.stream, views)
        recorder = self.recorder(fold)
        built = (self.run.settings, model, processor, self.task, lesson, inner, self.devices)
        trainer = vlm_fit.sft(*built) if config.method == "sft" else vlm_fit.grpo(*built, recorder)
        rows, prior = self.looked_at(fold), self.prior(fold)
        cases = self.cases("train", rows)

        def evaluate(model: Any, step: int) -> dict[str, float]:
            said = asked(cases, self.task, self._speaker(model, processor), config.samples, self._at_once)
            return self._look(step, rows, cases, said.talks, prior, recorder)

        options: dict[str, Any] = {"eval_steps": config.eval_steps, "max_hours": self.hours_left, "seed": config.seed}
        if not vlm_fit.fit(trainer, inner, evaluate=evaluate, **options):
            raise Unfinished
        if trainer.is_world_process_zero():
            loading.save(trainer.accelerator.unwrap_model(trainer.model), processor, folder)
            learned, of = loading.n_learning(model)
            vlm_fit.finish(inner, {"steps": config.steps, "weights": of, "learning": learned})
        trainer.accelerator.wait_for_everyone()

    def _starting(self, fold: int) -> tuple[Any, Any]:
        """The model to train, with what an earlier run learned or with new weights of LoRA, and its processor."""
        config = self.config
        if config.start_from:
            before = runs.open_run(config.start_from)
            done = crossval.done_folds(before)
            folder = crossval.folder(before, fold if fold in done else done[0])
            return loading.reload(config.model, folder, self.dtype, four_bit=config.four_bit, learn=True)
        dtype = self.dtype if config.lora_rank else torch.float32  # half precision would lose small steps
        model, processor = loading.load(config.model, dtype, config.four_bit)
        return loading.adapt(model, config.lora_rank, config.lora_attention_only), processor

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training places with a picture that a fold learns from, and all rows that it holds out."""
        held_out = self.held_out(fold)
        return np.flatnonzero(~held_out & ~self.packs["train"].unusable_places), np.flatnonzero(held_out)

    def looked_at(self, fold: int) -> np.ndarray:
        """Rows of the held-out places that are looked at while a fold is trained."""
        held_out = self.parts(fold)[1]
        usable = held_out[~self.packs["train"].unusable_places[held_out]]
        return np.random.default_rng(self.config.seed).permutation(usable)[: self.config.eval_places]

    def recorder(self, fold: int) -> Recorder:
        """What writes a fold's conversations: those of the first fold are the run's own."""
        there = self.run.dir if not set(crossval.done_folds(self.run)) - {fold} else self.folder(fold)
        return Recorder(rollouts.Writer(there / "rollouts"), self.config.environment)

    def prior(self, fold: int) -> Prior:
        """What the places that a fold learns from say without a picture."""
        rows = self.parts(fold)[0]
        points, position = self.places.points("train")[rows], self.places.state_position("train")[rows]
        idx = self.places.states["state_idx"].to_numpy()
        return Prior(self.states, idx, points, position, self.config.label, self.config.smoothing)

    def cases(self, split: str, rows: np.ndarray) -> Cases:
        """Places as they are asked about."""
        return dataset.places_cases(self.places, self.packs[split], rows, self.config.max_side, self.config.label)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's saved model guesses of the places in `rows` (of all when None)."""
        pack = self.packs[split]
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        chosen = self.choice(fold)["chosen"]
        replies = self._guessed(fold, split, rows[~pack.unusable_places[rows]], [chosen])
        return self._completed(fold, split, rows, replies[chosen])

    def guess_held_out(self, fold: int) -> Guesses:
        """From the replies that decided how states are found."""
        return self._completed(fold, "train", self.parts(fold)[1], self._choose(fold))

    def metrics(self) -> dict[str, Any]:
        """How each fold finds its states."""
        return {"states_by": {str(fold): self.choice(fold) for fold in crossval.done_folds(self.run)}}

    def choice(self, fold: int) -> dict[str, Any]:
        """How a fold finds its states."""
        return json.loads((self.folder(fold) / "choice.json").read_text())

    def _look(
        self,
        step: int,
        rows: np.ndarray,
        cases: Cases,
        talks: Sequence[Sequence[Talk]],
        prior: Prior,
        recorder: Recorder,
    ) -> dict[str, float]:
        """Record conversations about held-out places, and how they went."""
        said = [talk for row in talks for talk in row]
        each = [case for i, row in enumerate(talks) for case in [cases.row(i)] * len(row)]
        written = recorder.rows(step, "eval", each, said, self.task.tau_last_km, [None] * len(said))
        recorder.write(step, written, self.config.samples)
        return seen(prior.guesses(self.packs["train"].sample_id[rows], talks), talks, self.places)

    def _completed(self, fold: int, split: str, rows: np.ndarray, said: Guesses) -> Guesses:
        """Guesses for all places in `rows`, those without a picture too."""
        pack = self.packs[split]
        blind = rows[pack.unusable_places[rows]]
        parts = [said, self.prior(fold).blind(pack.sample_id[blind])] if len(blind) else [said]
        return guesses.stack(parts).at(pack.sample_id[rows])

    def _guessed(self, fold: int, split: str, rows: np.ndarray, ways: Sequence[str]) -> dict[str, Guesses]:
        """Guesses for places with pictures, with the states found in each of some ways: samples, likelihood."""
        pack, prior, likelihood = self.packs[split], self.prior(fold), "likelihood" in ways
        said = reply_cache.kept(
            self.folder(fold) / "said",
            f"{split}-{storage.digest(self.places.checksum, pack.checksum, rows, str(likelihood))}",
            self.cases(split, rows),
            self.task,
            lambda part, number: self._said(fold, part, likelihood, number),
            self.deadline,
            f"fold {fold}: guessing {split}",
        )
        found = {"samples": prior.guesses(pack.sample_id[rows], said.talks)}
        if likelihood:
            scores = np.empty((0, len(self.states))) if said.log_likelihood is None else said.log_likelihood
            found["likelihood"] = prior.with_likelihood(found["samples"], scores)
        return {way: found[way] for way in ways}

    def _said(self, fold: int, cases: Cases, likelihood: bool = False, number: int = 0) -> Said:
        """What a fold's saved model says of cases; number: the same one hears the same."""
        config, speaker = self.config, self._speaker(*self._model(fold))
        names = self.states if likelihood else None
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0]))
            return asked(cases, self.task, speaker, config.samples, self._at_once, names, config.label)

    def _choose(self, fold: int) -> Guesses:
        """Guesses for held-out places, by the better way to find states; choice.json says what each one scores."""
        held_out = self.parts(fold)[1]
        said = self._guessed(fold, "train", held_out[~self.packs["train"].unusable_places[held_out]], self.ways)
        scores = {way: metrics.score_guesses(guess, self.places).state for way, guess in said.items()}
        chosen = max(scores, key=lambda way: scores[way])
        storage.write_json(self.folder(fold) / "choice.json", {"chosen": chosen, "state_scores": scores})
        return said[chosen]

    @cached_property
    def _loaded(self) -> dict[int, tuple[Any, Any]]:
        return {}

    def _model(self, fold: int) -> tuple[Any, Any]:
        """A fold's trained model on its device, and its processor; one is kept."""
        if fold not in self._loaded:
            self._loaded.clear()
            config = self.config
            folder = self.folder(fold)
            model, processor = loading.reload(config.model, folder, self.dtype, four_bit=config.four_bit)
            self._loaded[fold] = (model if config.four_bit else model.to(best_device())), processor
        return self._loaded[fold]

    def _speaker(self, model: Any, processor: Any) -> Sampler:
        config = self.config
        length, temperature, top_p = config.reply_tokens, config.guess_temperature, config.guess_top_p
        return Sampler(model, processor, length, temperature, top_p, self.dtype)

    @property
    def _at_once(self) -> int:
        """Conversations that are sampled at once: without gradients several times more fit than in training."""
        return max(self.config.samples, 8 * self.config.device_batch)


def _starting_run(config: Config, places: Places, folds_column: str, todo: Sequence[int]) -> str:
    """A checksum of the run to start from. Raises KitError where it does not fit, or has seen what is held out."""
    name, data = config.start_from, crossval.data_checksums(places, folds_column)
    before = runs.open_run(name)
    was, done = before.settings, crossval.done_folds(before)
    if was["family"] != "vlm" or not done:
        raise KitError(f"start_from={name!r}: expected a run of the family vlm with a trained fold")
    for key in ("model", "lora_rank", "lora_attention_only"):
        if was[key] != getattr(config, key):
            raise KitError(
                f"start_from={name!r}: expected its {key} {was[key]!r} here too; got {getattr(config, key)!r}"
            )
    if before.params["data"]["places"] == data["places"]:
        if was["folds_column"] != folds_column or before.params["data"].get("folds") != data["folds"]:
            raise KitError(f"start_from={name!r} was trained on other folds: it has seen places that are held out here")
        if missing := sorted(set(todo) - set(done)):
            raise KitError(f"start_from={name!r} has no fold {missing[0]}: there are {done}")
    return storage.digest(json.dumps(before.params["settings"], sort_keys=True), before.params["started"])
