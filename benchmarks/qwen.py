"""Measure speed and memory of Qwen2.5-VL-3B in training and guessing on this GPU, with random weights, no download.

    python benchmarks/qwen.py                       # the 3B shape; without a GPU two layers, to see that it runs
    python benchmarks/qwen.py --shape 3b --steps 8

The drawn sample's four views at 448 px, LoRA of rank 16, gradient checkpointing; fine-tuning, then GRPO with groups of
8 and replies of 64 tokens. Tokens are those of the training steps, prompts and pictures included; the first step is
left out as a warm-up. Random weights earn no reward, which costs as much time as earning one. Last, the guesses about a
few places: 8 dialogues that share one pass over the prompt, and 8 that each have their own. Weights take 8 GB of disk
while it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import PrinterCallback, TrainerCallback

from kitlib.data import pictures, readers
from kitlib.data.places import Places
from kitlib.data.sample import competition as sample
from kitlib.models.vlm import config as vlm_config
from kitlib.models.vlm import dataset, guessing, loading, session, tiny_model
from kitlib.models.vlm import trainer as vlm_trainers
from kitlib.models.vlm.conversation.dialogue import converse, with_pictures
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.generation import Sampler
from kitlib.vision.device import best_device, best_dtype, precision_of

TEXT: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SMALL = TEXT | {"vocab_size": 2000, "num_hidden_layers": 2, "intermediate_size": 512}
SHAPES = {"3b": (TEXT, VISION), "small": (SMALL, VISION | {"depth": 2, "fullatt_block_indexes": [1]})}
CONFIG = vlm_config.Config(batch=16, device_batch=4, group=8, max_side=448, eval_steps=0, warmup=0.0)
SIZES: dict[str, dict[str, int]] = {"3b": {}, "small": {"batch": 8, "max_side": 56, "reply_tokens": 8}}
GIB = 2**30


class Meter(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Note the time once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended.append(time.perf_counter())


def build(shape: str, folder: Path) -> None:
    """Write a model of that shape with random weights, and its processor."""
    text, vision = SHAPES[shape]
    processor = tiny_model.build("qwen2.5")[1]
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # as published
    tokenizer = processor.tokenizer
    ids = tiny_model.picture_tokens(tokenizer)
    text = text | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    device = best_device()
    with device:
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=best_dtype(device))
    print(f"{shape}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion weights, {model.dtype}, {device}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(shape: str, method: str, published: Path, data: Places, steps: int, folder: Path) -> None:
    """Time a few steps of a method on a new adapter."""
    config = dataclasses.replace(CONFIG, model=f"hf:{published}", method=method, steps=steps, **SIZES[shape])  # type: ignore[arg-type]
    settings = vars(config) | {"rate": 1e-5, "precision": precision_of(best_dtype(best_device()))}
    task = session.task_of(config, data)
    model, processor = loading.load(config.model, best_dtype(best_device()))
    model = loading.adapt(model, config.lora_rank)
    pack = pictures.pack(data, "train")
    cases = dataset.places_cases(data, pack, np.arange(len(pack.sample_id)), config.max_side)
    source = vlm_trainers.TrainingSource(cases, "", data.views)
    args = (settings, model, processor, task, source, folder / method, 1)
    recorder = Recorder(None, config.environment)
    trainer = vlm_trainers.sft(*args) if method == "sft" else vlm_trainers.grpo(*args, recorder)
    meter = Meter()
    trainer.add_callback(meter)
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    tokens = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
    seconds = meter.ended[-1] - meter.ended[0]
    peak = f", {torch.cuda.max_memory_allocated() / GIB:.1f} GiB at the peak" if torch.cuda.is_available() else ""
    print(
        f"  {method}: {(tokens[-1] - tokens[0]) / seconds:,.0f} tokens a second,"
        f" {seconds / (steps - 1):.1f} s a step of {config.batch} replies{peak}",
        flush=True,
    )


def guess(shape: str, published: Path, data: Places, n_places: int = 4) -> None:
    """Time guesses with one pass over the prompt per place, and with one per dialogue; the first round is a warm-up."""
    config = dataclasses.replace(CONFIG, model=f"hf:{published}", **SIZES[shape])  # type: ignore[arg-type]
    model, processor = loading.load(config.model, best_dtype(best_device()))
    sampler = Sampler(model.to(best_device()), processor, config.reply_tokens, dtype=best_dtype(best_device()))
    task, pack = session.task_of(config, data), pictures.pack(data, "train")
    cases = dataset.places_cases(data, pack, np.arange(n_places), config.max_side)

    def shared() -> None:
        guessing.generate(cases, task, sampler, config.samples, n_places * config.samples)

    def alone() -> None:
        envs = [task.open_for_guess(cases.views, truth) for truth in cases.truths for _ in range(config.samples)]
        images = [cases.show(i) for i in range(n_places) for _ in range(config.samples)]
        prompts = [with_pictures(env.messages(), views) for env, views in zip(envs, images, strict=True)]
        converse(envs, sampler.prefill(prompts), processor)

    took: dict[str, list[float]] = {"shared": [], "alone": []}
    for _ in range(4):
        for name, way in (("shared", shared), ("alone", alone)):
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took[name].append(time.perf_counter() - began)
    once, each = (float(np.median(times[1:])) / n_places for times in took.values())
    hours = once * 16_495 / 3600
    print(f"  guesses: {once:.2f} s a place ({hours:.1f} h for 16,495), {each / once:.1f} times that without sharing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="3b" if torch.cuda.is_available() else "small")
    parser.add_argument("--steps", type=int, default=5 if torch.cuda.is_available() else 2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    hf.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ["KITLIB_HOME"] = temporary
        data = readers.read(sample.draw(home / "drawn", n_train=80, n_test=1, size=448) / "kaggle_dataset")
        build(args.shape, home / "published")
        for method in ("sft", "grpo"):
            measure(args.shape, method, home / "published", data, args.steps, home)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        guess(args.shape, home / "published", data)


if __name__ == "__main__":
    main()
