"""Blend members: calibrate each, and mix their state probabilities and their points with weights of their own.

    blend = ensemble.fit(oof, places)          # oof: the members' out-of-fold guesses by name
    blend(test)                                # the blend of the same members' guesses for other places
    ensemble.nested(oof, places, fold)         # out of fold a second time: what the blend is worth

State probabilities and points are scored apart, so that they are weighed apart: a member with honest states may have
poor points. Weights that were fitted on a place flatter its score; `nested` fits them on the other folds.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses, average, stack
from kitlib.evaluation.runs import Run

log = logging.getLogger(__name__)

STEPS = (0.4, 0.2, 0.1)  # shares moved to or from a member
EXPONENTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # of the weights of a member's points
FLOOR = 1e-9  # of a probability, as the log loss of 0 is infinite
PARTS = 5  # into which the places of a single fold are dealt out, to fit weights without one
ROWS = 2000  # places that a search looks at
BAGS = 8  # random halves of these, on which weights are searched and then averaged: less is fitted to single places
MOST_POINTS = 24  # of a guess, the heaviest first, in a search


@dataclass(frozen=True)
class Blend:
    """A mixture of members by name; `states` and `points` are weights that sum to 1.

    temperature: of a member's state probabilities. exponent: of the weights of its points.
    """

    states: dict[str, float]
    points: dict[str, float]
    temperature: dict[str, float]
    exponent: dict[str, float]

    def __call__(self, members: Mapping[str, Guesses]) -> Guesses:
        """The blend of guesses, for the places of the first member. Raises KitError if one of `used` is missing."""
        if missing := [name for name in self.used if name not in members]:
            raise KitError(f"blend: expected guesses of {', '.join(self.used)}; {', '.join(missing)} is missing")
        honest = {name: self.calibrated(name, members[name]) for name in self.used}
        states, points = (_mixed(honest, weights) for weights in (self.states, self.points))
        return replace(states, points=points.points, weights=points.weights, answered=states.answered | points.answered)

    @property
    def used(self) -> list[str]:
        """The members with a weight of their states or of their points."""
        return [name for name in self.states if self.states[name] > 0 or self.points[name] > 0]

    def calibrated(self, name: str, guesses: Guesses) -> Guesses:
        """The guesses of one member at its temperature and exponent."""
        return sharpened(calibrated(guesses, self.temperature[name]), self.exponent[name])

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The numbers for the record of a submission."""
        return {kind: {name: round(x, 4) for name, x in values.items()} for kind, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """A blend from the record of a submission."""
        return cls(**{name: dict(record[name]) for name in ("states", "points", "temperature", "exponent")})


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


def check(runs: Sequence[Run]) -> None:
    """Raise KitError unless the runs have the same places and folds: a blend of others would be scored on its training.

    A run whose folds leave out whole blocks and one with stratified folds have learned from different neighbours.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, of in (("places", run.params["data"]), ("folds", run.params["data"]), ("folds_column", run.settings)):
            expected = (first.settings if what == "folds_column" else first.params["data"]).get(what)
            if of.get(what) != expected:
                raise KitError(
                    f"{run.name}: expected a member with the {what} of {first.name}; it was trained on others"
                )


def seeds_of(runs: Sequence[Run]) -> list[list[str]]:
    """The names of runs in groups that differ in nothing but their seed: one member of a blend each."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        groups.setdefault(repr(sorted(settings.items())), []).append(run.name)
    return list(groups.values())


def fit(
    members: Mapping[str, Guesses],
    places: Places,
    seeds: Sequence[Sequence[str]] = (),
    seed: int = 0,
    known: Blend | None = None,
) -> Blend:
    """Fit a blend to the best out-of-fold score of members that guessed the same training places.

    seeds: groups of members that share one weight equally, as of `seeds_of`; each is its own group when empty. The
    search looks at `ROWS` places at most, drawn with `seed`. known: a blend of these members and others, fitted to the
    same places, whose temperatures and exponents are taken: each depends on its own member alone. Raises KitError for
    members of other places.
    """
    names = list(members)
    ids = members[names[0]].sample_id
    for name, member in members.items():
        if len(member) != len(ids) or len(np.setdiff1d(member.sample_id, ids)):
            raise KitError(
                f"{name}: expected guesses for the {len(ids)} places of {names[0]}; got {len(member)} others"
            )
    if len(ids) > ROWS:
        ids = np.random.default_rng(seed).choice(ids, ROWS, replace=False)
    members = {name: member.at(ids) for name, member in members.items()}
    groups = [[name for name in group if name in members] for group in seeds] or [[name] for name in names]
    groups = [group for group in groups if group]
    heat = {n: known.temperature[n] if known else temperature(member, places) for n, member in members.items()}
    honest = {name: calibrated(member, heat[name]) for name, member in members.items()}
    power = {n: known.exponent[n] if known else exponent(member, places) for n, member in members.items()}

    def shared(weights: np.ndarray) -> dict[str, float]:
        return {name: float(w) / len(group) for w, group in zip(weights, groups, strict=True) for name in group}

    parts = [average([honest[name] for name in group]) for group in groups]
    sharp = [average([sharpened(members[name], power[name]) for name in group]) for group in groups]
    by_states = _search(_state_scores(parts, places), len(ids), len(groups))
    by_points = _search(_point_scores(sharp, places), len(ids), len(groups))
    return Blend(shared(by_states), shared(by_points), heat, power)


def nested(
    members: Mapping[str, Guesses],
    places: Places,
    fold: Mapping[Any, int] | pd.Series,
    blender: Callable[..., Any] = fit,
    known: Mapping[int, Blend] | None = None,
) -> tuple[Guesses, dict[int, Any]]:
    """The blended out-of-fold guesses, each fold's by a blend that was fitted on the other folds; and these blends.

    fold: of each place, by sample_id. blender: such as `fit` or one of `blenders.OTHERS`. known: these blends of more
    members, as for `fit`.
    """
    ids = next(iter(members.values())).sample_id
    of = pd.Series(fold).loc[ids].to_numpy()
    if len(np.unique(of)) == 1:  # of runs of one fold: parts of that
        of = np.arange(len(ids)) % PARTS
    blends = {}
    for k in np.unique(of).tolist():
        others = {name: member.at(ids[of != k]) for name, member in members.items()}
        blends[k] = blender(others, places, **({"known": known[k]} if known else {}))
    parts = [blend({name: m.at(ids[of == k]) for name, m in members.items()}) for k, blend in blends.items()]
    return stack(parts).at(ids), blends


def temperature(guesses: Guesses, places: Places) -> float:
    """Fit the temperature of the state probabilities to the least mean log loss of out-of-fold guesses.

    Above 1 the guesses were over-confident, below 1 under-confident (Guo et al. 2017, arXiv:1706.04599). It is 1 if no
    place lies in a state that the guesses know, as there is nothing to fit.
    """
    from scipy.optimize import minimize_scalar

    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[guesses.sample_id].to_numpy()
    known = guesses.state_idx == truth[:, None]  # (N, S), one per row at most
    if not known.any():
        log.warning("none of %d places lies in a state that the guesses know: their temperature stays 1", len(guesses))
        return 1.0
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(log_probs / np.exp(log_temperature))[known].mean())

    least = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(least.x))


