"""A known distribution of the test places over the states, imposed on guesses, with a guard against a wrong one.

    prior.judge(places, uniform, oof)["objection"]  # such as that the training counts contradict it
    prior.impose(test, uniform)                     # the guesses, whose probabilities now add up to it

Where a test set is drawn with the same number of places from each state, a state that the guesses name too often takes
places from others. Multipliers of the states (Sinkhorn's iteration) move the probabilities so that their mean is the
given distribution. It is never estimated from the guesses: that collapses onto a few states.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import chi2

from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.guesses import Guesses

LEAST_P = 0.001  # of the training counts under the prior, to believe in it
ROUNDS = 200  # of Sinkhorn's iteration, at most
CLOSE = 1e-6  # of a mean probability to the prior: the iteration ends
LEAST = 1e-12  # probability, as no factor changes a 0


def uniform(places: Places) -> pd.Series:
    """The distribution, shares by state_idx, that has the same share for each of the data set's states."""
    return pd.Series(1 / len(places.states), index=places.states["state_idx"])


def p_value(places: Places, prior: pd.Series) -> float:
    """The chance of training counts that differ from a prior at least as much as these: a chi-square test."""
    counts = places.rows("train")["state_idx"].value_counts().reindex(prior.index, fill_value=0)
    expected = counts.sum() * prior
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(prior) - 1))


def judge(places: Places, prior: pd.Series, oof: Guesses) -> pd.Series:
    """Whether a prior can be believed, by name: the chance of the training counts, the score without and with it.

    oof: out-of-fold guesses of training places. They are scored as if their true states had this distribution.
    *objection* is why it must not be imposed: the training counts contradict it, or it costs score; else empty.
    """
    p = p_value(places, prior)
    before, after = (weighted_score(each, places, prior) for each in (oof, impose(oof, prior, places)))
    objection = "it would cost score" if after < before else ""
    if p < LEAST_P:
        objection = "the training counts contradict it"
    found = {
        "chance of the training counts": f"{p:.1g}",
        "score without": round(before, 4),
        "score with": round(after, 4),
    }
    return pd.Series(found | {"objection": objection}, dtype=object)


def impose(guesses: Guesses, prior: pd.Series, places: Places | None = None) -> Guesses:
    """Guesses whose state probabilities have the mean `prior`, shares by state_idx that sum to 1.

    places: of training guesses; each place then counts so much that the true states have this distribution as well.
    Raises KitError for a prior without one of the guesses' states.
    """
    if len(prior) != len(guesses.state_idx) or not np.isin(guesses.state_idx, prior.index).all():
        raise KitError(f"prior: expected shares of {len(guesses.state_idx)} states; got {len(prior)} others")
    target = prior.loc[guesses.state_idx].to_numpy(float)
    if (target <= 0).any() or abs(target.sum() - 1) > CLOSE:
        raise KitError(f"prior: expected shares above 0 that sum to 1; got a sum of {target.sum():.4f}")
    share = _shares(guesses, places, prior) if places else np.full(len(guesses), 1 / len(guesses))
    probs = np.maximum(guesses.state_probs.astype(float), LEAST)
    factor = np.ones(len(target))
    for _ in range(ROUNDS):
        each = share / (probs @ factor)  # (N,)
        mean = factor * (each @ probs)  # (S,), which sums to 1
        if np.abs(mean - target).max() < CLOSE:
            break
        factor *= target / mean
    moved = probs * factor
    return replace(guesses, state_probs=moved / moved.sum(axis=1, keepdims=True))


def weighted_score(guesses: Guesses, places: Places, prior: pd.Series) -> float:
    """The score of training guesses if their true states had the distribution `prior`."""
    return float(_shares(guesses, places, prior) @ metrics.place_scores(guesses, places))


def _shares(guesses: Guesses, places: Places, prior: pd.Series) -> np.ndarray:
    """The shares (N,) of training places with which their true states are distributed as `prior`."""
    truth = places.rows("train").set_index("sample_id")["state_idx"].loc[guesses.sample_id]
    share = (truth.map(prior) / truth.map(truth.value_counts())).to_numpy()
    return share / share.sum()
