"""From sampled answers to guesses: places without a usable answer get a stand-in, and are scored like all others.

A mean over the answered places alone would pay for silence; a guess that stands in is marked `answered=False`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kitlib import geo
from kitlib.answers import Answer
from kitlib.core.errors import KitError
from kitlib.evaluation.guesses import Guesses
from kitlib.labels import Labels


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