def exponent(guesses: Guesses, places: Places) -> float:
    """The one of `EXPONENTS` for the weights of the points with the least mean error of out-of-fold guesses.

    Below 1 the weights were too sure: the point moves from the likeliest place towards the middle of all.
    """
    truth = _truth(places, guesses.sample_id)
    powers = EXPONENTS if guesses.points.shape[1] > 1 else (1.0,)
    errors = {p: geo.distance_km(truth, sharpened(guesses, p).point()).mean() for p in powers}
    return min(powers, key=lambda p: (errors[p], abs(p - 1)))


def calibrated(guesses: Guesses, at_temperature: float) -> Guesses:
    """Rescale the state probabilities by a temperature, as fitted by `temperature`; their ranks stay."""
    if at_temperature == 1:
        return guesses
    log_probs = np.log(np.maximum(guesses.state_probs, FLOOR).astype(float))
    return replace(guesses, state_probs=np.exp(log_softmax(log_probs / at_temperature)))


def sharpened(guesses: Guesses, power: float) -> Guesses:
    """Raise the weights of the points to a power, as fitted by `exponent`."""
    if power == 1:
        return guesses
    weights = guesses.weights.astype(float) ** power
    return replace(guesses, weights=np.where(guesses.weights > 0, weights, 0) / weights.sum(axis=1, keepdims=True))


def _mixed(members: Mapping[str, Guesses], weights: Mapping[str, float]) -> Guesses:
    """The average of the members with a weight; points of weight 0 would only cost time."""
    used = [name for name, weight in weights.items() if weight > 0]
    first = next(iter(members.values()))
    ids = first.sample_id
    return average([members[name].at(ids) for name in used], [weights[name] for name in used]).on_states(
        functools.reduce(np.union1d, (member.state_idx for member in members.values()))
    )


