"""The kit's dialogues as tinker-cookbook's environments: tokens in, rewards and prompts out.

    dataset = GroupDataset(CaseBatches(cases, 32, seed=0), task, renderer, steps=100, group=8, recorder=recorder)
    group = dataset.get_batch(0)[0]                 # EnvGroupBuilder: G dialogues about one place
    env = (await group.make_envs())[0]              # Env
    prompt, stop = await env.initial_observation()

The interfaces are those of tinker-cookbook 0.6.1: Env, StepResult, EnvGroupBuilder and RLDataset of its rl.types,
SupervisedDataset of its supervised.types, and the Renderer of its renderers. This module imports neither the cookbook
nor tinker; `client` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens, with_pictures
from kitlib.models.vlm.conversation.prompts import Message, assistant
from kitlib.models.vlm.conversation.recorder import Recorder, Row, StepBuffer
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import example
from kitlib.models.vlm.tinker.batches import Batches

Observation = Any  # tinker.ModelInput: chunks of tokens and of pictures
Stop = Sequence[str] | Sequence[int]


class Renderer(Protocol):
    """The part of the cookbook's renderers that the kit uses: messages to a prompt, and the ends of a reply."""

    tokenizer: Any

    def build_generation_prompt(self, messages: list[Message]) -> Observation:
        """The prompt, up to where the reply begins."""

    def get_stop_sequences(self) -> Stop:
        """The tokens or texts that end a reply."""


@dataclass
class StepResult:
    """The cookbook's class of this name; after the last reply the observation stays the same."""

    reward: float
    episode_done: bool
    next_observation: Observation
    next_stop_condition: Stop
    metrics: dict[str, float] = field(default_factory=dict)
    logs: dict[str, str | float] = field(default_factory=dict)


class PlaceEnv:
    """A dialogue as the cookbook's Env: tokens in; reward, next observation and stop condition out.

    It lasts one episode. Replies stay in the messages unchanged, with their reasoning. Where the renderer writes an
    earlier reply as it was sampled, the cookbook trains on all turns as one sequence, otherwise turn by turn.
    """

    def __init__(self, dialogue: Dialogue, images: Sequence[Any], renderer: Renderer) -> None:
        """dialogue: a new one. images: of the views (V,)."""
        self.dialogue, self.renderer = dialogue, renderer
        self.observation: Observation = None  # the rendered prompt of the current turn
        self.messages = with_pictures(dialogue.env.messages(), images)

    async def initial_observation(self) -> tuple[Observation, Stop]:
        """The first prompt and the stop condition."""
        if self.observation is None:
            await self._render()
        return self.observation, self.renderer.get_stop_sequences()

    async def step(self, action: Tokens, *, extra: Any = None) -> StepResult:
        """Take a reply, also one that was cut short. Raises KitError when the episode is over."""
        reply = self.renderer.tokenizer.decode(action, skip_special_tokens=True)
        message = self.dialogue.add_reply(reply)
        if message is not None:
            self.messages += [assistant(reply), message]
            await self._render()
        state = self.dialogue.rewards[-1], self.dialogue.done, self.observation, self.renderer.get_stop_sequences()
        return StepResult(*state, metrics=self.dialogue.metrics[-1], logs={"reply": reply})

    async def _render(self) -> None:
        """Render in a thread: pictures are compressed again, and other dialogues need not wait for that."""
        self.observation = await asyncio.to_thread(self.renderer.build_generation_prompt, self.messages)


