"""Turn a vision-language model's replies into guesses: sampled dialogues, and the likelihood of every state's name.

The points of a guess are those of the sampled dialogues. Its state probabilities are counts of the states in them, or
come from the likelihood of each name of the vocabulary, which carries more information than a few samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kitlib import geo
from kitlib.data.places import Places
from kitlib.evaluation import baselines, metrics
from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens, converse, with_pictures
from kitlib.models.vlm.conversation.environments import Graded
from kitlib.models.vlm.conversation.prompts import Message, ReplyForm, ask
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.tasks import Task, final_reply
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.reply_cache import Generations


@dataclass(frozen=True)
class Prior:
    """The training places' distribution, which fills in for missing points and states and smooths probabilities.

    states (S,) and their state_idx (S,); points (M, 2) of training places and their states' positions (M,). label: the
    field of a reply that names a state, region or country. smoothing: the prior's share of the state probabilities.
    """

    states: Labels
    state_idx: np.ndarray
    points: np.ndarray
    position: np.ndarray
    label: str = "region"
    smoothing: float = 0.02

    @cached_property
    def state_shares(self) -> np.ndarray:
        """The share of training places in each state (S,)."""
        counts = np.bincount(self.position[self.position >= 0], minlength=len(self.states)).astype(float)
        return counts / counts.sum()

    @cached_property
    def middle(self) -> np.ndarray:
        """The point (2,) with the least mean distance to the training places."""
        return geo.geometric_median(self.points)

    def guesses(self, sample_id: np.ndarray, dialogues: Sequence[Sequence[Dialogue]]) -> Guesses:
        """The guesses for N places from K dialogues each."""
        return self.from_replies(sample_id, [[final_reply(dialogue.parsed) for dialogue in row] for row in dialogues])

    def from_replies(self, sample_id: np.ndarray, replies: Sequence[Sequence[Reply]]) -> Guesses:
        """The guesses for N places from K replies each, weighted equally where they have a point.

        A reply that ranks states shares its vote among them as the score pays for ranks: 1.00, 0.60, 0.40, ... A reply
        with a point but no state is in the state of the nearest training place. A place is answered when at least one
        of its replies has a state and at least one has a point; else `middle` and `state_shares` fill in.
        """
        flat = [reply for row in replies for reply in row]
        shape = (len(replies), len(replies[0]) if replies else 1)
        points = np.array([reply.point or (np.nan, np.nan) for reply in flat], float).reshape(-1, 2)
        ranked = [reply.states or (getattr(reply, self.label),) for reply in flat]
        position = self.states.positions(names[0] for names in ranked)
        unnamed = np.array([names[0] is None for names in ranked], bool)
        if (stateless := unnamed & ~np.isnan(points[:, 0])).any():
            _, nearest = geo.nearest(points[stateless], self.points)
            position[stateless] = self.position[nearest[:, 0]]
        points, weights, located = weighted(points.reshape(*shape, 2), self.middle)
        votes = np.zeros((shape[0], len(self.states)))
        for i, names in enumerate(ranked):
            given = self.states.positions(names) if len(names) > 1 else position[i : i + 1]
            paid = np.array(metrics.WEIGHTS[: len(given)]) / sum(metrics.WEIGHTS[: len(given)])
            np.add.at(votes[i // shape[1]], given[given >= 0], paid[given >= 0])
        named = votes.sum(axis=1, keepdims=True)
        share = np.divide(votes, named, out=np.zeros_like(votes), where=named > 0)
        mix = np.where(named > 0, self.smoothing, 1.0)
        probs = (1 - mix) * share + mix * self.state_shares
        return Guesses(sample_id, self.state_idx, probs, points, weights, located & (named[:, 0] > 0))

    def with_likelihood(self, guess: Guesses, log_likelihood: np.ndarray) -> Guesses:
        """The same guesses with state probabilities from the log-likelihood (N, S)."""
        shifted = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        probs = shifted / shifted.sum(axis=1, keepdims=True)
        return replace(guess, state_probs=(1 - self.smoothing) * probs + self.smoothing * self.state_shares)

    def blind(self, sample_id: np.ndarray) -> Guesses:
        """Guesses for places without a picture."""
        return baselines.constant(sample_id, self.state_idx, self.state_shares, self.middle)


def weighted(points: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sampled points (N, K, 2), NaN for unparsed, as points (N, K, 2), weights (N, K) and answered (N,).

    The parsed points of a place share its weight. Where none is parsed, all are `middle` (2,).

    >>> weighted(np.array([[[1.0, 2.0], [np.nan, np.nan]]]), np.array([9.0, 9.0]))[1].tolist()
    [[1.0, 0.0]]
    """
    parsed = ~np.isnan(points).any(-1)
    answered = parsed.any(axis=1)
    weights = np.where(answered[:, None], parsed, True).astype(float)
    return np.where(parsed[..., None], points, middle), weights / weights.sum(axis=1, keepdims=True), answered


