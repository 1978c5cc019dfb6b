"""The session of a judge: train it on pairs of a place and a candidate, and weigh a run's guesses by its judgment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kitlib.core import storage
from kitlib.core.checks import numbers
from kitlib.core.errors import KitError
from kitlib.core.processes import is_first_process
from kitlib.evaluation import fold_files, guesses, metrics, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm import dataset, judging, reply_cache
from kitlib.models.vlm.conversation.dialogue import with_pictures
from kitlib.models.vlm.conversation.recorder import Row
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.judging import Candidates, Gallery, Pairs, Scale
from kitlib.models.vlm.reply_cache import Generations
from kitlib.models.vlm.session import Session

POWERS = ("0", "0.5", "1", "2", "4")  # of the judgment as a factor of a weight; 0 leaves the guesses as they are
CALIBRATION_SHARE = 0.2  # of a fold's training places, which choose the power and are not learned from
MOST_CALIBRATION = 500  # places: more cost time and change nothing


class JudgeSession(Session):
    """The judge of each fold.

    It is taught with candidates of training places that are out of fold themselves, as the judged run guessed them
    without these places. No candidate of a training or a held-out place is a held-out place.
    """

    @cached_property
    def judged(self) -> dict[str, Guesses]:
        """The guesses to judge, by split; those of training places are out of fold."""
        name, states = self.config.candidates, self.places.states["state_idx"].to_numpy()
        if not len(self.places.rows("train")):
            raise KitError(f"{self.run.name}: expected the training places, whose pictures a judge looks at; got none")
        run = runs.open_run(name)
        found = {"train": run.guesses("oof")}
        if self.places.queries is not None:
            found["test"] = self.ask(name, self.places)
        elif "test" in self.packs:
            found["test"] = run.guesses("test")
        return {split: guess.on_states(states) for split, guess in found.items()}

    @cached_property
    def scale(self) -> Scale:
        """The distances that the replies tell apart."""
        return Scale(tuple(numbers("bands_km", self.config.bands_km)))

    @cached_property
    def gallery(self) -> Gallery:
        """All training places with a usable picture."""
        row = np.flatnonzero(~self.packs["train"].unusable_places)
        group, state = self.fold_table["group"].to_numpy(), self.places.state_position("train")
        return Gallery(self.places.points("train")[row], state[row], group[row], row)

    def split(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a fold's training places that are learned from, and of those that choose the power."""
        rows, group = self.fold_rows(fold)[0], self.fold_table["group"].to_numpy()
        groups = np.random.default_rng(self.config.seed).permutation(np.unique(group[rows]))
        chosen = groups[: min(math.ceil(CALIBRATION_SHARE * len(groups)), MOST_CALIBRATION)]
        return rows[~np.isin(group[rows], chosen)], rows[np.isin(group[rows], chosen)]

    def candidates(self, fold: int, split: str, rows: np.ndarray) -> tuple[Candidates, Pairs]:
        """The candidates of the places in `rows` of a split, and their pictures."""
        own, allowed = self.packs[split], np.ones(len(self.gallery.row), bool)
        group = np.full(len(rows), -1)
        if split == "train":
            group, held_out = self.fold_table["group"].to_numpy()[rows], self.held_out(fold)
            fair = np.flatnonzero(~held_out) if held_out[rows].all() else self.split(fold)[0]
            allowed = np.isin(self.gallery.row, fair)
        guess = self.judged[split].at(own.sample_id[rows])
        found = Candidates.of(guess, self.gallery, group, allowed, self.config.n_candidates)
        return found, judging.pairs_of(
            found, self.gallery, (own, rows, self.places.points(split)[rows]), self.packs["train"],
            dataset.truths_of(self.places, "train", self.config.label), self.config.max_side,
        )  # fmt: skip

    def _fit(self, fold: int) -> None:
        """Train to the end. Raises Unfinished when the time limit comes first."""
        from kitlib.models.vlm import trainer as trl

        config, settings = self.config, self.run.settings
        torch.manual_seed(config.seed)
        model, processor = self._initial_model(fold)
        taught, calibration = self.split(fold)
        _, pairs = self.candidates(fold, "train", taught)
        if not len(pairs):
            raise KitError(f"candidates: expected guesses of {config.candidates} at training places of fold {fold}, "
                           "whose pictures can be shown; got none")  # fmt: skip

        def extend(row: Row) -> Row:
            messages = self.scale.ask(self.places.views, self.task.form, row["truth"])
            return trl.example(processor, messages, self.scale.reply(row["km"]), row["images"])

        table, inner = dataset.table_of(pairs, extend), self.folder(fold) / config.method
        trainer = trl.fine_tuner(settings, model, processor, table, inner, self.devices)
        watched = np.random.default_rng(config.seed).permutation(calibration)[: config.eval_places]
        chosen, shown = self.candidates(fold, "train", watched)

        def evaluate(model: Any, *_: Any) -> dict[str, float]:
            judged = self.scale.closeness(self._log_likelihood(model, processor, shown))
            return {k: float(v.mean()) for k, v in judging.agreement(judged, shown.km, chosen.place).items() if len(v)}

        self._train(fold, trainer, processor, evaluate)

    def judge(self, fold: int, split: str, rows: np.ndarray) -> tuple[Candidates, Pairs, np.ndarray]:
        """The candidates of the places in `rows`, their pictures, and the judged closeness (P,), cached in said/."""
        found, pairs = self.candidates(fold, split, rows)
        packs = [self.packs[name].checksum for name in (split, "train")]
        generations = reply_cache.cached(
            self.folder(fold) / "said",
            f"{split}-{storage.digest(self.places.checksum, *packs, rows, found.place, found.entry)}",
            pairs,
            self.task,
            lambda part, _: Generations([[] for _ in range(len(part))],
                                        self._log_likelihood(*self._model(fold), part)),
            self.deadline,
            f"fold {fold}: judging {split}",
        )  # fmt: skip
        scores = generations.log_likelihood
        return found, pairs, np.empty(0) if scores is None else self.scale.closeness(scores)

    def closeness(self, fold: int, pairs: Cases) -> np.ndarray:
        """The closeness (P,) of pairs as a fold's trained judge sees it; nothing is cached."""
        return self.scale.closeness(self._log_likelihood(*self._model(fold), pairs))

    def _log_likelihood(self, model: Any, processor: Any, pairs: Cases) -> np.ndarray:
        """The log-likelihood (P, A) of each reply about each pair."""
        sampler, tokenizer = Sampler(model, processor, 1, dtype=self.dtype), processor.tokenizer
        replies = [tokenizer.encode(reply, add_special_tokens=False) for reply in self.scale.replies]
        scores = [np.empty((0, len(replies)))]
        for start in range(0, len(pairs), self.config.device_batch):
            rows = [pairs.row(i) for i in range(start, min(start + self.config.device_batch, len(pairs)))]
            asked = [self.scale.ask(pairs.views, self.task.form, row["truth"]) for row in rows]
            prompts = [with_pictures(one, row["images"]) for one, row in zip(asked, rows, strict=True)]
            scores.append(sampler.prefill(prompts).log_likelihood(replies))
        return np.concatenate(scores)

    def _guesses_by_source(self, fold: int, split: str, rows: np.ndarray, sources: Sequence[str]) -> dict[str, Guesses]:
        """The judged run's guesses for places with pictures, weighed by each power of the judgment."""
        guess = self.judged[split].at(self.packs[split].sample_id[rows])
        if list(sources) == ["0"]:
            return {"0": guess}
        found, _, closeness = self.judge(fold, split, rows)
        return {source: found.reweighted(guess, self.gallery, closeness ** float(source)) for source in sources}

    def _choose(self, fold: int) -> Guesses:
        """The power that scores best on calibration places; choice.json holds the scores. Returns their guesses."""
        rows = self.split(fold)[1]
        shares = self.shares(lambda own: self._guesses_by_source(fold, "train", own, POWERS), rows)
        ids = self.packs["train"].sample_id[rows]
        by_power = {power: guesses.stack([share[power] for share in shares]).at(ids) for power in shares[0]}
        scores = {power: metrics.score_guesses(guess, self.places).final for power, guess in by_power.items()}
        chosen = max(scores, key=lambda power: scores[power])
        if is_first_process():
            storage.write_json(self.folder(fold) / "choice.json", {"chosen": chosen, "scores": scores})
        return by_power[chosen]

    def guess_held_out(self, fold: int) -> Guesses:
        """Guesses for the held-out places; they have chosen nothing."""
        return self.guess_together(fold, "train", self.fold_rows(fold)[1])

    def choice(self, fold: int) -> dict[str, Any]:
        """The chosen power of the judgment, and the score of each on the calibration places."""
        return storage.read_json(self.folder(fold) / "choice.json", needed=("chosen", "scores"))

    def metrics(self) -> dict[str, Any]:
        """The power of each fold's judgment."""
        return {"judged_by": {str(fold): self.choice(fold) for fold in fold_files.done_folds(self.run)}}
