"""Fine-tuning and reinforcement learning with TRL's trainers: arguments, resume, time limit, evaluations.

A training has one folder: checkpoint-<step>/ (the newest two, until it ends), history.csv (a line per logged step and
evaluation), done.json (written after the weights are saved). Calling it again continues from the newest complete
checkpoint, with the same data, sampling and tau as an uninterrupted training.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from kitlib.core import storage
from kitlib.core.errors import Damaged, KitError
from kitlib.models.vlm import dataset, loading
from kitlib.models.vlm.conversation.dialogue import thinking_options
from kitlib.models.vlm.conversation.prompts import Message, assistant
from kitlib.models.vlm.conversation.recorder import Recorder, Row
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.curriculum import Curriculum
from kitlib.models.vlm.dataset import TrainingSource
from kitlib.models.vlm.grpo import PlaceTrainer
from kitlib.training.tracking import Tracker
from kitlib.vision.device import best_device, dtype_of

log = logging.getLogger(__name__)

Evaluate = Callable[[Any, int], dict[str, float]]  # of the model and the step


def fit(
    trainer: Trainer, folder: Path, tracker: Tracker, *, evaluate: Evaluate, eval_steps: int, max_hours: float | None,
    seed: int,
) -> bool:  # fmt: skip
    """Train to the end or to the time limit, for at least one step; return whether the end was reached.

    tracker: gets what the trainer logs.
    evaluate: called before the first step, every `eval_steps` steps and at the end; its scores are in history.csv. It
    leaves the random state of training unchanged.
    """
    trainer.create_model_card = lambda *_, **__: None  # type: ignore[method-assign]  # of blanks, and a folder's name
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Evaluation(evaluate, eval_steps, seed))
    trainer.add_callback(TimeLimit(folder, max_hours))
    trainer.add_callback(Tracking(tracker))
    checkpoint = newest(folder)
    if checkpoint and not isinstance(trainer.model, PeftModel):
        trainer.add_callback(RestoreWeights(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    finished = trainer.state.global_step >= trainer.state.max_steps
    if trainer.is_world_process_zero():
        write_history(folder, trainer.state.log_history)
    return finished


def finish(folder: Path, note: dict[str, Any]) -> None:
    """Mark a training whose weights are saved as done, and delete its checkpoints."""
    storage.write_json(folder / "done.json", note)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def is_done(folder: Path) -> bool:
    """Whether a training has ended and its weights are saved."""
    return (folder / "done.json").is_file()


def newest(folder: Path) -> str | None:
    """The newest whole checkpoint, None without one; damaged ones, and incomplete ones of a kill, are deleted."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            storage.read_json(path / "trainer_state.json")  # the trainer's last file
            storage.check_seal(path)
            return str(path)
        except (OSError, Damaged) as error:
            log.warning("%s is incomplete or damaged (%s); using the checkpoint before it", path.name, error)
            shutil.rmtree(path, ignore_errors=True)  # several processes delete at once
    return None


def write_history(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Write the logged lines of steps and evaluations as history.csv."""
    lines = [line for line in lines if "step" in line and "train_runtime" not in line]
    with storage.atomic_write(folder / "history.csv") as beside:
        pd.DataFrame(lines).to_csv(beside, index=False)


class Evaluation(TrainerCallback):
    """Evaluates held-out places and puts the result into the trainer's log, which checkpoints save."""

    def __init__(self, evaluate: Evaluate, every: int, seed: int) -> None:
        self.evaluate, self.every, self.seed = evaluate, every, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Before the first step."""
        if state.global_step == 0:
            self._evaluate(state, trainer["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Every so many steps, and after the last."""
        if state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0):
            self._evaluate(state, trainer["model"])

    def _evaluate(self, state: Any, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed + state.global_step)
            scores = self.evaluate(model, state.global_step)
        state.log_history.append({"step": state.global_step, **{f"eval_{name}": v for name, v in scores.items()}})
        log.info("step %d: %s", state.global_step, ", ".join(f"{name} {v:.4g}" for name, v in scores.items()))


