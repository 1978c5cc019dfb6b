"""The session of a run whose model is at Tinker; its data, rewards and recorded replies stay on this machine."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pandas as pd

from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.reply_cache import Generations
from kitlib.models.vlm.session import Session
from kitlib.models.vlm.tinker import client as remote
from kitlib.models.vlm.tinker.environments import GroupDataset


class RemoteSession(Session):
    """A session of a model `tinker:NAME`: trained by tinker-cookbook's loop, evaluated before and after."""

    state_sources = ("samples",)

    @property
    def name(self) -> str:
        """The model's name at Tinker."""
        return self.config.model.removeprefix("tinker:")

    @cached_property
    def renderer(self) -> Any:
        """The cookbook's renderer of this model."""
        return remote.renderer(self.name)

    def _fit(self, fold: int) -> None:
        """Train to the end; time limit and devices do not apply."""
        from kitlib.models.vlm import trainer

        config, inner, recorder = self.config, self.folder(fold) / self.config.method, self.recorder(fold)
        held_out = self.cases("train", self.evaluation_rows(fold))

        def evaluate(step: int) -> dict[str, float]:
            scores = self._evaluate(fold, step, held_out, self._generate(fold, held_out), recorder)
            return {"step": step, **{f"eval_{name}": value for name, value in scores.items()}}

        if not (inner / "history.csv").is_file():  # otherwise the training resumes
            trainer.write_history(inner, [evaluate(0)])
        dataset = GroupDataset(
            self.cases("train", self.fold_rows(fold)[0]),
            self.task,
            self.renderer,
            steps=config.steps,
            places=config.batch // config.group,
            group=config.group,
            seed=config.seed,
            recorder=recorder,
        )
        remote.train(
            dataset,
            self.name,
            inner / "tinker",
            rate=self.run.settings["rate"],
            lora_rank=config.lora_rank,
            max_tokens=config.reply_tokens,
            temperature=config.temperature,
        )
        first = pd.read_csv(inner / "history.csv").iloc[0].to_dict()
        trainer.write_history(inner, [{str(name): v for name, v in first.items()}, evaluate(config.steps)])
        trainer.finish(inner, {"steps": config.steps})

    def _generate(self, fold: int, cases: Cases, likelihood: bool = False, number: int = 0) -> Generations:
        """Generate dialogues with the newest checkpoint of a fold, with the published model before the first."""
        config = self.config
        dialogues = remote.sampled(
            cases,
            self.task,
            self.renderer,
            remote.sampling_client(self.name, self.folder(fold) / config.method / "tinker"),
            config.samples,
            max_tokens=config.reply_tokens,
            temperature=config.guess_temperature,
            top_p=config.guess_top_p,
        )
        return Generations(dialogues, None)