def generate(
    cases: Cases, task: Task, sampler: Sampler, samples: int, batch: int, names: Labels | None = None, label: str = ""
) -> Generations:
    """Sample `samples` dialogues about each of N cases, about `batch` at once, and score the names if there are any.

    names: states whose log-likelihood (N, S) as the reply is computed, up to a constant per place. label: the line of
    the reply that names them. The task's own prompt is used where replies begin with that line, else a question for
    that line alone.
    """
    dialogues: list[list[Dialogue]] = []
    scores: list[np.ndarray] = []
    places_at_once = max(1, batch // samples)
    for start in range(0, len(cases), places_at_once):
        rows = range(start, min(start + places_at_once, len(cases)))
        envs = [task.open_for_guess(cases.views, cases.truths[i]) for i in rows for _ in range(samples)]
        images = [cases.show(i) for i in rows]
        prompts = sampler.prefill(_illustrated([env.messages() for env in envs[::samples]], images), samples)
        flat = converse(envs, prompts, sampler.processor)
        dialogues += [flat[i : i + samples] for i in range(0, len(flat), samples)]
        if names is None:
            continue
        form = envs[0].grader.form if isinstance(envs[0], Graded) else None
        if form is None or form.fields[0] not in (label, "states"):
            form = ReplyForm((label,), task.form.region)
            prompts = sampler.prefill(_illustrated([ask(form, cases.views)] * len(rows), images))
        scores.append(prompts.log_likelihood(_first_lines(form, names, sampler.processor.tokenizer)))
    return Generations(dialogues, np.concatenate(scores) if scores else None)


def _illustrated(messages: Sequence[list[Message]], images: Sequence[Sequence[Any]]) -> list[list[Message]]:
    return [with_pictures(one, views) for one, views in zip(messages, images, strict=True)]


def _first_lines(form: ReplyForm, names: Labels, tokenizer: Any) -> list[Tokens]:
    """The tokens of a reply's first line with each name, its end included; of a ranking its first name alone."""
    end = "," if form.fields[0] == "states" else "\n" if len(form.keys) > 1 else tokenizer.eos_token
    return [tokenizer.encode(f"{form.keys[0]}: {name}{end}", add_special_tokens=False) for name in names.names]


def evaluation_scores(guess: Guesses, dialogues: Sequence[Sequence[Dialogue]], places: Places) -> dict[str, float]:
    """The scores of held-out places, fallbacks included, the mean reward, and the share of parsed replies."""
    score = metrics.score_guesses(guess, places)
    flat = [dialogue for row in dialogues for dialogue in row]
    return {
        "final": score.final,
        "top1": score.top1,
        "mean_km": score.mean_km,
        "median_km": score.median_km,
        "reward": float(np.mean([dialogue.reward for dialogue in flat])),
        "parsed": float(np.mean([dialogue.metrics[-1].get("parsed", 0.0) for dialogue in flat])),
        "answered": float(guess.answered.mean()),
    }
