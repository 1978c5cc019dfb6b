"""Dialogues of a model with environments, token by token: the same loop for training and for guessing.

Pictures are in the first prompt only. The model's own tokens are masked 1 and the environment's 0, so that a trainer
gives credit for the model's words alone. The replies come from a `PromptBatch`: the model on this machine
(`generation`), or a trainer's own generation (`grpo`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kitlib.models.vlm.conversation import tasks
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import Message, assistant, user
from kitlib.models.vlm.conversation.replies import Reply

Tokens = list[int]
REPLY = "@@REPLY@@"


class PromptBatch(Protocol):
    """The prompts of B dialogues and the model that replies to them."""

    @property
    def tokens(self) -> list[Tokens]:
        """The tokens of each prompt, those of its pictures included."""

    @property
    def thinking(self) -> bool:
        """Whether models that can think before they reply are asked to."""

    def generate(self, continuations: list[Tokens]) -> tuple[list[Tokens], Any]:
        """The next reply to each prompt with its continuation, as tokens, and their log-probabilities or None."""


@dataclass
class Dialogue:
    """One dialogue in progress."""

    env: Environment
    prompt: Tokens
    continuation: Tokens = field(default_factory=list)  # all tokens after the prompt, the environment's included
    model_mask: list[int] = field(default_factory=list)  # 1 for tokens of the model
    logprobs: list[float] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)  # one a turn, as the three below
    parsed: list[Reply] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the environment has taken its last reply."""
        return len(self.replies) == self.env.turns

    @property
    def token_turns(self) -> np.ndarray:
        """The turn of each token of the continuation, counted from 0; the environment's message belongs to its turn."""
        mask = np.array(self.model_mask)
        return np.cumsum(np.diff(mask, prepend=0) == 1) - 1

    @property
    def reward(self) -> float:
        """The sum of the turns' rewards."""
        return float(sum(self.rewards))

    def add_reply(self, text: str) -> Message | None:
        """Pass a reply to the environment and return its next message, None after the last turn."""
        turn = self.env.turn
        step = self.env.step(text)
        self.replies.append(text)
        self.parsed.append(tasks.parse_reply(self.env, turn, text))
        self.rewards.append(step.reward)
        self.metrics.append(step.metrics)
        return step.message

    def add_tokens(self, tokens: Tokens, by_model: bool, logprobs: Sequence[float] | None = None) -> None:
        """Append tokens to the continuation."""
        self.continuation += tokens
        self.model_mask += [int(by_model)] * len(tokens)
        self.logprobs += list(logprobs) if logprobs is not None else [0.0] * len(tokens)


def converse(envs: Sequence[Environment], prompts: PromptBatch, processor: Any) -> list[Dialogue]:
    """Play B environments to their end in parallel; `prompts` holds their first messages with the pictures in place."""
    dialogues = [Dialogue(env, list(ids)) for env, ids in zip(envs, prompts.tokens, strict=True)]
    while not all(dialogue.done for dialogue in dialogues):
        replies, logprobs = prompts.generate([dialogue.continuation for dialogue in dialogues])
        for i, dialogue in enumerate(dialogues):
            if not dialogue.done:
                _take_turn(dialogue, list(replies[i]), logprobs and logprobs[i], processor, prompts.thinking)
    return dialogues


def _take_turn(
    dialogue: Dialogue, reply: Tokens, logprobs: Sequence[float] | None, processor: Any, thinking: bool
) -> None:
    dialogue.add_tokens(reply, True, logprobs)
    message = dialogue.add_reply(processor.tokenizer.decode(reply, skip_special_tokens=True))
    if message is not None:
        separator = turn_separator_tokens(processor, message, thinking)
        ended = bool(reply) and reply[-1] == separator[0]  # a reply that was cut short has no end of its own
        dialogue.add_tokens(separator[ended:], False)


def turn_separator_tokens(processor: Any, message: Message, thinking: bool = False) -> Tokens:
    """The tokens between two replies: the end of the turn, `message`, and the opening of the next reply."""
    messages = [user("?"), assistant(REPLY), message]
    options = thinking_options(processor, thinking)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    return processor.tokenizer.encode(text.split(REPLY, 1)[1], add_special_tokens=False)


def thinking_options(processor: Any, thinking: bool) -> dict[str, bool]:
    """The option that turns thinking on or off in a chat template; none for a template that does not know it."""
    return {"enable_thinking": thinking} if "enable_thinking" in str(processor.chat_template) else {}


def with_pictures(messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Messages whose picture parts hold the images (V,), in order."""
    left: Iterator[Any] = iter(images)
    return [
        {**message, "content": [{**p, "image": next(left)} if p["type"] == "image" else p for p in message["content"]]}
        for message in messages
    ]
