"""Sample replies from a model on this machine: each prompt is read once, and all its dialogues share that prefix.

    sampler = Sampler(model, processor, max_tokens=64, temperature=0.7, top_p=0.95)
    prompts = sampler.prefill(messages, copies=8)      # the pictures pass through the model here, once a place
    dialogues = converse(envs, prompts, processor)     # 8 dialogues a prompt, of any number of turns
    prompts.log_likelihood(replies)                    # the likelihood of given replies, from the same prefix

Four pictures are hundreds of tokens and a reply is a few dozen. Reading the prompt again for each dialogue and turn
would be nearly all of the work. A cache of keys and values alone also continues rows of different lengths at once, with
padding between prompt and row. A recurrent state (the linear attention of Qwen3.5) would take the padding in: where the
cache says that it cannot be cropped, rows are continued length by length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kitlib.models.vlm import loading
from kitlib.models.vlm.conversation.dialogue import Tokens, thinking_options
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.vision.device import autocast

ROWS_AT_ONCE = 64  # replies in one batch of `log_likelihood`


@dataclass
class Sampler:
    """A model with its sampling options; temperature 0 takes the likeliest token each time.

    max_tokens: of a reply. dtype: the number type of matrix products. thinking: whether models that can think before
    they reply are asked to.
    """

    model: Any
    processor: Any
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    dtype: torch.dtype = torch.float32
    thinking: bool = False

    def inputs(self, prompts: Sequence[list[Message]]) -> dict[str, torch.Tensor]:
        """The model's inputs for P prompts with their pictures, on its device, padded on the left."""
        inputs = self.processor.apply_chat_template(
            list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True, "padding_side": "left"},
            **thinking_options(self.processor, self.thinking),
        )
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def prefill(self, prompts: Sequence[list[Message]], copies: int = 1) -> PrefilledPrompts:
        """Read P prompts, each for `copies` consecutive dialogues."""
        inputs = self.inputs(prompts)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        # All but the last token, which is fed later, to get the logits of the token after it.
        read = {name: value[:, :-1] if value.shape == ids.shape else value for name, value in inputs.items()}
        with sampling_mode(self.model), autocast(self.model.device, self.dtype):
            cache = self.model(**read, use_cache=True, logits_to_keep=1).past_key_values
        prompt_of = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        return PrefilledPrompts(self, ids, mask, loading.position_module(self.model).rope_deltas, cache, prompt_of)

    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> list[Tokens]:
        """The replies to B rows of tokens (B, L), each with the token that ends it; inputs: of the model."""
        tokenizer = self.processor.tokenizer
        options: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        ends = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        with sampling_mode(self.model), autocast(input_ids.device, self.dtype):
            out = self.model.generate(
                input_ids=input_ids,
                max_new_tokens=self.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(ends),
                suppress_tokens=loading.suppressed_tokens(tokenizer),
                **inputs,
                **options,
            )
        return [_until(row, ends) for row in out[:, input_ids.shape[1] :].tolist()]


