"""Other ways to blend members than fitted weights, to compare with: each is fitted like `ensemble.fit`.

blend = blenders.stacking(oof, places)     # oof: the members' out-of-fold guesses by name
blend(test)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.ensemble import FLOOR, calibrated, log_softmax, temperature
from kitlib.evaluation.guesses import Guesses, average

Blender = Callable[[Mapping[str, Guesses]], Guesses]


def equal(members: Mapping[str, Guesses], places: Places) -> Blender:
    """A blender with equal weights of the members as they are."""
    return lambda asked: average(list(asked.values()))


def logit_mean(members: Mapping[str, Guesses], places: Places) -> Blender:
    """A blender that averages the logarithms of the members' calibrated probabilities."""
    heat = {name: temperature(member, places) for name, member in members.items()}

    def blend(asked: Mapping[str, Guesses]) -> Guesses:
        mean = average(list(asked.values()))
        logs = [np.log(np.maximum(calibrated(g, heat[n]).on_states(mean.state_idx).state_probs, FLOOR))
                for n, g in asked.items()]  # fmt: skip
        return replace(mean, state_probs=np.exp(log_softmax(np.mean(logs, axis=0))))

    return blend


def rank_fusion(members: Mapping[str, Guesses], places: Places) -> Blender:
    """A blender by reciprocal ranks of the states (Cormack et al. 2009, constant 60)."""
    return lambda asked: _from_states(asked, lambda probs: 1 / (60 + _ranks(probs)))


def voting(members: Mapping[str, Guesses], places: Places) -> Blender:
    """A blender in which each member's five states earn what the competition pays for their ranks."""
    paid = np.array([*metrics.WEIGHTS, 0.0])
    return lambda asked: _from_states(asked, lambda probs: paid[np.minimum(_ranks(probs), len(paid) - 1)])


def stacking(members: Mapping[str, Guesses], places: Places) -> Blender:
    """A blender by ridge regression of the state on all members' log-probabilities."""
    from sklearn.linear_model import RidgeCV

    def inputs(asked: Mapping[str, Guesses]) -> np.ndarray:
        return np.hstack([np.log(np.maximum(asked[name].on_states(states).state_probs, 1e-4)) for name in members])

    states = np.unique(np.concatenate([member.state_idx for member in members.values()]))
    ids = next(iter(members.values())).sample_id
    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[ids].to_numpy()
    same_rows = {name: member.at(ids) for name, member in members.items()}
    model = RidgeCV(np.geomspace(1, 1e5, 11)).fit(inputs(same_rows), (truth[:, None] == states).astype(float))

    def blend(asked: Mapping[str, Guesses]) -> Guesses:
        mean = average(list(asked.values())).on_states(states)
        probs = model.predict(inputs({n: g.at(mean.sample_id) for n, g in asked.items()})).clip(1e-4)
        return replace(mean, state_probs=probs / probs.sum(axis=1, keepdims=True))

    return blend


OTHERS: dict[str, Callable[[Mapping[str, Guesses], Places], Blender]] = {
    "equal weights": equal,
    "mean of logits": logit_mean,
    "reciprocal ranks": rank_fusion,
    "voting": voting,
    "stacking": stacking,
}


def _from_states(asked: Mapping[str, Guesses], value: Callable[[np.ndarray], np.ndarray]) -> Guesses:
    """The mean of members whose state probabilities (N, S) are replaced by values (N, S)."""
    mean = average(list(asked.values()))
    probs = np.sum([value(guess.on_states(mean.state_idx).state_probs) for guess in asked.values()], axis=0) + FLOOR
    return replace(mean, state_probs=probs / probs.sum(axis=1, keepdims=True))


def _ranks(probs: np.ndarray) -> np.ndarray:
    """The rank (N, S) of each state, 0 for the most probable."""
    return np.argsort(np.argsort(-probs, axis=1, kind="stable"), axis=1, kind="stable")