@dataclass
class Group:
    """Dialogues about one place as the cookbook's EnvGroupBuilder.

    case, views, step, n_steps: as for `Task.open`. number: of the place in its step, for the seeds.
    """

    case: Row
    views: Sequence[str]
    task: Task
    renderer: Renderer
    size: int
    step: int
    n_steps: int
    number: int = 0
    seed: int = 0
    buffer: StepBuffer | None = None

    async def make_envs(self) -> list[PlaceEnv]:
        """New environments, which share the first prompt. Raises KitError for a place that cannot be graded."""
        seeds = np.random.SeedSequence([self.seed, self.step, self.number]).generate_state(self.size)
        envs = [self.task.open(self.views, self.case["truth"], self.step, self.n_steps, int(seed)) for seed in seeds]
        first, *others = (PlaceEnv(Dialogue(env, []), self.case["images"], self.renderer) for env in envs)
        prompt, _ = await first.initial_observation()
        for env in others:
            env.observation = prompt
        return [first, *others]

    async def compute_group_rewards(
        self, trajectory_group: Sequence[Any], env_group: Sequence[PlaceEnv]
    ) -> list[tuple[float, dict[str, float]]]:
        """No reward beyond the turns'; the dialogues go to the buffer."""
        dialogues = [env.dialogue for env in env_group if env.dialogue.replies]
        if self.buffer is not None and dialogues:
            above_mean = advantages([dialogue.reward for dialogue in dialogues]).tolist()
            tau_km = self.task.tau_km(self.step, self.n_steps)
            self.buffer.add(self.step, self.case, dialogues, tau_km, above_mean)
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:
        """There is nothing to clean up."""

    def logging_tags(self) -> list[str]:
        """The tags by which the cookbook aggregates its metrics."""
        return [self.task.options.environment]


class GroupDataset:
    """Groups by step as the cookbook's RLDataset.

    batches: of places, a group each. group: dialogues about a place. recorder: gets the dialogues. step: the optimizer
    steps made when the cookbook evaluates next. Raises KitError for numbers out of range.
    """

    def __init__(
        self,
        batches: Batches,
        task: Task,
        renderer: Renderer,
        *,
        steps: int,
        group: int,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        if steps < 1 or group < 2:
            raise KitError(f"steps, group: expected at least 1 step and groups of at least 2; got {steps}, {group}")
        self.batches, self.task, self.renderer = batches, task, renderer
        self.steps, self.group, self.seed, self.step = steps, group, seed, 0
        self.buffer = StepBuffer(recorder, batches.size) if recorder is not None else None

    def __len__(self) -> int:
        return self.steps

    def get_batch(self, index: int) -> list[Group]:
        """The groups of a step, 0 to len - 1, one place each; the same at every call."""
        self.step = index + 1  # the cookbook evaluates before it asks for the next batch
        shared = (self.batches.views, self.task, self.renderer, self.group, index, self.steps)
        return [Group(row, *shared, n, self.seed, self.buffer) for n, row in enumerate(self.batches(index))]


class ExampleDataset:
    """Target replies by step as the cookbook's SupervisedDataset.

    datum: makes the cookbook's example of a dialogue that ends with the reply to learn. step: as of `GroupDataset`.
    """

    def __init__(self, batches: Batches, task: Task, datum: Callable[[list[Message]], Any], *, steps: int, seed: int):
        self.batches, self.datum, self.steps, self.seed, self.step = batches, datum, steps, seed, 0
        self.task = task.with_options(reasoning=False)  # target replies have no reasoning

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, seed: int = 0) -> None:
        """The batches decide the order of the one epoch."""

    def get_batch(self, index: int) -> list[Any]:
        """The examples of a step, 0 to len - 1; the same at every call."""
        self.step = index  # the cookbook evaluates after it has asked for this batch
        return [self._example(row) for row in self.batches(index)]

    def _example(self, row: Row) -> Any:
        messages, reply = example(self.task, self.batches.views, row, self.seed)
        return self.datum([*with_pictures(messages, row["images"]), assistant(reply)])


def advantages(rewards: ArrayLike) -> np.ndarray:
    """The reward of each dialogue of a group (..., G) less the group's mean, not divided by the deviation.

    >>> advantages([1.0, 0.0, 0.5]).tolist()
    [0.5, -0.5, 0.0]
    """
    rewards = np.asarray(rewards, float)
    constant = np.ptp(rewards, axis=-1, keepdims=True) < 1e-6  # no signal, only rounding
    return np.where(constant, 0.0, rewards - rewards.mean(-1, keepdims=True))