class Tracking(TrainerCallback):
    """Passes what the trainer logs on to a tracker; the reports of transformers would tell of this machine."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def on_log(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """At every step, and once more with the times of the whole, which are left out."""
        if state.is_world_process_zero and "train_runtime" not in trainer["logs"]:
            self.tracker.log(trainer["logs"], state.global_step)


class RestoreWeights(TrainerCallback):
    """Restores the weights of a model without an adapter from a checkpoint.

    The trainer itself does not find them: saving renames Qwen's weights, and loading them by name restores nothing.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        # The trainer's warning about missing keys does not apply, as they are restored here.
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """After the trainer's own attempt."""
        model = trainer["model"]
        saved = type(model).from_pretrained(self.checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


class TimeLimit(TrainerCallback):
    """Saves and stops when the time is over, and writes the history with every checkpoint."""

    def __init__(self, folder: Path, max_hours: float | None) -> None:
        self.folder = folder
        self.deadline = None if max_hours is None else time.monotonic() + max_hours * 3600

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Save and stop after the deadline."""
        if self.deadline is None or state.global_step == state.max_steps:
            return control
        over = torch.tensor(float(time.monotonic() > self.deadline), device=args.device)
        if torch.distributed.is_initialized():  # all stop after the same step, or some would wait forever
            torch.distributed.broadcast(over, 0)
        if over:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With every checkpoint, when all processes have written their parts of it."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            loading.remove_local_paths(self.folder / f"checkpoint-{state.global_step}")
            storage.seal(self.folder / f"checkpoint-{state.global_step}")
            write_history(self.folder, state.log_history)


def check_length(settings: Mapping[str, Any], task: Task, source: TrainingSource, processor: Any) -> None:
    """Raise KitError if a target reply is longer than replies may be: it would be taught whole, and always cut."""
    truths = [] if source.cases is None else source.cases.truths[:100]
    replies = [task.example(source.views, truth, seed)[1] for seed, truth in enumerate(truths)]
    lengths = [len(processor.tokenizer.encode(reply, add_special_tokens=False)) for reply in replies]
    if (longest := max(lengths, default=0)) > (allowed := settings["reply_tokens"]):
        reply = replies[lengths.index(longest)]
        raise KitError(f"reply_tokens: expected at least {longest} for replies such as {reply!r}; got {allowed}")


def sft(
    settings: Mapping[str, Any], model: Any, processor: Any, task: Task, source: TrainingSource, folder: Path,
    devices: int,
) -> Trainer:  # fmt: skip
    """The trainer for fine-tuning on a task's target replies."""
    task = task.with_options(reasoning=False)  # target replies have no reasoning

    def extend(row: Row) -> Row:
        messages, reply = dataset.example(task, source.views, row, settings["seed"])
        return example(processor, messages, reply, row["images"])

    return fine_tuner(settings, model, processor, source.rows(settings, extend), folder, devices)


def example(processor: Any, messages: Sequence[Message], reply: str, images: Sequence[Any]) -> Row:
    """A row of fine-tuning: the dialogue so far, the reply that is taught, and the pictures."""
    options = thinking_options(processor, False)
    taught = {"prompt": messages, "completion": [assistant(reply)], "images": images}
    return taught | ({"chat_template_kwargs": options} if options else {})


def fine_tuner(
    settings: Mapping[str, Any], model: Any, processor: Any, rows: Any, folder: Path, devices: int
) -> Trainer:
    """The trainer for fine-tuning on a table or a stream of examples; only the reply's tokens are in the loss."""
    # No max_length: it would cut the tokens of pictures off.
    arguments = SFTConfig(**_arguments(settings, folder, devices), max_length=None)
    return SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)


def grpo(
    settings: Mapping[str, Any], model: Any, processor: Any, task: Task, source: TrainingSource, folder: Path,
    devices: int, recorder: Recorder,
) -> Trainer:  # fmt: skip
    """The trainer for reinforcement learning in the task's environment; recorder: for the dialogues of every step."""

    def extend(row: Row) -> Row:
        form, truth = task.form, row["truth"]
        row = row | {"prompt": task.open_final(source.views, truth).messages()}
        if settings["sft_weight"]:
            row["reply"] = form.write(truth) if form.known(truth) == form else None
        return row

    suppressed = loading.suppressed_tokens(processor.tokenizer)
    # vLLM has no suppress_tokens; a bias this low has the same effect.
    generation = {"logit_bias": dict.fromkeys(suppressed, -100.0)} if settings["vllm"] else {}
    arguments = GRPOConfig(
        **_arguments(settings, folder, devices),
        num_generations=settings["group"],
        max_completion_length=settings["reply_tokens"],
        temperature=settings["temperature"],
        chat_template_kwargs=thinking_options(processor, settings["reasoning"]),
        generation_kwargs=generation or {"suppress_tokens": suppressed},
        beta=settings["kl"],
        scale_rewards=settings["scale"],
        use_vllm=settings["vllm"],
    )
    rows = source.rows(settings, extend)
    strength = settings["curriculum"]
    return PlaceTrainer(
        dtype=dtype_of(settings, best_device()),
        sft_weight=settings["sft_weight"],
        curriculum=Curriculum(len(rows), strength, settings["seed"]) if strength else None,
        task=task,
        views=source.views,
        seed=settings["seed"],
        recorder=recorder,
        credit_turns=settings["credit"] == "turn",
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=processor,
    )


def _arguments(settings: Mapping[str, Any], folder: Path, devices: int) -> dict[str, Any]:
    """The arguments that TRL's trainers share: mixed precision, a cosine schedule, no reports to services."""
    device, batch, device_batch = best_device(), settings["batch"], settings["device_batch"]
    if batch % (device_batch * devices):
        raise KitError(f"batch: expected a multiple of {device_batch} on each of {devices} devices; got {batch}")
    dtype = dtype_of(settings, device)
    return {
        "output_dir": str(folder),
        "max_steps": settings["steps"],
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": batch // (device_batch * devices),
        "learning_rate": settings["rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(settings["warmup"] * settings["steps"]),
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": 1.0,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "save_steps": settings["checkpoint_steps"],
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": settings["seed"],
        "data_seed": settings["seed"],
        "eval_strategy": "no",
    }
