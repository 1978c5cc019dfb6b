"""A run whose model learns and speaks on Tinker's machines; its data, its rewards, and what it said stay here."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pandas as pd

from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.reply_cache import Said
from kitlib.models.vlm.session import Session
from kitlib.models.vlm.tinker import client as remote
from kitlib.models.vlm.tinker.environments import Batches


class RemoteSession(Session):
    """A session of a model `tinker:NAME`: trained by tinker-cookbook's loop, looked at before and after."""

    ways = ("samples",)

    @property
    def name(self) -> str:
        """The model's name at Tinker."""
        return self.config.model.removeprefix("tinker:")

    @cached_property
    def renderer(self) -> Any:
        """What makes tokens of messages for this model."""
        return remote.renderer(self.name)

    def _fit(self, fold: int) -> None:
        """Train to the end; hours and devices are not of this machine."""
        from kitlib.models.vlm import trainer

        config, inner, recorder = self.config, self.folder(fold) / self.config.method, self.recorder(fold)
        rows, prior = self.looked_at(fold), self.prior(fold)
        looked = self.cases("train", rows)

        def look(step: int) -> dict[str, float]:
            seen = self._look(step, rows, looked, self._said(fold, looked).talks, prior, recorder)
            return {"step": step, **{f"eval_{name}": value for name, value in seen.items()}}

        if not (inner / "history.csv").is_file():  # or the training goes on
            trainer.write_history(inner, [look(0)])
        batches = Batches(
            self.cases("train", self.parts(fold)[0]),
            self.task,
            self.renderer,
            steps=config.steps,
            places=config.batch // config.group,
            group=config.group,
            seed=config.seed,
            recorder=recorder,
        )
        remote.train(
            batches,
            self.name,
            inner / "tinker",
            rate=self.run.settings["rate"],
            lora_rank=config.lora_rank,
            max_tokens=config.reply_tokens,
            temperature=config.temperature,
        )
        before = pd.read_csv(inner / "history.csv").iloc[0].to_dict()
        trainer.write_history(inner, [{str(name): value for name, value in before.items()}, look(config.steps)])
        trainer.finish(inner, {"steps": config.steps})

    def _said(self, fold: int, cases: Cases, likelihood: bool = False, number: int = 0) -> Said:
        """What a fold's training has come to says of cases, at first what the published model says."""
        config = self.config
        client = remote.sampling_client(self.name, self.folder(fold) / config.method / "tinker")
        talks = remote.sampled(
            cases,
            self.task,
            self.renderer,
            client,
            config.samples,
            max_tokens=config.reply_tokens,
            temperature=config.guess_temperature,
            top_p=config.guess_top_p,
        )
        return Said(talks, None)
