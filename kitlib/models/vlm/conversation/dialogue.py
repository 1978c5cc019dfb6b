"""Conversations of a model with environments, token by token: one loop for training and for guessing.

The pictures are in the first prompt only. What the model says is marked 1, what it is told in between 0, so that a
trainer gives credit for its own words alone. What has read the prompts, and finds the replies, is a `Reading`: of the
model itself (`vlm_sampler`), or by the means of a trainer (`vlm_grpo`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kitlib.models.vlm.conversation import tasks
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import Message, assistant, user
from kitlib.models.vlm.conversation.replies import Answer

Tokens = list[int]
REPLY = "@@REPLY@@"


class Reading(Protocol):
    """The prompts of B conversations, which a model has read or will read."""

    @property
    def tokens(self) -> list[Tokens]:
        """Of each prompt, its pictures included."""

    def speak(self, said: list[Tokens]) -> tuple[list[Tokens], Any]:
        """The tokens of the replies to each prompt and what was said since, and their log-probabilities or None."""


@dataclass
class Talk:
    """One conversation as it stands."""

    env: Environment
    prompt: Tokens
    said: Tokens = field(default_factory=list)  # all after the prompt, what the model was told included
    own: list[int] = field(default_factory=list)  # 1 for the model's own tokens
    logprobs: list[float] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)  # one a turn, as the three below
    answers: list[Answer] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the environment has heard its last reply."""
        return len(self.replies) == self.env.turns

    @property
    def turn_of(self) -> np.ndarray:
        """The turn, from 0, that each token after the prompt belongs to; what the model is told ends a turn."""
        own = np.array(self.own)
        return np.cumsum(np.diff(own, prepend=0) == 1) - 1

    @property
    def reward(self) -> float:
        """What all turns earned together."""
        return float(sum(self.rewards))

    def hear(self, reply: str) -> Message | None:
        """Take the model's reply as text; what it is told next."""
        turn = self.env.turn
        step = self.env.step(reply)
        self.replies.append(reply)
        self.answers.append(tasks.said(self.env, turn, reply))
        self.rewards.append(step.reward)
        self.metrics.append(step.metrics)
        return step.message

    def add(self, tokens: Tokens, own: bool, logprobs: Sequence[float] | None = None) -> None:
        """Put tokens behind what was said."""
        self.said += tokens
        self.own += [int(own)] * len(tokens)
        self.logprobs += list(logprobs) if logprobs is not None else [0.0] * len(tokens)


def converse(envs: Sequence[Environment], reading: Reading, processor: Any) -> list[Talk]:
    """Play B environments to their end at once; `reading` is of their messages with the pictures in place."""
    talks = [Talk(env, list(ids)) for env, ids in zip(envs, reading.tokens, strict=True)]
    while not all(talk.done for talk in talks):
        replies, logprobs = reading.speak([talk.said for talk in talks])
        for i, talk in enumerate(talks):
            if not talk.done:
                _turn(talk, list(replies[i]), logprobs and logprobs[i], processor)
    return talks


def _turn(talk: Talk, reply: Tokens, logprobs: Sequence[float] | None, processor: Any) -> None:
    tokenizer = processor.tokenizer
    talk.add(reply, True, logprobs)
    told = talk.hear(tokenizer.decode(reply, skip_special_tokens=True))
    if told is not None:
        between = told_tokens(processor, told)
        ended = bool(reply) and reply[-1] == between[0]  # a reply that was cut short has no end of its own
        talk.add(between[ended:], False)


def told_tokens(processor: Any, told: Message) -> Tokens:
    """What stands between a reply's last word and the next reply's first: the end of the turn, `told`, the opening."""
    messages = [user("?"), assistant(REPLY), told]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return processor.tokenizer.encode(text.split(REPLY, 1)[1], add_special_tokens=False)


def with_pictures(messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Messages with the pictures (V,) in their places."""
    left: Iterator[Any] = iter(images)
    return [
        {**message, "content": [{**p, "image": next(left)} if p["type"] == "image" else p for p in message["content"]]}
        for message in messages
    ]
