"""Reinforcement learning on Tinker's machines, an engine beside TRL's: the same conversations, the same rollouts.

    batches = Batches(cases, task, renderer(QWEN), steps=100, places=32, group=8, recorder=recorder)
    train(batches, QWEN, folder)                    # tinker-cookbook's own loop; the page of `watch` shows it
    client = sampling_client(QWEN, folder)          # as trained so far
    played = await rollout(batches.get_batch(0)[0], client, max_tokens=64)             # one group, by hand

Needed are the extra `tinker` (tinker 0.38, tinker-cookbook 0.6.1) and TINKER_API_KEY in the environment, from where the
library reads it: the kit neither keeps nor writes it. Nothing of the extra is imported before it is used.
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
from kitlib.models.vlm.conversation.dialogue import Talk, Tokens
from kitlib.models.vlm.conversation.tasks import STEPS, Task
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.tinker.environments import (
    Batches,
    Group,
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
    """One reply: the prompt, its tokens and their log-probabilities (None where the client gives none), the result."""

    observation: Observation
    tokens: Tokens
    logprobs: list[float] | None
    result: StepResult


@dataclass
class Played:
    """A group that was played: conversations (G,), their turns (G, T), advantages (G,)."""

    talks: list[Talk]
    turns: list[list[Turn]]
    advantages: np.ndarray


async def rollout(
    group: Group, client: Any, *, max_tokens: int, temperature: float = 1.0, top_p: float = 1.0
) -> Played:
    """Play a group against a sampling client, all conversations at once, and record it where the group has a book.

    client: with SamplingClient's `sample(prompt=, num_samples=, sampling_params=)`, to be awaited; the response has
    sequences with tokens and logprobs. max_tokens: of a reply. Raises KitError without tinker.
    """
    parameters = _library("tinker").SamplingParams

    async def play(env: PlaceEnv) -> list[Turn]:
        turns: list[Turn] = []
        observation, stop = await env.initial_observation()
        while not env.talk.done:
            how = parameters(max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=stop)
            response = await client.sample(prompt=observation, num_samples=1, sampling_params=how)
            [said] = response.sequences
            result = await env.step(list(said.tokens))
            logprobs = None if said.logprobs is None else list(said.logprobs)
            turns.append(Turn(observation, list(said.tokens), logprobs, result))
            observation, stop = result.next_observation, result.next_stop_condition
        return turns

    envs = await group.make_envs()
    turns = await asyncio.gather(*(play(env) for env in envs))
    await group.compute_group_rewards(turns, envs)
    talks = [env.talk for env in envs]
    return Played(talks, list(turns), advantages([talk.reward for talk in talks]))


def _library(name: str) -> Any:
    """A module of tinker or of its cookbook. Raises KitError where they are not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        told = "in the kit's folder, pip install -e '.[tinker]' (or uv pip install)"
        raise KitError(f"{name.split('.')[0]} is not installed: {told}") from None


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
    """A client that speaks as a training in `folder` left the model; as published where there is none yet."""
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
) -> list[list[Talk]]:
    """For each of N cases `samples` conversations as at the end of training, as `vlm_guess.sampled` has them."""

    async def play(start: int) -> list[Played]:
        rows = [cases.row(i) for i in range(start, min(start + places_at_once, len(cases)))]
        rows = [row if row["truth"].point is not None else row | {"truth": task.blank()} for row in rows]
        shared = (cases.views, task, renderer, samples, STEPS - 1, STEPS)
        groups = [Group(row, *shared, start + i) for i, row in enumerate(rows)]
        how = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        return await asyncio.gather(*(rollout(group, client, **how) for group in groups))  # type: ignore[arg-type]

    chunks = [_apart(play(start)) for start in range(0, len(cases), places_at_once)]
    return [played.talks for chunk in chunks for played in chunk]


def renderer(model: str, name: str = "") -> Renderer:
    """The cookbook's renderer of a vision-language model that Tinker has; its tokenizer comes from the hub.

    name: of the renderer, by default the one that the cookbook recommends first, which may let the model think. Raises
    KitError without the library, for a model that Tinker does not have, and for one that sees no pictures.
    """
    info, cookbook = _library("tinker_cookbook.model_info"), _library("tinker_cookbook.renderers")
    tokens, pictures = _library("tinker_cookbook.tokenizer_utils"), _library("tinker_cookbook.image_processing_utils")
    try:
        known = info.get_model_attributes(model)
    except (KeyError, ValueError):
        known = None
    if known is None or not known.is_vl:
        raise KitError(f"model {model!r}: allowed are vision-language models that Tinker has, such as {QWEN}")
    chosen = name or known.recommended_renderers[0]
    return cookbook.get_renderer(chosen, tokens.get_tokenizer(model), pictures.get_image_processor(model), model)


def train(
    batches: Batches,
    model: str,
    folder: str | Path,
    *,
    rate: float = 1e-5,
    lora_rank: int = 16,
    max_tokens: int = 64,
    temperature: float = 1.0,
) -> None:
    """Train a model on all batches by the cookbook's loop, LoRA alone; called again it goes on from its checkpoint.

    folder: of the cookbook's metrics and of the names of its checkpoints, which stay with Tinker; it notes paths of
    this machine there, so share the rollouts, not this. rate: of Adam. max_tokens: of a reply. Raises KitError without
    the library or the key.
    """
    check()
    cookbook = _library("tinker_cookbook.rl.train")
    config = cookbook.Config(
        learning_rate=rate,
        dataset_builder=dataset_builder(batches),
        model_name=model,
        recipe_name="kitlib",
        max_tokens=max_tokens,
        temperature=temperature,
        lora_rank=lora_rank,
        log_path=str(folder),
        num_groups_to_log=0,  # the batches' recorder keeps what was said
        rollout_json_export=False,
    )
    try:
        _apart(cookbook.main(config))
    finally:
        if batches.book is not None:
            batches.book.close()


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run in a thread of its own: a notebook's own thread already runs a loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def dataset_builder(batches: Batches) -> Any:
    """Batches as the cookbook's RLDatasetBuilder, for a config of one's own. Raises KitError without the library."""
    chz, types = _library("chz"), _library("tinker_cookbook.rl.types")

    @chz.chz
    class Ready(types.RLDatasetBuilder):  # type: ignore[name-defined]
        async def __call__(self) -> tuple[Batches, None]:
            return batches, None

    return Ready()
