"""The session of a run whose model is at Tinker; its data, rewards and recorded replies stay on this machine."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from kitlib.evaluation import fold_files, runs
from kitlib.models.vlm.config import ADDRESS
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.dataset import Cases, TrainingSource
from kitlib.models.vlm.reply_cache import Generations
from kitlib.models.vlm.session import Session
from kitlib.models.vlm.tinker import client, sampling, training
from kitlib.models.vlm.tinker.batches import Batches, CaseBatches, StreamBatches
from kitlib.models.vlm.tinker.environments import ExampleDataset, GroupDataset
from kitlib.training.tracking import Tracker


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
        held_out = self.cases("train", self.evaluation_rows(fold))
        source = self.source(fold)
        trainer.check_length(self.run.settings, self.task, source, self.renderer)
        dataset = self._dataset(source, recorder)
        earlier = training.history(inner / "tinker")
        known = {line["step"] for line in earlier if "eval_reward" not in line}

        def note() -> list[dict[str, Any]]:
            """Write the history so far and track what is new of it; evaluations are tracked when they are made."""
            lines = training.history(inner / "tinker")
            trainer.write_history(inner, lines)
            for line in lines:
                if line["step"] not in known and "eval_reward" not in line:
                    tracker.log(line, line["step"])
                    known.add(line["step"])
            return lines

        def scores(step: int, replies: Generations) -> dict[str, float]:
            found = self._evaluate(fold, step, held_out, replies, recorder, tracker)
            return {f"eval_{name}": value for name, value in found.items()}

        async def evaluate(sampler: Any) -> dict[str, float]:
            note()
            replies = await sampling.play(held_out, self.task, self.renderer, sampler, config.samples, **self._sampling)
            return scores(dataset.step, Generations(replies, None))

        reply = {"max_tokens": config.reply_tokens, "temperature": config.temperature}
        with Tracker(inner) as tracker:
            training.train(
                config.method,
                dataset,
                self.name,
                inner / "tinker",
                rate=self.run.settings["rate"],
                lora_rank=config.lora_rank,
                save_every=config.checkpoint_steps,
                start_from=self._start(fold),
                evaluate=evaluate,
                eval_every=config.eval_steps or config.steps,
                **(reply if config.method == "grpo" else {}),
            )
            lines, end = note(), config.steps
            if not any(line["step"] == end and "eval_reward" in line for line in lines):  # sft has none at the end
                lines.append({"step": end, **scores(end, self._generate(fold, held_out))})
        trainer.write_history(inner, lines)
        trainer.finish(inner, {"steps": end})

    def _dataset(self, source: TrainingSource, recorder: Recorder) -> GroupDataset | ExampleDataset:
        """The examples or groups of every step, from the places or the stream."""
        config, grpo = self.config, self.config.method == "grpo"
        size = config.batch // config.group if grpo else config.batch
        batches: Batches = StreamBatches(lambda: source.rows(self.run.settings, dict), source.views, size)
        if source.cases is not None:
            batches = CaseBatches(source.cases, size, config.seed)
        numbers = {"steps": config.steps, "seed": config.seed}
        if grpo:
            return GroupDataset(batches, self.task, self.renderer, group=config.group, recorder=recorder, **numbers)
        return ExampleDataset(batches, self.task, training.to_datum(self.renderer), **numbers)

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
