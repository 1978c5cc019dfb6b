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

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import baselines, metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm.conversation import dialogue
from kitlib.models.vlm.conversation.dialogue import Talk, Tokens
from kitlib.models.vlm.conversation.environments import Graded
from kitlib.models.vlm.conversation.prompts import Form, Message, ask
from kitlib.models.vlm.conversation.replies import Answer
from kitlib.models.vlm.conversation.tasks import Task, concluded
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.reply_cache import Said


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
        return guesses_of(sample_id, rows, self.states, self.state_idx, self.common, self.middle, self.smoothing)

    def with_likelihood(self, guess: Guesses, log_likelihood: np.ndarray) -> Guesses:
        """The same guesses with the states by their log-likelihood (N, S), which there is for every place."""
        shifted = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        probs = shifted / shifted.sum(axis=1, keepdims=True)
        return replace(guess, state_probs=(1 - self.smoothing) * probs + self.smoothing * self.common)

    def blind(self, sample_id: np.ndarray) -> Guesses:
        """Guesses for places without a picture."""
        return baselines.constant(sample_id, self.state_idx, self.common, self.middle)


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
        flat = dialogue.converse(envs, read, speaker.processor)
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
    return [dialogue.with_pictures(one, images) for one, images in zip(messages, shown, strict=True)]


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


def points_of(answers: Sequence[Answer]) -> np.ndarray:
    """The points (N, 2) of N answers, NaN where there is none."""
    return np.array([answer.point or (np.nan, np.nan) for answer in answers], float).reshape(-1, 2)


def weighted(points: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sampled points (N, K, 2), NaN for unparsed, as points (N, K, 2) and weights (N, K), and who answered (N,) bool.

    The parsed answers of a place share its weight. Where none is, all are `middle` (2,), for instance the geometric
    median of the training places.

    >>> weighted(np.array([[[1.0, 2.0], [np.nan, np.nan]]]), np.array([9.0, 9.0]))[1].tolist()
    [[1.0, 0.0]]
    """
    points = np.asarray(points, float)
    if points.ndim != 3 or points.shape[1] == 0 or points.shape[2] != 2:
        raise KitError(f"sampled points have shape {points.shape}, wanted is (N, K, 2) with K at least 1")
    parsed = ~np.isnan(points).any(-1)
    answered = parsed.any(axis=1)
    weights = np.where(answered[:, None], parsed, True).astype(float)
    filled = np.where(parsed[..., None], points, geo.check_points(middle, "the middle"))
    return geo.check_points(filled, "sampled points"), weights / weights.sum(axis=1, keepdims=True), answered


def guesses_of(
    sample_id: np.ndarray,
    answers: Sequence[Sequence[Answer]],
    states: Labels,
    state_idx: np.ndarray,
    common: np.ndarray,
    middle: np.ndarray,
    smoothing: float = 0.02,
) -> Guesses:
    """The guesses for N places from K sampled answers each.

    states: the vocabulary, whose order is that of state_idx (S,) and of common (S,), how common each state is, summing
    to 1. `smoothing` is the share of the state probabilities that goes by `common`, all of it where no state was read.
    A place is answered when at least one of its answers has a state and at least one has a point.
    """
    n_answers = {len(row) for row in answers}
    if len(answers) != len(sample_id) or len(n_answers) != 1 or 0 in n_answers:
        raise KitError(
            f"{len(sample_id)} places and {len(answers)} rows of {sorted(n_answers)} answers: wanted is K each"
        )
    if not len(states) == len(state_idx) == len(common) or not 0 <= smoothing <= 1:
        raise KitError(
            f"{len(states)} states, {len(state_idx)} state_idx, {len(common)} shares, smoothing {smoothing}: wanted "
            "are equal numbers, and a smoothing from 0 to 1"
        )
    flat = [answer for row in answers for answer in row]
    shape = (len(answers), n_answers.pop())
    points, weights, located = weighted(points_of(flat).reshape(*shape, 2), middle)
    position = states.positions(answer.region for answer in flat).reshape(shape)
    row, said = np.nonzero(position >= 0)[0], position[position >= 0]
    votes = np.zeros((shape[0], len(states)))
    np.add.at(votes, (row, said), 1.0)
    named = votes.sum(axis=1, keepdims=True)
    share = np.divide(votes, named, out=np.zeros_like(votes), where=named > 0)
    mix = np.where(named > 0, smoothing, 1.0)
    probs = (1 - mix) * share + mix * np.asarray(common, float)
    return Guesses(sample_id, state_idx, probs, points, weights, located & (named[:, 0] > 0))