def _truth(places: Places, ids: np.ndarray) -> np.ndarray:
    """The true points (N, 2) of training places."""
    return places.rows("train").set_index("sample_id").loc[ids, ["latitude", "longitude"]].to_numpy(float)


def _search(scores: Callable[[np.ndarray], np.ndarray], n_places: int, n: int) -> np.ndarray:
    """The weights (n,) with the best mean of scores (N,), as a mean over searches on random halves of the places."""
    if n == 1:
        return np.ones(1)
    known: dict[bytes, np.ndarray] = {}

    def score(weights: np.ndarray, rows: np.ndarray) -> float:
        key = weights.round(6).tobytes()
        if key not in known:
            known[key] = scores(weights)
        return float(known[key][rows].mean())

    rng = np.random.default_rng(0)
    halves = [rng.permutation(n_places)[: (n_places + 1) // 2] for _ in range(BAGS)]
    return np.mean([_climbed(functools.partial(score, rows=rows), n) for rows in halves], axis=0)


def _climbed(score: Callable[[np.ndarray], float], n: int) -> np.ndarray:
    """The weights (n,) with the best score: from the best single member or equal shares, moving ever smaller shares."""
    corners = np.eye(n)
    starts = [np.full(n, 1 / n), *corners]
    found = [score(start) for start in starts]
    best, weights = max(found), starts[int(np.argmax(found))]
    for step in STEPS:
        improved = True
        while improved:
            to = [(1 - step) * weights + step * corner for corner in corners]
            away = [np.maximum(weights - step * corner, 0) for corner in corners]
            trials = [trial / trial.sum() for trial in to + away if trial.sum() > 0]
            found = [score(trial) for trial in trials]
            improved = max(found) > best + 1e-6
            if improved:
                best, weights = max(found), trials[int(np.argmax(found))]
    return weights


def _state_scores(members: Sequence[Guesses], places: Places) -> Callable[[np.ndarray], np.ndarray]:
    """The state score (N,) of each place by a mixture of members, as a function of its weights (M,)."""
    states = functools.reduce(np.union1d, (member.state_idx for member in members))
    ids = members[0].sample_id
    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[ids].to_numpy()
    same_rows = [member.at(ids).on_states(states) for member in members]
    probs = np.stack([np.where(m.answered[:, None], m.state_probs, 0) for m in same_rows]).astype(np.float32)
    known = np.flatnonzero(np.isin(truth, states))
    row, column = np.arange(len(known)), np.searchsorted(states, truth[known])
    probs, earns = probs[:, known], np.array([*metrics.WEIGHTS, *[0.0] * len(states)])

    def scores(weights: np.ndarray) -> np.ndarray:
        mixed = np.tensordot(weights.astype(np.float32), probs, 1)
        own = mixed[row, column][:, None]
        rank = (mixed > own).sum(1) + ((mixed == own) & (np.arange(len(states)) < column[:, None])).sum(1)
        earned = np.zeros(len(ids))
        earned[known] = earns[rank]
        return earned

    return scores


def _point_scores(members: Sequence[Guesses], places: Places) -> Callable[[np.ndarray], np.ndarray]:
    """Minus the error (N,) in km of each place by a mixture of members, as a function of its weights (M,).

    The geometric median of a mixture lies between those of its members. The one with the least expected distance of
    these, of that of equal weights, and of the middles between the two stands for it: a trial then costs a product.
    """
    ids = members[0].sample_id
    same_rows = [member.at(ids) for member in members]
    middle = geo.unit_vectors(average(same_rows).point())
    own = [geo.unit_vectors(member.point()) for member in same_rows]
    vectors = np.stack([middle, *own, *(middle + each for each in own)], axis=1)  # (N, C, 3)
    candidates = geo.from_unit_vectors(vectors)
    tables = []
    for member in same_rows:
        order = np.argsort(-member.weights, axis=1)[:, :MOST_POINTS]
        points = np.take_along_axis(member.points, order[..., None], 1)
        share = np.take_along_axis(member.weights, order, 1)
        share = share / share.sum(axis=1, keepdims=True) * member.answered[:, None]
        km = geo.distance_km(points[:, :, None], candidates[:, None])  # (N, K, C)
        tables.append(np.einsum("nk,nkc->nc", share, km).astype(np.float32))
    expected, km = np.stack(tables), geo.distance_km(_truth(places, ids)[:, None], candidates)

    def scores(weights: np.ndarray) -> np.ndarray:
        chosen = np.tensordot(weights.astype(np.float32), expected, 1).argmin(axis=1)
        return -km[np.arange(len(chosen)), chosen]

    return scores


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax of logits (N, S)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
