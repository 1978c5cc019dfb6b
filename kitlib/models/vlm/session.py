"""The session of a vision-language run: train its folds, evaluate them, and turn replies into guesses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.processes import is_first_process
from kitlib.data import pictures
from kitlib.data.places import SPLITS, Places
from kitlib.evaluation import fold_files, guesses, metrics, origin, runs
from kitlib.evaluation.crossval import Unfinished
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.vlm import dataset, judging, loading, reply_cache
from kitlib.models.vlm.config import ADDRESS, RATES, Config
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.dataset import Cases, TrainingSource
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.guessing import Prior, evaluation_scores, generate
from kitlib.models.vlm.reply_cache import Generations
from kitlib.models.vlm.tinker import client
from kitlib.training.session import TorchSession
from kitlib.training.tracking import Tracker
from kitlib.vision.device import best_device

PRIOR = "prior.npz"  # points and states of a fold's training places


def task_of(config: Config, places: Places) -> Task:
    """The task of a run with these places."""
    # A stream may have names of other countries, which are no states of these places.
    fields = [config.label, *(["states"] if config.ranked else [])]
    labels = {} if config.stream else dict.fromkeys(fields, Labels(places.states["state"]))
    return config.task("Region" if places.template is None else "State", labels)


class Session(TorchSession[Config]):
    """The model of each fold, on this machine."""

    family = "vlm"
    config_type = Config
    ONE_FOLD = True  # one takes hours
    state_sources: tuple[str, ...] = ("samples", "likelihood")

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        super().__init__(run, places, *args, **options)
        self.packs = {split: pictures.pack(places, split) for split in SPLITS if len(places.rows(split))}
        self.states = Labels(places.states["state"])
        self.task = task_of(self.config, places)
        self._loaded: dict[int, tuple[Any, Any]] = {}

    @classmethod
    def open(cls, run: Run, places: Places, *args: Any, **options: Any) -> Session:
        """The session of a run whose model is on this machine or at Tinker, or that judges candidates."""
        from kitlib.models.vlm.judge_session import JudgeSession
        from kitlib.models.vlm.tinker.session import RemoteSession

        remote, judges = run.settings["model"].startswith("tinker:"), run.settings["method"] == "judge"
        return (RemoteSession if remote else JudgeSession if judges else Session)(run, places, *args, **options)

    @classmethod
    def check_model(cls, config: Config) -> None:
        """Refuse a model or a stream that cannot be read."""
        kind, _, name = config.model.partition(":")
        if kind == "hf":
            loading.check_published(name, config.lora_rank, config.lora_attention_only)
        if kind == "tinker":
            client.check_model(name)
        if config.stream:
            dataset.stream_views(config.stream, config.stream_split)

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
        """Refuse missing libraries, and unsuitable runs to start from or to judge; return the checksums of these."""
        loading.check(config.model, config.four_bit, config.vllm)
        if config.vllm:
            dataset.check_one_size(pictures.pack(places, "train"), config.max_side)
        if config.model.startswith("tinker:"):
            client.check()
        found = {}
        if config.start_from.startswith(ADDRESS):
            client.check_checkpoint(config.start_from, config.model.removeprefix("tinker:"), config.lora_rank)
            found["start_from"] = config.start_from
        elif config.start_from:
            found["start_from"] = _starting_run(config, places, folds_column, todo)
        if config.candidates:
            found["candidates"] = judging.check(config.candidates, places, folds_column)
        return found

    @classmethod
    def resolve(cls, config: Config, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings resolved at the start: the number type and the learning rate."""
        return super().resolve(config, recorded) | {"rate": config.rate or RATES[config.method]}

    def fit_fold(self, fold: int) -> None:
        """Train the model, then choose the source of its state probabilities."""
        from kitlib.models.vlm import trainer as trl

        if not trl.is_done(self.folder(fold) / self.config.method):
            self._fit(fold)
        if is_first_process():
            prior = self.prior(fold)
            storage.write_npz(self.folder(fold) / PRIOR, {"points": prior.points, "position": prior.position})
        self._choose(fold)

    def _fit(self, fold: int) -> None:
        """Train to the end. Raises Unfinished when the time limit comes first."""
        from kitlib.models.vlm import trainer as trl

        config, inner = self.config, self.folder(fold) / self.config.method
        torch.manual_seed(config.seed)
        model, processor = self._initial_model(fold)
        source = self.source(fold)
        trl.check_length(self.run.settings, self.task, source, processor)
        recorder = self.recorder(fold)
        args = (self.run.settings, model, processor, self.task, source, inner, self.devices)
        trainer = trl.sft(*args) if config.method == "sft" else trl.grpo(*args, recorder)
        held_out = self.cases("train", self.evaluation_rows(fold))

        def evaluate(model: Any, step: int, tracker: Tracker) -> dict[str, float]:
            sampler = self._sampler(model, processor)
            generations = generate(held_out, self.task, sampler, config.samples, self._at_once)
            return self._evaluate(fold, step, held_out, generations, recorder, tracker)

        self._train(fold, trainer, processor, evaluate)

    def _train(
        self, fold: int, trainer: Any, processor: Any, evaluate: Callable[[Any, int, Tracker], dict[str, float]]
    ) -> None:
        """Run a trainer to its end and save the model. Raises Unfinished when the time limit comes first."""
        from kitlib.models.vlm import trainer as trl

        config, folder = self.config, self.folder(fold)
        inner = folder / config.method
        options: dict[str, Any] = {"eval_steps": config.eval_steps, "max_hours": self.hours_left, "seed": config.seed}
        with Tracker(inner) as tracker:
            options["evaluate"] = lambda model, step: evaluate(model, step, tracker)
            if not trl.fit(trainer, inner, tracker, **options):
                raise Unfinished
            if trainer.is_world_process_zero():
                loading.save(model := trainer.accelerator.unwrap_model(trainer.model), processor, folder)
                tracker.weights(loading.saved(folder))
                trainable, total = loading.count_weights(model)
                trl.finish(inner, {"steps": config.steps, "weights": total, "learning": trainable})
        trainer.accelerator.wait_for_everyone()

    def source(self, fold: int) -> TrainingSource:
        """The places that a fold learns from, or the stream."""
        config = self.config
        if config.stream:
            return TrainingSource(None, config.stream, dataset.stream_views(config.stream, config.stream_split))
        return TrainingSource(self.cases("train", self.fold_rows(fold)[0]), "", self.places.views)

    def _initial_model(self, fold: int) -> tuple[Any, Any]:
        """The model to train, from an earlier run or with new LoRA weights, and its processor."""
        config = self.config
        if config.start_from:
            earlier = runs.open_run(config.start_from)
            done = fold_files.done_folds(earlier)
            folder = fold_files.folder(earlier, fold if fold in done else done[0])
            return loading.reload(config.model, folder, self.dtype, four_bit=config.four_bit, trainable=True)
        dtype = self.dtype if config.lora_rank else torch.float32  # half precision loses small updates
        model, processor = loading.load(config.model, dtype, config.four_bit)
        return loading.adapt(model, config.lora_rank, config.lora_attention_only), processor

    def fold_rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a fold's training places with a usable picture, and the rows of all its held-out places."""
        held_out = self.held_out(fold)
        return np.flatnonzero(~held_out & ~self.packs["train"].unusable_places), np.flatnonzero(held_out)

    def evaluation_rows(self, fold: int) -> np.ndarray:
        """The rows of the held-out places that are evaluated during training."""
        held_out = self.fold_rows(fold)[1]
        usable = held_out[~self.packs["train"].unusable_places[held_out]]
        return np.random.default_rng(self.config.seed).permutation(usable)[: self.config.eval_places]

    def recorder(self, fold: int) -> Recorder:
        """The recorder of a fold's dialogues: in the run's folder for the first fold, else in the fold's own."""
        parent = self.run.dir if not set(fold_files.done_folds(self.run)) - {fold} else self.folder(fold)
        return Recorder(rollouts.Writer(parent / "rollouts"), self.config.environment)

    def prior(self, fold: int) -> Prior:
        """The distribution of a fold's training places."""
        if len(self.places.rows("train")):
            rows = self.fold_rows(fold)[0]
            points, position = self.places.points("train")[rows], self.places.state_position("train")[rows]
        else:  # on another machine
            saved = storage.read_npz(self.folder(fold) / PRIOR, ("points", "position"))
            points, position = saved["points"], saved["position"]
        idx = self.places.states["state_idx"].to_numpy()
        return Prior(self.states, idx, points, position, self.config.label, self.config.smoothing)

    def cases(self, split: str, rows: np.ndarray) -> Cases:
        """Places of a split as cases for a prompt."""
        config = self.config
        return dataset.places_cases(self.places, self.packs[split], rows, config.max_side, config.label, config.ranked)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """The guesses of a fold's trained model for the places in `rows` (all when None)."""
        pack = self.packs[split]
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        chosen = self.choice(fold)["chosen"]
        guesses_by = self._guesses_by_source(fold, split, rows[~pack.unusable_places[rows]], [chosen])
        return self._with_blind(fold, split, rows, guesses_by[chosen])

    def guess_held_out(self, fold: int) -> Guesses:
        """Guesses for the held-out places, from the replies that decided the choice."""
        return self._with_blind(fold, "train", self.fold_rows(fold)[1], self._choose(fold))

    def metrics(self) -> dict[str, Any]:
        """The source of each fold's state probabilities."""
        return {"states_by": {str(fold): self.choice(fold) for fold in fold_files.done_folds(self.run)}}

    def choice(self, fold: int) -> dict[str, Any]:
        """The chosen source of a fold's state probabilities, and the score of each."""
        return storage.read_json(self.folder(fold) / "choice.json", needed=("chosen", "state_scores"))

    def _evaluate(
        self, fold: int, step: int, cases: Cases, generations: Generations, recorder: Recorder, tracker: Tracker
    ) -> dict[str, float]:
        """Record dialogues about held-out places, track them, and return their scores."""
        dialogues = generations.dialogues
        flat = [dialogue for row in dialogues for dialogue in row]
        flat_cases = [case for i, row in enumerate(dialogues) for case in [cases.row(i)] * len(row)]
        rows = recorder.rows(step, "eval", flat_cases, flat, self.config.tau_last_km, [None] * len(flat))
        recorder.write(step, rows, self.config.samples)
        sample_id = self.packs["train"].sample_id[self.evaluation_rows(fold)]
        scores = evaluation_scores(self.prior(fold).guesses(sample_id, dialogues), dialogues, self.places)
        tracker.log({f"eval_{name}": value for name, value in scores.items()}, step)
        tracker.table("rollouts", [_shown(row) for row in rows], step)
        return scores

    def _with_blind(self, fold: int, split: str, rows: np.ndarray, guess: Guesses) -> Guesses:
        """Guesses for all places in `rows`, those without a usable picture included."""
        pack = self.packs[split]
        blind = rows[pack.unusable_places[rows]]
        parts = [guess, self.prior(fold).blind(pack.sample_id[blind])] if len(blind) else [guess]
        return guesses.stack(parts).at(pack.sample_id[rows])

    def _guesses_by_source(self, fold: int, split: str, rows: np.ndarray, sources: Sequence[str]) -> dict[str, Guesses]:
        """Guesses for places with pictures, with state probabilities from each source: samples, likelihood."""
        pack, prior, likelihood = self.packs[split], self.prior(fold), "likelihood" in sources
        generations = reply_cache.cached(
            self.folder(fold) / "said",
            f"{split}-{storage.digest(self.places.checksum, pack.checksum, rows, str(likelihood))}",
            self.cases(split, rows),
            self.task,
            lambda part, number: self._generate(fold, part, likelihood, number),
            self.deadline,
            f"fold {fold}: guessing {split}",
        )
        guesses_by = {"samples": prior.guesses(pack.sample_id[rows], generations.dialogues)}
        if likelihood:
            scores = generations.log_likelihood
            scores = np.empty((0, len(self.states))) if scores is None else scores
            guesses_by["likelihood"] = prior.with_likelihood(guesses_by["samples"], scores)
        return {source: guesses_by[source] for source in sources}

    def _generate(self, fold: int, cases: Cases, likelihood: bool = False, number: int = 0) -> Generations:
        """Generate dialogues with a fold's trained model; the same number seeds the same replies."""
        config, sampler = self.config, self._sampler(*self._model(fold))
        names = self.states if likelihood else None
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0]))
            return generate(cases, self.task, sampler, config.samples, self._at_once, names, config.label)

    def _choose(self, fold: int) -> Guesses:
        """Guesses for held-out places from the better source of state probabilities; choice.json holds the scores."""
        held_out = self.fold_rows(fold)[1]
        usable = held_out[~self.packs["train"].unusable_places[held_out]]
        shares = self.shares(lambda rows: self._guesses_by_source(fold, "train", rows, self.state_sources), usable)
        ids = self.packs["train"].sample_id[usable]
        guesses_by = {source: guesses.stack([share[source] for share in shares]).at(ids) for source in shares[0]}
        scores = {source: metrics.score_guesses(guess, self.places).state for source, guess in guesses_by.items()}
        chosen = max(scores, key=lambda source: scores[source])
        if is_first_process():
            storage.write_json(self.folder(fold) / "choice.json", {"chosen": chosen, "state_scores": scores})
        return guesses_by[chosen]

    def _model(self, fold: int) -> tuple[Any, Any]:
        """A fold's trained model on its device, and its processor; only the last one stays in memory."""
        if fold not in self._loaded:
            self._loaded.clear()
            config = self.config
            model, processor = loading.reload(config.model, self.folder(fold), self.dtype, four_bit=config.four_bit)
            self._loaded[fold] = (model if config.four_bit else model.to(best_device())), processor
        return self._loaded[fold]

    def _sampler(self, model: Any, processor: Any) -> Sampler:
        config = self.config
        length, temperature, top_p = config.reply_tokens, config.guess_temperature, config.guess_top_p
        thinking = config.reasoning and config.method == "grpo"  # fine-tuning teaches replies without a thought
        return Sampler(model, processor, length, temperature, top_p, self.dtype, thinking)

    @property
    def _at_once(self) -> int:
        """Dialogues in one batch of sampling: without gradients several times more fit than in training."""
        return max(self.config.samples, 8 * self.config.device_batch)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded dialogue as a row of the table that is tracked."""
    told = {name: row[name] for name in ("sample_id", "reward", "km")}
    return told | {"replies": " → ".join(row["replies"]), "point": str(row["point"]), "truth": str(row["truth"])}


def _starting_run(config: Config, places: Places, folds_column: str, todo: Sequence[int]) -> str:
    """A checksum of the run to start from. Raises KitError for an unsuitable run, or one trained on held-out places."""
    name = config.start_from
    earlier = runs.open_run(name)
    settings, done = earlier.settings, fold_files.done_folds(earlier)
    if settings["family"] != "vlm" or not done:
        raise KitError(f"start_from={name!r}: expected a run of the family vlm with a trained fold")
    for key in ("model", "lora_rank", "lora_attention_only"):
        if settings[key] != (own := origin.portable(config)[key]):
            raise KitError(f"{key}: expected {settings[key]!r} as in {name!r}; got {own!r}")
    if earlier.params["data"]["places"] == places.checksum:
        data = origin.data_checksums(places, folds_column, settings["n_folds"])
        if settings["folds_column"] != folds_column or earlier.params["data"].get("folds") != data["folds"]:
            raise KitError(f"start_from={name!r} was trained on other folds, on places that are held out here")
        if missing := sorted(set(todo) - set(done)):
            raise KitError(f"start_from={name!r} has no fold {missing[0]}; trained folds: {done}")
    return storage.digest(json.dumps(earlier.params["settings"], sort_keys=True), earlier.params["started"])
