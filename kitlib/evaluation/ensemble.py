"""Blending members on their out-of-fold guesses, and calibrating their probabilities."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses, average

log = logging.getLogger(__name__)

STEPS = (0.4, 0.2, 0.1, 0.05)  # shares moved to or from a member, coarse to fine
FLOOR = 1e-9  # a probability of 0 would make one wrong certainty infinitely bad


def on_common_places(members: Mapping[str, Guesses]) -> dict[str, Guesses]:
    """The members at the places that all of them guessed, in one order: a run may have trained some folds only.

    Raises KitError where there is no such place.
    """
    shared = functools.reduce(np.intersect1d, (member.sample_id for member in members.values()))
    if not len(shared):
        raise KitError(f"members {', '.join(members)} have guessed no place in common: train the same folds of each")
    return {name: member.at(shared) for name, member in members.items()}


def fit_weights(members: Sequence[Guesses], places: Places, rows: int = 3000, seed: int = 0) -> np.ndarray:
    """The members' shares (M,), summing to 1, whose blend has the best competition score on out-of-fold guesses.

    Greedy search on the simplex: from the best single member or the equal blend, shares move to and from one member at
    a time, in ever smaller steps, while the score rises. It looks at `rows` training places at most, drawn with `seed`.
    Raises KitError where members did not guess the same places, as blending would then drop rows.
    """
    ids = members[0].sample_id
    for number, member in enumerate(members[1:], start=2):
        if len(member) != len(ids) or len(np.setdiff1d(member.sample_id, ids)):
            raise KitError(f"member {number} guessed {len(member)} places, others than the {len(ids)} of member 1")
    if len(ids) > rows:
        ids = np.random.default_rng(seed).choice(ids, rows, replace=False)
    members = [member.at(ids) for member in members]

    def score(weights: np.ndarray) -> float:
        used = np.flatnonzero(weights)  # points that weigh nothing only cost time
        return metrics.score_guesses(average([members[m] for m in used], weights[used]), places).final

    corners = np.eye(len(members))
    starts = [np.full(len(members), 1 / len(members)), *corners]
    scores = [score(start) for start in starts]
    best, weights = max(scores), starts[int(np.argmax(scores))]
    for step in STEPS:
        improved = len(members) > 1
        while improved:
            to = [(1 - step) * weights + step * corner for corner in corners]
            away = [np.maximum(weights - step * corner, 0) for corner in corners]
            trials = [trial / trial.sum() for trial in to + away if trial.sum() > 0]
            scores = [score(trial) for trial in trials]
            improved = max(scores) > best + 1e-6
            if improved:
                best, weights = max(scores), trials[int(np.argmax(scores))]
    log.info("weights %s score %.4f on %d places", weights.round(3).tolist(), best, len(ids))
    return weights


def temperature(guesses: Guesses, places: Places) -> float:
    """The temperature that makes out-of-fold state probabilities most honest: the least mean log loss.

    Above 1 the guesses were too sure, below 1 not sure enough (Guo et al. 2017, arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[guesses.sample_id].to_numpy()
    known = guesses.state_idx == truth[:, None]  # (N, S), one per row at most
    if not known.any():
        raise KitError("none of the guessed places lies in a state that the guesses know: nothing to calibrate on")
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))

    def loss(log_temperature: float) -> float:
        return -float(_log_softmax(log_probs / np.exp(log_temperature))[known].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def calibrated(guesses: Guesses, at_temperature: float) -> Guesses:
    """The same guesses with state probabilities at another temperature, as fitted by `temperature`; ranks stay."""
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))
    return replace(guesses, state_probs=np.exp(_log_softmax(log_probs / at_temperature)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
