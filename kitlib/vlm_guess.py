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

from kitlib import fallback, geo, vlm_talk
from kitlib.answers import Answer
from kitlib.data.places import Places
from kitlib.environments import Graded
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.labels import Labels
from kitlib.prompts import Form, Message, ask
from kitlib.vlm_data import Cases
from kitlib.vlm_said import Said
from kitlib.vlm_sampler import Sampler
from kitlib.vlm_talk import Talk, Tokens
from kitlib.vlm_tasks import Task, concluded


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


def asked(
    cases: Cases, task: Task, speaker: Sampler, samples: int, batch: int, names: Labels | None = None, label: str = ""
) -> Said:
    """What a model says of N cases: `samples` conversations about each, about `batch` at once, and likelihoods.

    names: states whose log-likelihood (N, S) as the model's answer is asked for, up to a constant a place. label: the
    line of the reply that names them. It is asked of the task's own prompt where replies begin with that line, else of
    a question for it alone.
    """
    talks: list[list[Talk]] = []
    scores: list[np.ndarray] = []
    places_at_once = max(1, batch // samples)
    for start in range(0, len(cases), places_at_once):
        rows = range(start, min(start + places_at_once, len(cases)))
        envs = [task.about(cases.views, cases.truths[i]) for i in rows for _ in range(samples)]
        shown = [cases.show(i) for i in rows]
        first = [env.messages() for env in envs[::samples]]
        read = speaker.read(_illustrated(first, shown), samples)
        flat = vlm_talk.converse(envs, read, speaker.processor)
        talks += [flat[i : i + samples] for i in range(0, len(flat), samples)]
        if names is None:
            continue
        form = envs[0].grader.form if isinstance(envs[0], Graded) else None
        if form is None or form.fields[0] != label:
            form = Form((label,), task.form.region)
            read = speaker.read(_illustrated([ask(form, cases.views)] * len(rows), shown))
        scores.append(read.log_likelihood(_lines(form, names, speaker.processor.tokenizer)))
    return Said(talks, np.concatenate(scores) if scores else None)


def _illustrated(messages: Sequence[list[Message]], shown: Sequence[Sequence[Any]]) -> list[list[Message]]:
    return [vlm_talk.with_pictures(one, images) for one, images in zip(messages, shown, strict=True)]


def _lines(form: Form, names: Labels, tokenizer: Any) -> list[Tokens]:
    """The tokens of the replies that begin with each name, up to the line's end."""
    end = "\n" if len(form.keys) > 1 else tokenizer.eos_token
    return [tokenizer.encode(f"{form.keys[0]}: {name}{end}", add_special_tokens=False) for name in names.names]


def seen(guess: Guesses, talks: Sequence[Sequence[Talk]], places: Places) -> dict[str, float]:
    """How held-out places went: the score with fallbacks in it, the mean reward, the share of replies that parsed."""
    score = metrics.score_guesses(guess, places)
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