@dataclass(frozen=True)
class PrefilledPrompts:
    """P prompts in a key-value cache, and B dialogues that continue them: a `PromptBatch`.

    ids, mask (P, L): the prompts' tokens, padded on the left. rope_deltas (P, 1): position minus token count, as a
    picture takes up fewer positions than tokens. cache: of all tokens but the last. prompt_of (B,): each dialogue's
    prompt.
    """

    sampler: Sampler
    ids: torch.Tensor
    mask: torch.Tensor
    rope_deltas: torch.Tensor
    cache: Any
    prompt_of: torch.Tensor

    @property
    def thinking(self) -> bool:
        """As `PromptBatch.thinking`."""
        return self.sampler.thinking

    @property
    def tokens(self) -> list[Tokens]:
        """The prompt of each dialogue."""
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(self.ids, self.mask, strict=True)]
        return [prompts[i] for i in self.prompt_of.tolist()]

    def generate(self, continuations: list[Tokens]) -> tuple[list[Tokens], None]:
        """The next reply of each dialogue, after its continuation of the prompt."""
        replies: list[Tokens] = [[] for _ in continuations]
        for rows in self._batches(continuations):
            inputs = self._inputs(self.prompt_of[rows], [continuations[i] for i in rows])
            for i, reply in zip(rows, self.sampler.generate(**inputs), strict=True):
                replies[i] = reply
        return replies, None

    @property
    def _takes_padding(self) -> bool:
        """Whether the cache holds keys and values alone; those of early releases of transformers 5 do, unasked."""
        return getattr(self.cache, "is_croppable", True)

    def _batches(self, continuations: Sequence[Tokens]) -> list[list[int]]:
        """The rows that can be continued at once: all of them, or those of one length each."""
        if self._takes_padding:
            return [list(range(len(continuations)))]
        lengths = np.array([len(row) for row in continuations])
        return [np.flatnonzero(lengths == length).tolist() for length in np.unique(lengths)]

    def log_likelihood(self, replies: Sequence[Tokens]) -> np.ndarray:
        """The log-likelihood (P, A) of each of A replies after each prompt."""
        scores = np.empty((len(self.ids), len(replies)))
        for some in self._batches(replies):
            pairs = torch.cartesian_prod(torch.arange(len(self.ids)), torch.tensor(some)).to(self.ids.device)
            for chunk in pairs.split(ROWS_AT_ONCE):
                prompt, reply = chunk.T
                values = self._pair_log_likelihood(prompt, reply, replies)
                scores[prompt.cpu().numpy(), reply.cpu().numpy()] = values.double().cpu().numpy()
        return scores

    def _pair_log_likelihood(
        self, prompt: torch.Tensor, reply: torch.Tensor, replies: Sequence[Tokens]
    ) -> torch.Tensor:
        """The log-likelihood (C,) of the replies (C,) after the prompts (C,)."""
        rows = [replies[i] for i in reply.tolist()]
        inputs = self._inputs(prompt, [row[:-1] for row in rows])
        longest = max(map(len, rows))
        for name in ("input_ids", "position_ids"):  # the cache holds the tokens before these
            inputs[name] = inputs[name][..., -longest:]
        with sampling_mode(self.sampler.model), autocast(prompt.device, self.sampler.dtype):
            logits = self.sampler.model(**inputs).logits
        target, mask = _right_aligned(rows, prompt.device)
        logprobs = F.log_softmax(logits.float(), dim=-1).gather(2, target[..., None])[..., 0]
        return (logprobs * mask).sum(dim=1)

    def _inputs(self, prompt: torch.Tensor, continuations: Sequence[Tokens]) -> dict[str, Any]:
        """The model's inputs to continue prompts (C,) after C rows of tokens.

        Shorter rows have their padding between prompt and row, as the cache begins with the prompt.
        """
        last = self.ids[prompt, -1].tolist()
        rows = [[token, *row] for token, row in zip(last, continuations, strict=True)]
        tail, tail_mask = _right_aligned(rows, prompt.device)
        mask = torch.cat([self.mask[prompt, :-1], tail_mask], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + self.rope_deltas[prompt]
        cache = copy.copy(self.cache)
        if self._takes_padding:
            cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        else:  # recurrent states are written in place
            cache.layers = copy.deepcopy(self.cache.layers)
        cache.reorder_cache(prompt)
        return {
            "input_ids": torch.cat([self.ids[prompt, :-1], tail], dim=1),
            "attention_mask": mask,
            "position_ids": positions.expand(3, -1, -1),  # in time, height and width, the same for text
            "past_key_values": cache,
        }


def _right_aligned(rows: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as (C, R), padded on the left with 0, and their mask."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask


def _until(tokens: Tokens, ends: set[int]) -> Tokens:
    """Tokens up to and including the first that ends a reply."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


@contextmanager
def sampling_mode(model: Any) -> Iterator[None]:
    """Sample in the middle of training: no dropout, no gradients, no checkpointing."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
