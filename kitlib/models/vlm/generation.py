"""A model on this machine speaks by itself: it reads each prompt once, and all that follows goes on from there.

    sampler = Sampler(model, processor, max_tokens=64, temperature=0.7, top_p=0.95)
    read = sampler.read(prompts, copies=8)             # the pictures pass through the model here, once a place
    talks = vlm_talk.converse(envs, read, processor)   # 8 conversations a prompt, of any number of turns
    read.log_likelihood(names)                         # and how likely the model finds some answers, of the same

Four pictures are hundreds of tokens and a reply is a few dozen: read for each of its conversations anew, at every turn
of them, a prompt would be nearly all of the work.
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
from kitlib.models.vlm.conversation.dialogue import Tokens
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.vision.device import autocast

ROWS_AT_ONCE = 64  # of answers whose likelihood is asked for


@dataclass
class Sampler:
    """How a model speaks; temperature 0 takes the likeliest token each time.

    max_tokens: of a reply. dtype: the number type of matrix products.
    """

    model: Any
    processor: Any
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    dtype: torch.dtype = torch.float32

    def inputs(self, prompts: Sequence[list[Message]]) -> dict[str, torch.Tensor]:
        """What the model is given of P prompts whose pictures are in their messages, on its device, padded left."""
        read = self.processor.apply_chat_template(
            list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True, "padding_side": "left"},
        )
        return {name: value.to(self.model.device) for name, value in read.items()}

    def read(self, prompts: Sequence[list[Message]], copies: int = 1) -> Read:
        """Read P prompts, each for `copies` conversations: the first `copies` of them go on from the first prompt."""
        inputs = self.inputs(prompts)
        with speaking(self.model), autocast(self.model.device, self.dtype):
            cache = self.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        cache.crop(-1)  # the last token is said again, for what comes after it
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        which = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        return Read(self, ids, mask, loading.positions(self.model).rope_deltas, cache, which)

    def generate(self, input_ids: torch.Tensor, **given: Any) -> list[Tokens]:
        """The replies to B rows of tokens (B, L), each up to the token that ends it; given: as the model takes it."""
        tokenizer = self.processor.tokenizer
        how: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            how |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        ends = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        with speaking(self.model), autocast(input_ids.device, self.dtype):
            out = self.model.generate(
                input_ids=input_ids,
                max_new_tokens=self.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(ends),
                suppress_tokens=loading.silent_tokens(tokenizer),
                **given,
                **how,
            )
        return [_until(row, ends) for row in out[:, input_ids.shape[1] :].tolist()]


@dataclass(frozen=True)
class Read:
    """P prompts that a model has read, and B conversations that go on from them: a `vlm_talk.Reading`.

    ids, mask (P, L): the prompts' tokens, padded on the left. ahead (P, 1): by how much positions differ from a count
    of tokens, as a picture takes up fewer. cache: of all tokens but the last. which (B,): each conversation's prompt.
    """

    sampler: Sampler
    ids: torch.Tensor
    mask: torch.Tensor
    ahead: torch.Tensor
    cache: Any
    which: torch.Tensor

    @property
    def tokens(self) -> list[Tokens]:
        """The prompt of each conversation."""
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(self.ids, self.mask, strict=True)]
        return [prompts[i] for i in self.which.tolist()]

    def speak(self, said: list[Tokens]) -> tuple[list[Tokens], None]:
        """The next reply of each conversation, after what was said since its prompt."""
        return self.sampler.generate(**self._after(self.which, said)), None

    def log_likelihood(self, answers: Sequence[Tokens]) -> np.ndarray:
        """The log-likelihood (P, A) of each answer as what follows each prompt."""
        n = len(self.ids)
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(len(answers))).to(self.ids.device)
        found = [self._followed(chunk[:, 0], chunk[:, 1], answers) for chunk in pairs.split(ROWS_AT_ONCE)]
        return torch.cat(found).double().cpu().numpy().reshape(n, len(answers))

    def _followed(self, prompt: torch.Tensor, answer: torch.Tensor, answers: Sequence[Tokens]) -> torch.Tensor:
        """The log-likelihood (C,) of the answers (C,) after the prompts (C,)."""
        rows = [answers[i] for i in answer.tolist()]
        given = self._after(prompt, [row[:-1] for row in rows])
        longest = max(map(len, rows))
        for name in ("input_ids", "position_ids"):  # the rest of them is in the cache
            given[name] = given[name][..., -longest:]
        with speaking(self.sampler.model), autocast(prompt.device, self.sampler.dtype):
            logits = self.sampler.model(**given).logits
        wanted, there = _right_aligned(rows, prompt.device)
        logprobs = F.log_softmax(logits.float(), dim=-1).gather(2, wanted[..., None])[..., 0]
        return (logprobs * there).sum(dim=1)

    def _after(self, prompt: torch.Tensor, said: Sequence[Tokens]) -> dict[str, Any]:
        """What a model is given to go on from prompts (C,) after C rows of tokens.

        Rows that are shorter than others have their padding behind the prompt, which the cache begins with.
        """
        last = self.ids[prompt, -1].tolist()
        tail, there = _right_aligned([[token, *row] for token, row in zip(last, said, strict=True)], prompt.device)
        mask = torch.cat([self.mask[prompt, :-1], there], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + self.ahead[prompt]
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(prompt)
        return {
            "input_ids": torch.cat([self.ids[prompt, :-1], tail], dim=1),
            "attention_mask": mask,
            "position_ids": positions.expand(3, -1, -1),  # in time, height and width, the same for text
            "past_key_values": cache,
        }


def _right_aligned(rows: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens (C, R) that end together, and where there are any."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    there = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, there


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
