"""The session of a run whose model is at Tinker; its data, rewards and recorded replies stay on this machine."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from kitlib.evaluation import fold_files, runs
from kitlib.models.vlm.config import ADDRESS
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.reply_cache import Generations
from kitlib.models.vlm.session import Session
from kitlib.models.vlm.tinker import client, sampling, training
from kitlib.models.vlm.tinker.batches import Batches, CaseBatches, StreamBatches
from kitlib.models.vlm.tinker.environments import ExampleDataset, GroupDataset


class RemoteSession(Session):
    """A session of a model `tinker:NAME`, trained by tinker-cookbook's loops."""

    state_sources = ("samples",)

    @property
    def name(self) -> str:
        """The model's name at Tinker."""
        return self.config.model.removeprefix("tinker:")

    @cached_property
    def renderer(self) -> Any:
        """The cookbook's renderer of this model."""
        return client.renderer(self.name, self.config.reasoning and self.config.method == "grpo")

    def _fit(self, fold: int) -> None:
        """Train to the end; time limit and devices do not apply."""
        from kitlib.models.vlm import trainer

        config, inner, recorder = self.config, self.folder(fold) / self.config.method, self.recorder(fold)
        folder, grpo = inner / "tinker", config.method == "grpo"
        held_out = self.cases("train", self.evaluation_rows(fold))
        source = self.source(fold)
        trainer.check_length(self.run.settings, self.task, source, self.renderer)
        size = config.batch // config.group if grpo else config.batch
        batches: Batches = StreamBatches(lambda: source.rows(self.run.settings, dict), source.views, size)
        if source.cases is not None:
            batches = CaseBatches(source.cases, size, config.seed)
        dataset: GroupDataset | ExampleDataset
        if grpo:
            numbers: dict[str, Any] = {"steps": config.steps, "group": config.group, "seed": config.seed}
            dataset = GroupDataset(batches, self.task, self.renderer, **numbers, recorder=recorder)
        else:
            datum = training.to_datum(self.renderer)
            dataset = ExampleDataset(batches, self.task, datum, steps=config.steps, seed=config.seed)

        def scores(step: int, generations: Generations) -> dict[str, float]:
            found = self._evaluate(fold, step, held_out, generations, recorder)
            return {f"eval_{name}": value for name, value in found.items()}

        async def evaluate(sampler: Any) -> dict[str, float]:
            trainer.write_history(inner, training.history(folder))
            replies = await sampling.play(held_out, self.task, self.renderer, sampler, config.samples, **self._sampling)
            return scores(dataset.step, Generations(replies, None))

        training.train(
            config.method,
            dataset,
            self.name,
            folder,
            rate=self.run.settings["rate"],
            lora_rank=config.lora_rank,
            save_every=config.checkpoint_steps,
            start_from=self._start(fold),
            evaluate=evaluate,
            eval_every=config.eval_steps or config.steps,
            **({"max_tokens": config.reply_tokens, "temperature": config.temperature} if grpo else {}),
        )
        lines = training.history(folder)
        if not any(line["step"] == config.steps and "eval_reward" in line for line in lines):  # sft has none at the end
            lines.append({"step": config.steps, **scores(config.steps, self._generate(fold, held_out))})
        trainer.write_history(inner, lines)
        trainer.finish(inner, {"steps": config.steps})

    def _start(self, fold: int) -> str:
        """The address of the checkpoint to begin with, "" for the published model."""
        name = self.config.start_from
        if not name or name.startswith(ADDRESS):
            return name
        earlier = runs.open_run(name)
        done = fold_files.done_folds(earlier)
        return client.newest(_folder(earlier, fold if fold in done else done[0]), "state_path")

    @property
    def _sampling(self) -> dict[str, Any]:
        """The options of the replies that make a guess."""
        config = self.config
        return {"max_tokens": config.reply_tokens, "temperature": config.guess_temperature, "top_p": config.guess_top_p}

    def _generate(self, fold: int, cases: Cases, likelihood: bool = False, number: int = 0) -> Generations:
        """Generate dialogues with the newest checkpoint of a fold."""
        weights = self.name, client.newest(_folder(self.run, fold))
        dialogues = sampling.sampled(cases, self.task, self.renderer, *weights, self.config.samples, **self._sampling)
        return Generations(dialogues, None)


def _folder(run: runs.Run, fold: int) -> Path:
    """The folder of the cookbook's files about a fold."""
    return fold_files.folder(run, fold) / run.settings["method"] / "tinker"
