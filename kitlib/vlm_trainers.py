"""TRL's two trainers, made from the settings of a run (`vlm.Config`), its task and its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer
from trl import GRPOConfig, SFTConfig, SFTTrainer

from kitlib import vlm_data, vlm_fit, vlm_models
from kitlib.core.errors import KitError
from kitlib.prompts import assistant
from kitlib.vision.device import best_device, dtype_of
from kitlib.vlm_data import Cases, Row
from kitlib.vlm_grpo import PlaceTrainer
from kitlib.vlm_record import Recorder
from kitlib.vlm_tasks import Task


@dataclass(frozen=True)
class Lesson:
    """What a trainer learns from: cases, or a stream by its name with the names of its views."""

    cases: Cases | None
    stream: str
    views: Sequence[str]

    def rows(self, settings: Mapping[str, Any], extend: Callable[[Row], Row]) -> Any:
        """A table or a stream of rows, each with what `extend` adds."""
        if self.cases is not None:
            return vlm_data.table_of(self.cases, extend)
        return vlm_data.streamed(
            self.stream,
            settings["stream_split"],
            max_side=settings["max_side"],
            buffer=settings["shuffle_buffer"],
            seed=settings["seed"],
            extend=extend,
        )


def sft(
    settings: Mapping[str, Any], model: Any, processor: Any, task: Task, lesson: Lesson, folder: Path, devices: int
) -> Trainer:
    """Fine-tuning on right replies; the loss is of the reply alone."""
    task = replace(task, reasoning=False)  # there are no thoughts to learn from

    def extend(row: Row) -> Row:
        seed = np.random.SeedSequence([settings["seed"], *row["sample_id"].encode()]).generate_state(1)[0]
        messages, reply = task.lesson(lesson.views, row["truth"], int(seed))
        return {"prompt": messages, "completion": [assistant(reply)], "images": row["images"]}

    # No max_length: it would cut the tokens of pictures off.
    arguments = SFTConfig(**_common(settings, folder, devices), max_length=None)
    return SFTTrainer(model, arguments, train_dataset=lesson.rows(settings, extend), processing_class=processor)


def grpo(
    settings: Mapping[str, Any],
    model: Any,
    processor: Any,
    task: Task,
    lesson: Lesson,
    folder: Path,
    devices: int,
    recorder: Recorder,
) -> Trainer:
    """Reinforcement learning in the task's environment; recorder: where every step's conversations go."""

    def extend(row: Row) -> Row:
        return row | {"prompt": task.last(lesson.views, row["truth"]).messages()}

    silent = vlm_models.silent_tokens(processor.tokenizer)
    # vLLM knows no suppress_tokens; a bias this low comes to the same.
    generation = {"logit_bias": dict.fromkeys(silent, -100.0)} if settings["vllm"] else {"suppress_tokens": silent}
    arguments = GRPOConfig(
        **_common(settings, folder, devices),
        num_generations=settings["group"],
        max_completion_length=settings["reply_tokens"],
        temperature=settings["temperature"],
        generation_kwargs=generation,
        beta=settings["kl"],
        scale_rewards=settings["scale"],
        use_vllm=settings["vllm"],
    )
    return PlaceTrainer(
        task=task,
        views=lesson.views,
        seed=settings["seed"],
        recorder=recorder,
        by_turn=settings["credit"] == "turn",
        model=model,
        args=arguments,
        train_dataset=lesson.rows(settings, extend),
        processing_class=processor,
    )


def _common(settings: Mapping[str, Any], folder: Path, devices: int) -> dict[str, Any]:
    if settings["batch"] % (settings["device_batch"] * devices):
        raise KitError(
            f"batch {settings['batch']} on {devices} devices of {settings['device_batch']}: wanted is a multiple"
        )
    names = ("steps", "batch", "device_batch", "warmup", "weight_decay", "checkpoint_steps", "seed")
    chosen = {name: settings[name] for name in (*names, "gradient_checkpointing")}
    dtype = dtype_of(settings, best_device())
    return vlm_fit.common(folder, rate=settings["rate"], dtype=dtype, devices=devices, **chosen)
