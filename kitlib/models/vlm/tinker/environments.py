"""The kit's dialogues as tinker-cookbook's environments: tokens in, rewards and prompts out.

    dataset = GroupDataset(cases, task, renderer, steps=100, places=32, group=8, recorder=recorder)
    group = dataset.get_batch(0)[0]                 # EnvGroupBuilder: G dialogues about one place
    env = (await group.make_envs())[0]              # Env
    prompt, stop = await env.initial_observation()

The interfaces are those of tinker-cookbook 0.6.1: Env, StepResult, EnvGroupBuilder and RLDataset of its rl.types, and
the Renderer of its renderers. This module imports neither the cookbook nor tinker; `client` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens, with_pictures
from kitlib.models.vlm.conversation.prompts import Message, assistant
from kitlib.models.vlm.conversation.recorder import Recorder, Row, StepBuffer
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import Cases

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

    It lasts one episode. Replies stay in the prompt unchanged, with their reasoning, so that each turn's prompt extends
    the one before and the cookbook trains on all turns as one sequence.
    """

    def __init__(
        self, dialogue: Dialogue, images: Sequence[Any], renderer: Renderer, prompt: Observation = None
    ) -> None:
        """dialogue: a new one. images: of the views (V,). prompt: the rendered first prompt, if it is known."""
        self.dialogue, self.renderer, self.observation = dialogue, renderer, prompt
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
        return StepResult(
            self.dialogue.rewards[-1],
            self.dialogue.done,
            self.observation,
            self.renderer.get_stop_sequences(),
            metrics=self.dialogue.metrics[-1],
            logs={"reply": reply},
        )

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
    """Groups by step as the cookbook's RLDataset; every pass goes through the places in another order.

    steps: of the training, for the task's schedules. places: groups a step. group: dialogues about a place. recorder:
    gets the dialogues. Raises KitError for numbers out of range.
    """

    def __init__(
        self,
        cases: Cases,
        task: Task,
        renderer: Renderer,
        *,
        steps: int,
        places: int,
        group: int,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        if steps < 1 or group < 2 or not 1 <= places <= len(cases):
            raise KitError(
                f"steps, places, group: expected at least 1 step, 1 to {len(cases)} places, and groups of at least 2; "
                f"got {steps}, {places}, {group}"
            )
        self.cases, self.task, self.renderer = cases, task, renderer
        self.steps, self.places, self.group, self.seed = steps, places, group, seed
        self.buffer = StepBuffer(recorder, places) if recorder is not None else None

    def __len__(self) -> int:
        return self.steps

    def get_batch(self, index: int) -> list[Group]:
        """The groups of a step, 0 to len - 1, one place each; the same at every call."""
        steps_per_pass = len(self.cases) // self.places  # the remainder has its turn in another pass
        epoch, part = divmod(index, steps_per_pass)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.cases))
        rows = order[part * self.places : (part + 1) * self.places]
        shared = (self.cases.views, self.task, self.renderer, self.group, index, self.steps)
        return [Group(self.cases.row(int(i)), *shared, n, self.seed, self.buffer) for n, i in enumerate(rows)]


def advantages(rewards: ArrayLike) -> np.ndarray:
    """The reward of each dialogue of a group (..., G) less the group's mean, not divided by the deviation.

    >>> advantages([1.0, 0.0, 0.5]).tolist()
    [0.5, -0.5, 0.0]
    """
    rewards = np.asarray(rewards, float)
    constant = np.ptp(rewards, axis=-1, keepdims=True) < 1e-6  # no signal, only rounding
    return np.where(constant, 0.0, rewards - rewards.mean(-1, keepdims=True))
