"""fallback: every place is scored, answered or not."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.core.errors import KitError
from kitlib.geo import distance_km
from kitlib.models.vlm.conversation.replies import Answer, read
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.guessing import guesses_of, points_of, weighted

STATES, STATE_IDX = Labels(["Kansas", "Ohio"]), np.array([15, 34])
COMMON, MIDDLE = np.array([0.25, 0.75]), np.array([39.0, -90.0])
REPLIES = [
    ["State: Kansas\n38, -98", "State: Kansas\n38, -99", "Hm."],
    ["State: Kansas, Ohio\n1, 2\n3, 4", "", "<think>State: Ohio\n40, -83"],
    ["State: Ohio", "", ""],
    ["40, -83", "", ""],
]


def guesses(smoothing=0.1):
    answers = [[read(reply, {"region": STATES}) for reply in row] for row in REPLIES]
    return guesses_of(np.arange(4), answers, STATES, STATE_IDX, COMMON, MIDDLE, smoothing)


def test_unanswered_places_get_a_stand_in_and_are_marked():
    said = guesses()
    assert said.answered.tolist() == [True, False, False, False] and len(said) == 4
    assert said.points[0, :2].tolist() == [[38.0, -98.0], [38.0, -99.0]] and said.weights[0].tolist() == [0.5, 0.5, 0]
    assert said.point()[1].tolist() == pytest.approx(MIDDLE.tolist())
    assert said.point()[3].tolist() == pytest.approx([40.0, -83.0])
    assert np.allclose(said.state_probs, [[0.925, 0.075], COMMON, [0.025, 0.975], COMMON])
    assert said.top_states(1)[:, 0].tolist() == [15, 34, 34, 34]


def test_a_mean_over_guesses_counts_everyone():
    km = distance_km(guesses().point(), np.tile([38.0, -98.0], (4, 1)))
    assert np.isfinite(km).all() and km.mean() > km[guesses().answered].mean()


def test_points_of_answers():
    points = points_of([Answer((1.0, 2.0)), Answer()])
    assert points[0].tolist() == [1.0, 2.0] and np.isnan(points[1]).all() and points_of([]).shape == (0, 2)


def test_bad_input_is_refused():
    answers = [[Answer()], [Answer(), Answer()]]
    with pytest.raises(KitError, match="wanted is K each"):
        guesses_of(np.arange(2), answers, STATES, STATE_IDX, COMMON, MIDDLE)
    with pytest.raises(KitError, match="equal numbers"):
        guesses_of(np.arange(2), [[Answer()]] * 2, STATES, STATE_IDX[:1], COMMON, MIDDLE)
    with pytest.raises(KitError, match=r"wanted is \(N, K, 2\)"):
        weighted(np.zeros((2, 2)), MIDDLE)
    with pytest.raises(KitError, match="the middle"):
        weighted(np.full((1, 1, 2), np.nan), np.array([99.0, 0.0]))
    with pytest.raises(KitError, match="sampled points"):
        weighted(np.array([[[99.0, 0.0]]]), MIDDLE)
