"""Reinforcement learning on Tinker's machines, with the same dialogues and rollouts as TRL's trainer.

    dataset = GroupDataset(cases, task, renderer(QWEN), steps=100, places=32, group=8, recorder=recorder)
    train(dataset, QWEN, folder)                    # tinker-cookbook's own loop; `kitlib watch` shows it
    client = sampling_client(QWEN, folder)          # of the newest checkpoint
    played = await rollout(dataset.get_batch(0)[0], client, max_tokens=64)             # one group

It needs the extra `tinker` (tinker 0.38, tinker-cookbook 0.6.1), imported on first use, and TINKER_API_KEY in the
environment, where the library reads it; the kit neither stores nor writes the key.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens
from kitlib.models.vlm.conversation.tasks import STEPS, Task
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.tinker.environments import (
    Group,
    GroupDataset,
    Observation,
    PlaceEnv,
    Renderer,
    StepResult,
    advantages,
)

T = TypeVar("T")

KEY = "TINKER_API_KEY"
QWEN = "Qwen/Qwen3-VL-30B-A3B-Instruct"


@dataclass
class Turn:
    """One reply: the prompt, the reply's tokens and their log-probabilities if the client gives them, the result."""

    observation: Observation
    tokens: Tokens
    logprobs: list[float] | None
    result: StepResult


@dataclass
class PlayedGroup:
    """The result of a group: dialogues (G,), their turns (G, T), advantages (G,)."""

    dialogues: list[Dialogue]
    turns: list[list[Turn]]
    advantages: np.ndarray


async def rollout(
    group: Group, client: Any, *, max_tokens: int, temperature: float = 1.0, top_p: float = 1.0
) -> PlayedGroup:
    """Play a group against a sampling client, all dialogues at once, and record it if the group has a buffer.

    client: has SamplingClient's awaitable `sample(prompt=, num_samples=, sampling_params=)`, whose response has
    sequences with tokens and logprobs. max_tokens: of a reply. Raises KitError without tinker.
    """
    parameters = _library("tinker").SamplingParams

    async def play(env: PlaceEnv) -> list[Turn]:
        turns: list[Turn] = []
        observation, stop = await env.initial_observation()
        while not env.dialogue.done:
            options = parameters(max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=stop)
            response = await client.sample(prompt=observation, num_samples=1, sampling_params=options)
            [reply] = response.sequences
            result = await env.step(list(reply.tokens))
            logprobs = None if reply.logprobs is None else list(reply.logprobs)
            turns.append(Turn(observation, list(reply.tokens), logprobs, result))
            observation, stop = result.next_observation, result.next_stop_condition
        return turns

    envs = await group.make_envs()
    turns = await asyncio.gather(*(play(env) for env in envs))
    await group.compute_group_rewards(turns, envs)
    dialogues = [env.dialogue for env in envs]
    return PlayedGroup(dialogues, list(turns), advantages([dialogue.reward for dialogue in dialogues]))


def _library(name: str) -> Any:
    """A module of tinker or of its cookbook. Raises KitError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        command = "in the kit's folder, pip install -e '.[tinker]' (or uv pip install)"
        raise KitError(f"{name.split('.')[0]} is not installed: {command}") from None


def check() -> None:
    """Raise KitError without the library, and without TINKER_API_KEY in the environment."""
    _library("tinker")
    if not os.environ.get(KEY):
        raise KitError(
            f"{KEY} is not set: make a key in Tinker's console and put it into the environment, nowhere else"
        )


def connect() -> Any:
    """Tinker's ServiceClient. Raises KitError without the library, and without TINKER_API_KEY in the environment."""
    check()
    return _library("tinker").ServiceClient()


def sampling_client(model: str, folder: Path) -> Any:
    """A sampling client for the newest checkpoint of the training in `folder`, or else for the published model."""
    service, saved = connect(), None
    if folder.is_dir():
        saved = _library("tinker_cookbook.checkpoint_utils").get_last_checkpoint(str(folder), "sampler_path")
    if saved is None:
        return service.create_sampling_client(base_model=model)
    return service.create_sampling_client(model_path=saved.sampler_path)


def sampled(
    cases: Cases,
    task: Task,
    renderer: Renderer,
    client: Any,
    samples: int,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    places_at_once: int = 32,
) -> list[list[Dialogue]]:
    """For each of N cases `samples` dialogues as at the end of training; see `guessing.generate`."""

    async def play(start: int) -> list[PlayedGroup]:
        rows = [cases.row(i) for i in range(start, min(start + places_at_once, len(cases)))]
        rows = [row if row["truth"].point is not None else row | {"truth": task.placeholder()} for row in rows]
        shared = (cases.views, task, renderer, samples, STEPS - 1, STEPS)
        groups = [Group(row, *shared, start + i) for i, row in enumerate(rows)]
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        return await asyncio.gather(*(rollout(group, client, **options) for group in groups))

    chunks = [_run_in_thread(play(start)) for start in range(0, len(cases), places_at_once)]
    return [played.dialogues for chunk in chunks for played in chunk]


def renderer(model: str, name: str = "") -> Renderer:
    """The cookbook's renderer of a vision-language model that Tinker has; its tokenizer comes from the hub.

    name: of the renderer, by default the cookbook's first recommendation, which may allow reasoning. Raises KitError
    without the library, for a model that Tinker does not have, and for one without vision.
    """
    info, cookbook = _library("tinker_cookbook.model_info"), _library("tinker_cookbook.renderers")
    tokenizers, images = _library("tinker_cookbook.tokenizer_utils"), _library("tinker_cookbook.image_processing_utils")
    try:
        attributes = info.get_model_attributes(model)
    except (KeyError, ValueError):
        attributes = None
    if attributes is None or not attributes.is_vl:
        raise KitError(f"model: expected a vision-language model that Tinker has, such as {QWEN}; got {model!r}")
    chosen = name or attributes.recommended_renderers[0]
    return cookbook.get_renderer(chosen, tokenizers.get_tokenizer(model), images.get_image_processor(model), model)


def train(
    dataset: GroupDataset,
    model: str,
    folder: str | Path,
    *,
    rate: float = 1e-5,
    lora_rank: int = 16,
    max_tokens: int = 64,
    temperature: float = 1.0,
) -> None:
    """Train LoRA weights with the cookbook's loop; called again it continues from its newest checkpoint.

    folder: of the cookbook's metrics and the names of its checkpoints, which stay at Tinker; it holds paths of this
    machine, so share the rollouts instead. rate: of Adam. max_tokens: of a reply. Raises KitError without the library
    or the key.
    """
    check()
    cookbook = _library("tinker_cookbook.rl.train")
    config = cookbook.Config(
        learning_rate=rate,
        dataset_builder=dataset_builder(dataset),
        model_name=model,
        recipe_name="kitlib",
        max_tokens=max_tokens,
        temperature=temperature,
        lora_rank=lora_rank,
        log_path=str(folder),
        num_groups_to_log=0,  # the dataset's recorder writes the replies
        rollout_json_export=False,
    )
    try:
        _run_in_thread(cookbook.main(config))
    finally:
        if dataset.buffer is not None:
            dataset.buffer.close()


def _run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a new thread because a notebook's own thread already runs an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def dataset_builder(dataset: GroupDataset) -> Any:
    """The dataset as the cookbook's RLDatasetBuilder. Raises KitError without the library."""
    chz, types = _library("chz"), _library("tinker_cookbook.rl.types")

    @chz.chz
    class Ready(types.RLDatasetBuilder):  # type: ignore[name-defined]
        async def __call__(self) -> tuple[GroupDataset, None]:
            return dataset, None

    return Ready()
