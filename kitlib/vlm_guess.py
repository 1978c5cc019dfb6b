"""From a vision-language model to guesses: sampled conversations, and the likelihood of every state's name.

The points of a guess are what the sampled conversations came to. The states can be counted in them as well, or the
model can be asked how likely each name of the closed list is as its answer, which sees more than a few samples do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kitlib import competition, fallback, geo, vlm_talk
from kitlib.answers import Answer
from kitlib.environments import Graded
from kitlib.guesses import Guesses
from kitlib.labels import Labels
from kitlib.prompts import Form, ask
from kitlib.tables import Places
from kitlib.views import autocast
from kitlib.vlm_data import Cases
from kitlib.vlm_talk import Sampler, Talk
from kitlib.vlm_tasks import Task, concluded

STATES_AT_ONCE = 64


@dataclass(frozen=True)
class Prior:
    """What training places know, for where the model says nothing or only half.

    states (S,) and their state_idx (S,); points (M, 2) of training places and their states' positions (M,). label: the
    field that names a state, region or country.
    """

    states: Labels
    state_idx: np.ndarray
    points: np.ndarray
    position: np.ndarray
    label: str = "region"
    smoothing: float = 0.02

    @cached_property
    def common(self) -> np.ndarray:
        """How common each state is (S,)."""
        counts = np.bincount(self.position[self.position >= 0], minlength=len(self.states)).astype(float)
        return counts / counts.sum()

    @cached_property
    def middle(self) -> np.ndarray:
        """The point (2,) that has the least mean distance to the training places."""
        return geo.geometric_median(self.points)

    def guesses(self, sample_id: np.ndarray, talks: Sequence[Sequence[Talk]]) -> Guesses:
        """What N places' conversations come to; a point without a state is in that of the nearest training place."""
        answers = [[concluded(talk.answers) for talk in row] for row in talks]
        flat = [replace(answer, region=getattr(answer, self.label)) for row in answers for answer in row]
        stateless = [i for i, answer in enumerate(flat) if answer.point is not None and answer.region is None]
        if stateless:
            _, nearest = geo.nearest(np.array([flat[i].point for i in stateless]), self.points)
            for i, row in zip(stateless, nearest[:, 0], strict=True):
                flat[i] = replace(flat[i], region=self.states.names[self.position[row]])
        width = len(answers[0]) if answers else 1
        rows = [flat[i : i + width] for i in range(0, len(flat), width)]
        return fallback.guesses_of(
            sample_id, rows, self.states, self.state_idx, self.common, self.middle, self.smoothing
        )

    def with_likelihood(self, guess: Guesses, log_likelihood: np.ndarray) -> Guesses:
        """The same guesses with the states by their log-likelihood (N, S), which there is for every place."""
        shifted = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        probs = shifted / shifted.sum(axis=1, keepdims=True)
        return replace(guess, state_probs=(1 - self.smoothing) * probs + self.smoothing * self.common)

    def blind(self, sample_id: np.ndarray) -> Guesses:
        """Guesses for places without a picture."""
        return fallback.guesses_of(
            sample_id, [[Answer()]] * len(sample_id), self.states, self.state_idx, self.common, self.middle
        )


def sampled(cases: Cases, task: Task, speaker: Sampler, samples: int, batch: int) -> list[list[Talk]]:
    """For each of N cases `samples` conversations as at the end of training, about `batch` at once.

    Where a place's own truth is unknown nothing is earned that means anything.
    """
    talks: list[list[Talk]] = []
    places_at_once = max(1, batch // samples)
    for start in range(0, len(cases), places_at_once):
        envs, prompts = [], []
        for i in range(start, min(start + places_at_once, len(cases))):
            truth, shown = cases.truths[i], cases.show(i)
            for _ in range(samples):
                env = task.last(cases.views, task.blank() if truth.point is None else truth)
                envs.append(env)
                prompts.append(vlm_talk.with_pictures(env.messages(), shown))
        flat = vlm_talk.converse(envs, prompts, speaker, speaker.processor)
        talks += [flat[i : i + samples] for i in range(0, len(flat), samples)]
    return talks


def seen(guess: Guesses, talks: Sequence[Sequence[Talk]], places: Places) -> dict[str, float]:
    """How held-out places went: the score with fallbacks in it, the mean reward, the share of replies that parsed."""
    score = competition.score_guesses(guess, places)
    flat = [talk for row in talks for talk in row]
    return {
        "final": score.final,
        "top1": score.top1,
        "mean_km": score.mean_km,
        "median_km": score.median_km,
        "reward": float(np.mean([talk.reward for talk in flat])),
        "parsed": float(np.mean([talk.metrics[-1].get("parsed", 0.0) for talk in flat])),
        "answered": float(guess.answered.mean()),
    }


def state_likelihood(cases: Cases, task: Task, speaker: Sampler, states: Labels, label: str = "region") -> np.ndarray:
    """The log-likelihood (N, S) of each state's name as the model's answer, up to a constant a place.

    The prompt is the task's own where its replies begin with the label, else a question for the label alone. It is
    read once; all names go on from it.
    """
    found = np.empty((len(cases), len(states)), np.float64)
    for i in range(len(cases)):
        env = task.last(cases.views, task.blank())
        if isinstance(env, Graded) and env.grader.form.fields[0] == label:
            form, messages = env.grader.form, env.messages()
        else:
            form = Form((label,), task.form.region)
            messages = ask(form, cases.views)
        found[i] = _of_names(vlm_talk.with_pictures(messages, cases.show(i)), form, speaker, states)
    return found


def _of_names(messages: list[Any], form: Form, speaker: Sampler, states: Labels) -> np.ndarray:
    """The log-likelihood (S,) of the replies that begin with each name, up to the line's end."""
    tokenizer = speaker.processor.tokenizer
    end = "\n" if len(form.keys) > 1 else tokenizer.eos_token
    lines = [f"{form.keys[0]}: {name}{end}" for name in states.names]
    names = [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    tokens, _, fields = speaker.read([messages])
    inputs = speaker.inputs(tokens, fields)
    scores = []
    with vlm_talk.speaking(speaker.model), autocast(inputs["input_ids"].device):
        for start in range(0, len(names), STATES_AT_ONCE):
            scores.append(_continued(speaker, inputs, names[start : start + STATES_AT_ONCE]))
    return np.concatenate(scores)


def _continued(speaker: Sampler, inputs: dict[str, torch.Tensor], names: list[list[int]]) -> np.ndarray:
    """The log-likelihood (S,) of token rows as what follows a prompt (1, P)."""
    model, device = speaker.model, inputs["input_ids"].device
    prompt = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = prompt.past_key_values
    cache.batch_repeat_interleave(len(names))
    longest = max(map(len, names))
    pad = speaker.processor.tokenizer.pad_token_id
    rows = torch.tensor([name + [pad] * (longest - len(name)) for name in names], device=device)
    there = torch.tensor([[1] * len(name) + [0] * (longest - len(name)) for name in names], device=device)
    # Without a mask Qwen's models count positions on from the prompt; what pads on the right is behind all that counts.
    more = model(input_ids=rows, past_key_values=cache, use_cache=True)
    logits = torch.cat([prompt.logits[:, -1:].expand(len(names), -1, -1), more.logits[:, :-1]], dim=1)
    logprobs = F.log_softmax(logits.float(), dim=-1).gather(2, rows[..., None])[..., 0]
    return (logprobs * there).sum(dim=1).double().cpu().numpy()
