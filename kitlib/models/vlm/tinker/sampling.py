"""Dialogues with a model at Tinker, played turn by turn.

replies = sampled(cases, task, renderer, model, newest(folder), samples=8, max_tokens=64, temperature=0.7)
played = await rollout(dataset.get_batch(0)[0], client, max_tokens=64)             # one group
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np

from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens
from kitlib.models.vlm.conversation.tasks import STEPS, Task
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.tinker.client import connect, library, run_in_thread
from kitlib.models.vlm.tinker.environments import Group, Observation, PlaceEnv, Renderer, StepResult, advantages

AT_ONCE = 32  # places whose replies are sampled at a time


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
    parameters = library("tinker").SamplingParams

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


def sampled(
    cases: Cases, task: Task, renderer: Renderer, model: str, address: str, samples: int, **options: Any
) -> list[list[Dialogue]]:
    """As `play`, with the weights of a checkpoint, those of the published model for ""."""

    async def work() -> list[list[Dialogue]]:
        with connect() as service:
            weights = {"model_path": address} if address else {"base_model": model}
            client = await service.create_sampling_client(**weights)
            return await play(cases, task, renderer, client, samples, **options)

    return run_in_thread(work())


async def play(
    cases: Cases,
    task: Task,
    renderer: Renderer,
    client: Any,
    samples: int,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
) -> list[list[Dialogue]]:
    """For each of N cases `samples` dialogues as at the end of training, `AT_ONCE` cases at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def play_one(i: int) -> list[Dialogue]:
        async with turn:
            row = await asyncio.to_thread(cases.row, i)  # pictures are decoded while others wait for the service
            row |= {"truth": task.placeholder()} if row["truth"].point is None else {}
            group = Group(row, cases.views, task, renderer, samples, STEPS - 1, STEPS, i)
            options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
            return (await rollout(group, client, **options)).dialogues

    return await asyncio.gather(*(play_one(i) for i in range(len(cases))))
