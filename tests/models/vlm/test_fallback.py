"""Fallbacks: every place is scored, answered or not."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.geo import distance_km
from kitlib.models.vlm.conversation.replies import read
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.guessing import Prior

STATES = Labels(["Kansas", "Ohio"])
# Three quarters of the training places are in Ohio; the middle is one of its points.
PRIOR = Prior(STATES, np.array([15, 34]), np.array([[38.0, -98.0]] + 3 * [[39.0, -90.0]]), np.array([0, 1, 1, 1]),
              smoothing=0.1)  # fmt: skip
REPLIES = [
    ["State: Kansas\n38, -98", "State: Kansas\n38, -99", "Hm."],
    ["State: Kansas, Ohio\n1, 2\n3, 4", "", "<think>State: Ohio\n40, -83"],
    ["State: Ohio", "", ""],
    ["40, -83", "", ""],
]


def guesses():
    replies = [[read(reply, {"region": STATES}) for reply in row] for row in REPLIES]
    return PRIOR.from_replies(np.arange(4), replies)


def test_unanswered_places_get_a_stand_in_and_are_marked():
    result = guesses()
    assert result.answered.tolist() == [True, False, False, True] and len(result) == 4
    assert result.points[0, :2].tolist() == [[38.0, -98.0], [38.0, -99.0]]
    assert result.weights[0].tolist() == [0.5, 0.5, 0]
    assert np.allclose(result.point()[1], PRIOR.middle) and np.allclose(PRIOR.middle, [39.0, -90.0], atol=1e-3)
    assert result.point()[3].tolist() == pytest.approx([40.0, -83.0])
    prior, ohio = [0.25, 0.75], [0.025, 0.975]  # a point without a state is in that of the nearest training place
    assert np.allclose(result.state_probs, [[0.925, 0.075], prior, ohio, ohio])
    assert result.top_states(1)[:, 0].tolist() == [15, 34, 34, 34]


def test_ranked_replies_share_their_vote_as_the_score_pays():
    labels = {"states": STATES}
    replies = [["States: Ohio, Kansas\n40, -83", "States: Kansas\n38, -98"], ["40, -83", "States: Nowhere"]]
    guess = PRIOR.from_replies(np.arange(2), [[read(reply, labels) for reply in row] for row in replies])
    kansas = (0.6 / 1.6 + 1) / 2
    assert np.allclose(guess.state_probs[0], 0.9 * np.array([kansas, 1 - kansas]) + 0.1 * np.array([0.25, 0.75]))
    assert guess.top_states(1)[:, 0].tolist() == [15, 34] and guess.answered.all()


def test_a_mean_over_guesses_counts_everyone():
    km = distance_km(guesses().point(), np.tile([38.0, -98.0], (4, 1)))
    assert np.isfinite(km).all() and km.mean() > km[guesses().answered].min()
