"""Conversations of a model with environments, token by token: one loop for training and for guessing.

The pictures are in the first prompt only. What the model says is marked 1, what it is told in between 0, so that a
trainer gives credit for its own words alone. Who turns prompts into tokens and tokens into more tokens is a `Speaker`:
`Sampler` does it with the model itself, a trainer with its own means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from kitlib import vlm_models, vlm_tasks
from kitlib.answers import Answer
from kitlib.environments import Environment
from kitlib.prompts import Message, assistant, user
from kitlib.views import autocast

Tokens = list[int]
REPLY = "@@REPLY@@"


class Speaker(Protocol):
    """What turns B prompts into tokens, and goes on from tokens."""

    def read(self, prompts: Sequence[list[Message]]) -> tuple[list[Tokens], Any, dict[str, Any]]:
        """Tokens of each prompt, whose pictures are in its messages; the pictures; what else the model is given."""

    def speak(self, tokens: list[Tokens], images: Any, fields: dict[str, Any]) -> tuple[list[Tokens], Any]:
        """The tokens of each reply, and their log-probabilities where the speaker has them (else None)."""


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
        self.answers.append(vlm_tasks.said(self.env, turn, reply))
        self.rewards.append(step.reward)
        self.metrics.append(step.metrics)
        return step.message

    def add(self, tokens: Tokens, own: bool, logprobs: Sequence[float] | None = None) -> None:
        """Put tokens behind what was said."""
        self.said += tokens
        self.own += [int(own)] * len(tokens)
        self.logprobs += list(logprobs) if logprobs is not None else [0.0] * len(tokens)


def converse(
    envs: Sequence[Environment], prompts: Sequence[list[Message]], speaker: Speaker, processor: Any
) -> list[Talk]:
    """Play B environments to their end at once; `prompts` are their messages with the pictures in place."""
    tokens, images, fields = speaker.read(prompts)
    talks = [Talk(env, list(ids)) for env, ids in zip(envs, tokens, strict=True)]
    while not all(talk.done for talk in talks):
        context = [talk.prompt + talk.said for talk in talks]
        replies, logprobs = speaker.speak(context, images, _extended(fields, context))
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


def _extended(fields: dict[str, Any], context: list[Tokens]) -> dict[str, Any]:
    """What goes along with each token, 0 for the tokens after the prompt, which are never of a picture."""
    return {
        name: [list(row) + [0] * (len(ids) - len(row)) for row, ids in zip(value, context, strict=True)]
        if isinstance(value, list) and value and isinstance(value[0], list)
        else value
        for name, value in fields.items()
    }


def with_pictures(messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Messages with the pictures (V,) in their places."""
    left: Iterator[Any] = iter(images)
    return [
        {**message, "content": [{**p, "image": next(left)} if p["type"] == "image" else p for p in message["content"]]}
        for message in messages
    ]


@dataclass
class Sampler:
    """A `Speaker` that samples from the model itself; temperature 0 takes the likeliest token each time."""

    model: Any
    processor: Any
    max_tokens: int  # of a reply
    temperature: float = 1.0
    top_p: float = 1.0

    def read(self, prompts: Sequence[list[Message]]) -> tuple[list[Tokens], Any, dict[str, Any]]:
        """As `Speaker.read`."""
        read = self.processor.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        fields = {name: value for name, value in read.items() if name not in ("input_ids", "attention_mask")}
        return [list(ids) for ids in read["input_ids"]], None, fields

    def speak(self, tokens: list[Tokens], images: Any, fields: dict[str, Any]) -> tuple[list[Tokens], Any]:
        """As `Speaker.speak`, without log-probabilities."""
        inputs = self.inputs(tokens, fields)
        tokenizer = self.processor.tokenizer
        how = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            how |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}  # type: ignore[dict-item]
        ends = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        with speaking(self.model), autocast(inputs["input_ids"].device):
            out = self.model.generate(
                **inputs,
                max_new_tokens=self.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(ends),
                suppress_tokens=vlm_models.silent_tokens(tokenizer),
                **how,
            )
        return [_until(row, ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist()], None

    def inputs(self, tokens: list[Tokens], fields: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Rows of tokens, padded on the left, and what goes along with them, on the model's device."""
        pad, longest = self.processor.tokenizer.pad_token_id, max(map(len, tokens))

        def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
            return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows])

        inputs = {"input_ids": padded(tokens, pad), "attention_mask": padded([[1] * len(row) for row in tokens], 0)}
        for name, value in fields.items():
            per_token = isinstance(value, list) and value and isinstance(value[0], list)
            inputs[name] = padded(value, 0) if per_token else torch.as_tensor(value)
        return {name: value.to(self.model.device) for name, value in inputs.items()}


def _until(tokens: Tokens, ends: set[int]) -> Tokens:
    """Tokens up to the first that ends a reply, that one included."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


@contextmanager
def speaking(model: Any) -> Iterator[None]:
    """Let a model speak in the middle of its training: no dropout, no gradients, no checkpointing."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
