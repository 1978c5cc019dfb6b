"""The kit's conversations in the shape of tinker-cookbook's environments: tokens in, rewards and prompts out.

    batches = Batches(cases, task, renderer, steps=100, places=32, group=8, recorder=recorder)
    group = batches.get_batch(0)[0]                 # EnvGroupBuilder: G conversations about one place
    env = (await group.make_envs())[0]              # Env
    prompt, stop = await env.initial_observation()

The shape is that of tinker-cookbook 0.6.1: Env, StepResult, EnvGroupBuilder and RLDataset of its rl.types, the Renderer
of its renderers. Nothing of it is imported here, nor of tinker; `remote` does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Talk, Tokens, with_pictures
from kitlib.models.vlm.conversation.prompts import Message, assistant
from kitlib.models.vlm.conversation.recorder import Book, Recorder, Row
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.dataset import Cases

Observation = Any  # tinker.ModelInput: chunks of tokens and of pictures
Stop = Sequence[str] | Sequence[int]


class Renderer(Protocol):
    """What of the cookbook's renderers is used: messages to a prompt, and the tokens or texts that end a reply."""

    tokenizer: Any

    def build_generation_prompt(self, messages: list[Message]) -> Observation:
        """The prompt, up to where the reply begins."""

    def get_stop_sequences(self) -> Stop:
        """What ends a reply."""


@dataclass
class StepResult:
    """What a reply led to, as the cookbook's class of this name; after the last reply there is nothing new to see."""

    reward: float
    episode_done: bool
    next_observation: Observation
    next_stop_condition: Stop
    metrics: dict[str, float] = field(default_factory=dict)
    logs: dict[str, str | float] = field(default_factory=dict)


class PlaceEnv:
    """A conversation as the cookbook's Env: tokens in; reward, what the model sees next and when to stop out.

    It lasts one episode. The reply goes on as it was said, with its reasoning, so that each turn's prompt continues
    the one before and its reply, and the cookbook learns from all turns in one sequence.
    """

    def __init__(self, talk: Talk, images: Sequence[Any], renderer: Renderer, prompt: Observation = None) -> None:
        """talk: not begun yet. images: the views' (V,). prompt: what the renderer makes of both, where it is known."""
        self.talk, self.renderer, self.seen = talk, renderer, prompt
        self.messages = with_pictures(talk.env.messages(), images)

    async def initial_observation(self) -> tuple[Observation, Stop]:
        """The first prompt, and what ends a reply."""
        if self.seen is None:
            await self._look()
        return self.seen, self.renderer.get_stop_sequences()

    async def step(self, action: Tokens, *, extra: Any = None) -> StepResult:
        """Take a reply; one that was cut short is read as far as it goes. Raises KitError when the episode is over."""
        reply = self.renderer.tokenizer.decode(action, skip_special_tokens=True)
        told = self.talk.hear(reply)
        if told is not None:
            self.messages += [assistant(reply), told]
            await self._look()
        last = self.talk.rewards[-1], self.talk.done, self.seen, self.renderer.get_stop_sequences()
        return StepResult(*last, metrics=self.talk.metrics[-1], logs={"reply": reply})

    async def _look(self) -> None:
        """Render in a thread: pictures are compressed anew, and other conversations need not wait for that."""
        self.seen = await asyncio.to_thread(self.renderer.build_generation_prompt, self.messages)


@dataclass
class Group:
    """Conversations about one place as the cookbook's EnvGroupBuilder; all rewards come from the turns.

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
    book: Book | None = None

    async def make_envs(self) -> list[PlaceEnv]:
        """New environments; they share the first prompt. Raises KitError for a place that cannot be graded."""
        seeds = np.random.SeedSequence([self.seed, self.step, self.number]).generate_state(self.size)
        opened = [self.task.open(self.views, self.case["truth"], self.step, self.n_steps, int(one)) for one in seeds]
        first, *others = (PlaceEnv(Talk(env, []), self.case["images"], self.renderer) for env in opened)
        prompt, _ = await first.initial_observation()
        for env in others:
            env.seen = prompt
        return [first, *others]

    async def compute_group_rewards(
        self, trajectory_group: Sequence[Any], env_group: Sequence[PlaceEnv]
    ) -> list[tuple[float, dict[str, float]]]:
        """Nothing on top of the turns' rewards; the conversations go to the book."""
        talks = [env.talk for env in env_group if env.talk.replies]
        if self.book is not None and talks:
            earned = advantages([talk.reward for talk in talks]).tolist()
            self.book.add(self.step, self.case, talks, self.task.tau_km(self.step, self.n_steps), earned)
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:
        """There is nothing to clean up."""

    def logging_tags(self) -> list[str]:
        """What the cookbook sums its metrics up by."""
        return [self.task.environment]


class Batches:
    """Groups by step as the cookbook's RLDataset; every pass goes through the places in another order.

    steps: of the training, which `Task` draws its schedules over. places: groups a step. group: conversations about a
    place. recorder: where they go, to be watched. Raises KitError for numbers out of range.
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
                f"{steps} steps of {places} places, {group} conversations each: allowed are at least 1 step, 1 to "
                f"{len(cases)} places, and groups of at least 2"
            )
        self.cases, self.task, self.renderer = cases, task, renderer
        self.steps, self.places, self.group, self.seed = steps, places, group, seed
        self.book = Book(recorder, places) if recorder is not None else None

    def __len__(self) -> int:
        return self.steps

    def get_batch(self, index: int) -> list[Group]:
        """The groups of a step, 0 to len - 1, a place each: the same whenever it is asked for."""
        a_pass = len(self.cases) // self.places  # what is left over has its turn in another pass
        epoch, part = divmod(index, a_pass)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.cases))
        chosen = order[part * self.places : (part + 1) * self.places]
        shared = (self.cases.views, self.task, self.renderer, self.group, index, self.steps)
        return [Group(self.cases.row(int(i)), *shared, n, self.seed, self.book) for n, i in enumerate(chosen)]


def advantages(rewards: ArrayLike) -> np.ndarray:
    """What each conversation of a group (..., G) earned more than the group's mean, not divided by the spread.

    >>> advantages([1.0, 0.0, 0.5]).tolist()
    [0.5, -0.5, 0.0]
    """
    rewards = np.asarray(rewards, float)
    constant = np.ptp(rewards, axis=-1, keepdims=True) < 1e-6  # says nothing, and the rest of a mean is no credit
    return np.where(constant, 0.0, rewards - rewards.mean(-1, keepdims=True))
