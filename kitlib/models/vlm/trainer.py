"""Fine-tuning and reinforcement learning by TRL's trainers as the kit uses them: arguments, resume, time, evaluations.

A fit lives in one folder: checkpoint-<step>/ (the newest two, until it ends), history.csv (a line a logged step and
evaluation), done.json (written when what was learned is saved). Calling it again goes on from the newest whole
checkpoint; data, sampling and tau are then those of a fit that was never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.models.vlm import dataset, loading
from kitlib.models.vlm.conversation.prompts import assistant
from kitlib.models.vlm.conversation.recorder import Recorder, Row
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.grpo import PlaceTrainer
from kitlib.vision.device import best_device, dtype_of

log = logging.getLogger(__name__)

Evaluate = Callable[[Any, int], dict[str, float]]  # of the model and the step


def common(
    folder: Path,
    *,
    steps: int,
    batch: int,
    device_batch: int,
    rate: float,
    warmup: float,
    weight_decay: float,
    checkpoint_steps: int,
    gradient_checkpointing: bool,
    seed: int,
    dtype: torch.dtype,
    devices: int = 1,
) -> dict[str, Any]:
    """The arguments that TRL's trainers share: mixed precision in `dtype`, a cosine, nothing reported anywhere."""
    device = best_device()
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": max(1, batch // (device_batch * devices)),
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(warmup * steps),
        "weight_decay": weight_decay,
        "max_grad_norm": 1.0,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": gradient_checkpointing,
        "save_steps": checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": seed,
        "data_seed": seed,
        "eval_strategy": "no",
    }


def fit(
    trainer: Trainer, folder: Path, *, evaluate: Evaluate, eval_steps: int, max_hours: float | None, seed: int
) -> bool:
    """Train to the end, or until the hours are over; False when it is not at its end. At least one step is made.

    evaluate: called before the first step, every `eval_steps` steps and at the end; what it returns is in history.csv.
    It cannot change what is learned: the random numbers of training go on as if it had not been.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(HeldOut(evaluate, eval_steps, seed))
    trainer.add_callback(Clock(folder, max_hours))
    checkpoint = newest(folder)
    if checkpoint and not isinstance(trainer.model, PeftModel):
        trainer.add_callback(Restored(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    finished = trainer.state.global_step >= trainer.state.max_steps
    if trainer.is_world_process_zero():
        write_history(folder, trainer.state.log_history)
    return finished


def finish(folder: Path, note: dict[str, Any]) -> None:
    """Mark a fit whose weights are saved as done, and drop its checkpoints."""
    storage.write_json(folder / "done.json", note)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def is_done(folder: Path) -> bool:
    """Whether a fit is at its end, its weights saved."""
    return (folder / "done.json").is_file()


def newest(folder: Path) -> str | None:
    """The newest whole checkpoint, None without one; what a killed process left of one is swept away."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())  # written last
            return str(path)
        except (OSError, ValueError):
            log.warning("%s is not whole, perhaps it was cut short; going back to the one before it", path.name)
            shutil.rmtree(path, ignore_errors=True)  # several processes sweep at once
    return None


def write_history(folder: Path, lines: list[dict[str, Any]]) -> None:
    """What was logged, a line a step and an evaluation, as history.csv."""
    kept = [line for line in lines if "step" in line and "train_runtime" not in line]
    with storage.atomic_write(folder / "history.csv") as beside:
        pd.DataFrame(kept).to_csv(beside, index=False)


class HeldOut(TrainerCallback):
    """Evaluates on held-out places, and puts the result into the trainer's log, which checkpoints keep."""

    def __init__(self, evaluate: Evaluate, every: int, seed: int) -> None:
        self.evaluate, self.every, self.seed = evaluate, every, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Before the first step."""
        if state.global_step == 0:
            self._look(state, known["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Every so many steps, and after the last."""
        if state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0):
            self._look(state, known["model"])

    def _look(self, state: Any, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed + state.global_step)
            seen = self.evaluate(model, state.global_step)
        state.log_history.append({"step": state.global_step, **{f"eval_{name}": v for name, v in seen.items()}})
        log.info("step %d: %s", state.global_step, ", ".join(f"{name} {v:.4g}" for name, v in seen.items()))


class Restored(TrainerCallback):
    """Restores all weights of a whole model from a checkpoint.

    The trainer reads the files as they are, but saving has given Qwen's weights other names, and it goes on with the
    weights it has.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        # What it then says of missing keys is put right here.
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """After the trainer's own attempt."""
        model = known["model"]
        saved = type(model).from_pretrained(self.checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


class Clock(TrainerCallback):
    """Stops in time with everything saved, and writes the history as it grows."""

    def __init__(self, folder: Path, max_hours: float | None) -> None:
        self.folder = folder
        self.deadline = None if max_hours is None else time.monotonic() + max_hours * 3600

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """When the hours are over: save, stop."""
        if self.deadline is None or state.global_step == state.max_steps:
            return control
        over = torch.tensor(float(time.monotonic() > self.deadline), device=args.device)
        if torch.distributed.is_initialized():  # all stop after the same step, or some would wait for ever
            torch.distributed.broadcast(over, 0)
        if over:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With every checkpoint."""
        if state.is_world_process_zero:
            write_history(self.folder, state.log_history)


@dataclass(frozen=True)
class Lesson:
    """What a trainer learns from: cases, or a stream by its name with the names of its views."""

    cases: Cases | None
    stream: str
    views: Sequence[str]

    def rows(self, settings: Mapping[str, Any], extend: Callable[[Row], Row]) -> Any:
        """A table or a stream of rows, each with what `extend` adds."""
        if self.cases is not None:
            return dataset.table_of(self.cases, extend)
        return dataset.streamed(
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

    silent = loading.silent_tokens(processor.tokenizer)
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
    return common(folder, rate=settings["rate"], dtype=dtype, devices=devices, **chosen)
