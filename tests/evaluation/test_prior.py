"""A known distribution of the test places helps where the training places have it, and is refused where they do not."""

from __future__ import annotations

import dataclasses

import members_helper
import numpy as np
import pandas as pd
import pytest
from members_helper import member

from kitlib.core.errors import KitError
from kitlib.evaluation import decisions, prior


@pytest.fixture(scope="module")
def places():
    return members_helper.places()


def tilted(places, by: float):
    """Guesses that name the last states too often."""
    guesses = member(places, 1, 1.2)
    probs = guesses.state_probs * np.exp(by * np.arange(len(guesses.state_idx)))
    return dataclasses.replace(guesses, state_probs=probs / probs.sum(1, keepdims=True))


def test_the_probabilities_get_the_mean_of_the_prior_in_any_order_of_states(places):
    target = pd.Series([0.3, 0.1, 0.1, 0.2, 0.2, 0.1], index=[15, 0, 3, 6, 9, 12])
    moved = prior.impose(tilted(places, 0.5), target)
    np.testing.assert_allclose(moved.state_probs.mean(0), target.loc[moved.state_idx], atol=1e-4)
    twice = prior.impose(moved, target)
    np.testing.assert_allclose(twice.state_probs, moved.state_probs, atol=1e-3)
    with pytest.raises(KitError, match="shares of 6 states; got 5"):
        prior.impose(moved, target.iloc[1:])
    with pytest.raises(KitError, match=r"sum to 1; got a sum of 2\.0000"):
        prior.impose(moved, target * 2)


def test_a_uniform_prior_mends_guesses_that_name_some_states_too_often(places):
    uniform, guesses = prior.uniform(places), tilted(places, 0.7)
    assert prior.p_value(places, uniform) > 0.01  # they were drawn so
    found = prior.judge(places, uniform, guesses)
    assert found["score with"] > found["score without"] + 0.01 and not found["objection"]


def test_a_prior_that_the_training_counts_contradict_is_refused(places):
    table = places.table[(places.table["state_idx"] > 3) | (np.arange(len(places.table)) % 5 == 0)]
    uneven = dataclasses.replace(places, table=table)
    guesses = tilted(places, 0.7).at(uneven.sample_id("train"))
    found = prior.judge(uneven, prior.uniform(uneven), guesses)
    assert found["objection"] == "the training counts contradict it" and float(found.iloc[0]) < 1e-6


def test_a_prior_that_costs_score_is_refused(places):
    uniform, objections = prior.uniform(places), []
    for seed in range(20):  # honest members: there is nothing to mend, so that luck decides
        found = prior.judge(places, uniform, member(places, seed, 0.8))
        objections.append(found["objection"])
        assert found["objection"] or found["score with"] >= found["score without"]
    assert set(objections) == {"", "it would cost score"}


def test_the_geometric_median_is_nearer_than_the_mean_of_honest_points(places):
    guesses = member(places, 1, 1.0)
    found = decisions.table(guesses, places)
    assert found.loc["geometric median of the points", "mean km"] <= found.loc["mean of the points", "mean km"] + 1
    assert len(found) == 5 and found["GPS"].between(0.5, 1).all()
    certain = member(places, 1, 9.0)
    ways = decisions.points(certain, places)
    np.testing.assert_allclose(ways["heaviest point"], certain.point(), atol=0.01)
