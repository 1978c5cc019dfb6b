"""Fit the weights of an ensemble on out-of-fold guesses, and calibrate probabilities."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses, average, stack

log = logging.getLogger(__name__)

STEPS = (0.4, 0.2, 0.1, 0.05)  # shares moved to or from a member
FLOOR = 1e-9  # of a probability, as the log loss of 0 is infinite


def on_common_places(members: Mapping[str, Guesses]) -> dict[str, Guesses]:
    """Restrict the members to the places that all of them guessed, in one order, as a run may lack some folds.

    Raises KitError if there is no such place.
    """
    shared = functools.reduce(np.intersect1d, (member.sample_id for member in members.values()))
    if not len(shared):
        raise KitError(f"members {', '.join(members)} guessed no common place: train the same folds of each")
    return {name: member.at(shared) for name, member in members.items()}


def members(guesses: Mapping[str, Guesses], named: bool) -> tuple[dict[str, Guesses], dict[str, int]]:
    """The members of a blend on their common places, and the places guessed by each of those that are left out.

    named: the user chose the members, so that none is left out. Otherwise a run takes part that guessed as many places
    as the run with the most.
    """
    most = max(len(guess) for guess in guesses.values())
    left_out = {name: len(guess) for name, guess in guesses.items() if len(guess) < most and not named}
    return on_common_places({name: guess for name, guess in guesses.items() if name not in left_out}), left_out


def fit_weights(members: Sequence[Guesses], places: Places, rows: int = 3000, seed: int = 0) -> np.ndarray:
    """Fit the weights (M,) of members, summing to 1, to the best competition score of their out-of-fold blend.

    The greedy search on the simplex starts at the best single member or the equal blend, and moves shares to and from
    one member at a time, in ever smaller steps, while the score rises. It scores at most `rows` training places, drawn
    with `seed`. Raises KitError if the members did not guess the same places, as a blend would then drop rows.
    """
    ids = members[0].sample_id
    for number, member in enumerate(members[1:], start=2):
        if len(member) != len(ids) or len(np.setdiff1d(member.sample_id, ids)):
            raise KitError(
                f"member {number}: expected the {len(ids)} places of member 1; got {len(member)}, others among them"
            )
    if len(ids) > rows:
        ids = np.random.default_rng(seed).choice(ids, rows, replace=False)
    members = [member.at(ids) for member in members]

    def score(weights: np.ndarray) -> float:
        used = np.flatnonzero(weights)  # points of weight 0 only cost time
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


def weights_over_folds(
    members: Sequence[Guesses], places: Places, fold: np.ndarray, rows: int = 3000, seed: int = 0
) -> tuple[np.ndarray, Guesses]:
    """Weights (F, M) fitted without each fold (N,) of the places of member 1, and the blend of each fold by its own.

    The blend's score is free of the flattery of weights that were fitted on the very places that they are scored on.
    rows, seed: as for `fit_weights`.
    """
    ids, folds = members[0].sample_id, np.unique(fold)
    weights = np.stack([fit_weights([m.at(ids[fold != k]) for m in members], places, rows, seed) for k in folds])
    blends = [average([m.at(ids[fold == k]) for m in members], w) for k, w in zip(folds, weights, strict=True)]
    return weights, stack(blends)


def temperature(guesses: Guesses, places: Places) -> float:
    """Fit the temperature of the state probabilities to the least mean log loss of out-of-fold guesses.

    Above 1 the guesses were over-confident, below 1 under-confident (Guo et al. 2017, arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[guesses.sample_id].to_numpy()
    known = guesses.state_idx == truth[:, None]  # (N, S), one per row at most
    if not known.any():
        raise KitError("no guessed place lies in a state that the guesses know: nothing to calibrate on")
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))

    def loss(log_temperature: float) -> float:
        return -float(_log_softmax(log_probs / np.exp(log_temperature))[known].mean())

    least = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(least.x))


def calibrated(guesses: Guesses, at_temperature: float) -> Guesses:
    """Rescale the state probabilities by a temperature, as fitted by `temperature`; their ranks stay."""
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))
    return replace(guesses, state_probs=np.exp(_log_softmax(log_probs / at_temperature)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
