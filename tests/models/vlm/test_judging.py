"""Judging: which places are candidates, how a judgment moves weight, and what is asked; without a model."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm import judging
from kitlib.models.vlm.conversation import prompts
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.judging import Candidates, Gallery, Scale

# Five places along the equator; the first two are near-duplicates, and the last two are in state 7.
GALLERY = Gallery(
    np.array([[0, 0], [0, 0.0001], [0, 10], [0, 20], [0, 30]], float),
    state=np.array([0, 0, 0, 1, 1]),
    group=np.array([4, 4, 5, 6, 7]),
    row=np.array([0, 1, 2, 4, 5]),
)
EVERY = np.ones(5, bool)
SCALE = Scale((50.0, 200.0, 1000.0))


def guess(lons: list[list[float]], weights: list[list[float]]) -> Guesses:
    points = np.stack([np.zeros_like(lons), lons], axis=-1)
    weights_, n = np.array(weights), len(lons)
    states = np.array([GALLERY.state[np.abs(GALLERY.points[:, 1] - np.array(row)[:, None]).argmin(1)] for row in lons])
    probs = np.stack([(weights_ * (states == state)).sum(1) for state in (0, 1)], axis=1)
    return Guesses(np.arange(n), np.array([3, 7]), probs, points, weights_, np.ones(n, bool))


TWO = guess([[10, 20, 30], [20, 20, 10]], [[0.5, 0.2, 0.3], [0.25, 0.25, 0.5]])


def test_candidates_are_the_allowed_places_of_most_weight():
    found = Candidates.of(TWO, GALLERY, np.array([-1, -1]), EVERY, n=2)
    assert found.place.tolist() == [0, 0, 1, 1] and found.entry.tolist() == [2, 4, 2, 3]  # 20 has two points of 0.25
    held_out = np.array([True, True, False, True, True])
    found = Candidates.of(TWO, GALLERY, np.array([-1, -1]), held_out, n=2)
    assert found.place.tolist() == [0, 0, 1] and found.entry.tolist() == [4, 3, 3]


def test_a_place_and_its_near_duplicates_are_no_candidates_of_it():
    own = guess([[0.0, 30]], [[0.9, 0.1]])
    found = Candidates.of(own, GALLERY, np.array([4]), EVERY, n=8)
    assert found.entry.tolist() == [2, 4]  # the nearest place of another group stands for the point
    crowd = Gallery(*(np.repeat(part, [5, 0, 1, 1, 1], axis=0) for part in vars(GALLERY).values()))
    assert Candidates.of(own, crowd, np.array([4]), np.ones(8, bool), n=8).at.tolist() == [[-1, 7]]


def test_points_without_weight_are_no_candidates():
    assert Candidates.of(guess([[10, 20]], [[1, 0]]), GALLERY, np.array([-1]), EVERY, 8).entry.tolist() == [2]


def test_a_judgment_moves_weight_among_candidates_and_states_follow():
    found = Candidates.of(TWO, GALLERY, np.array([-1, -1]), EVERY, n=2)
    again = found.reweighted(TWO, GALLERY, np.array([1.0, 3.0, 1.0, 1.0]))
    # 0.5 and 3 * 0.3 share 0.8; the point that was not judged keeps 0.2.
    assert again.weights[0] == pytest.approx([0.8 * 0.5 / 1.4, 0.2, 0.8 * 0.9 / 1.4])
    assert again.state_probs[0] == pytest.approx([0.8 * 0.5 / 1.4, 0.2 + 0.8 * 0.9 / 1.4])
    assert np.allclose(again.weights[1], TWO.weights[1]) and np.allclose(again.state_probs[1], TWO.state_probs[1])
    assert np.array_equal(again.points, TWO.points)


def test_a_place_without_candidates_keeps_its_guess():
    found = Candidates.of(TWO, GALLERY, np.array([-1, -1]), np.zeros(5, bool), n=2)
    again = found.reweighted(TWO, GALLERY, np.empty(0))
    assert not len(found.place) and np.allclose(again.weights, TWO.weights)
    assert np.allclose(again.state_probs, TWO.state_probs)


def test_the_question_has_both_places_pictures_and_what_is_known_of_the_candidate():
    [message] = SCALE.ask(("north", "south"), prompts.COMPETITION, Reply((39.961, -82.998), region="Ohio"))
    text = "\n".join(part.get("text", "<picture>") for part in message["content"])
    pictures = "Facing north:\n<picture>\nFacing south:\n<picture>\n"
    known = "State: Ohio\nLatitude: 39.9610\nLongitude: -82.9980\n"
    assert text == 2 * pictures + known + (
        "How many km is the first place from this one?\n1: within 50, 2: within 200, 3: within 1000, 4: farther"
    )
    [message] = SCALE.ask(("only",), prompts.WORLD, Reply((1.0, 2.0)))
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"].startswith("Latitude: 1.0000\nLongitude: 2.0000\nHow many")


def test_a_nearer_reply_is_worth_more():
    sure = np.where(np.eye(4) > 0, 0.0, -30.0)
    worth = SCALE.closeness(sure + 100)  # a constant of a row changes nothing
    assert worth == pytest.approx([2 / 3, 1 / 3, 1 / (1 + np.sqrt(200 * 1000) / 50), 1 / 41])
    assert [SCALE.reply(km) for km in (0, 50, 50.1, 999, 1001)] == ["1", "1", "2", "3", "4"]


def test_agreement_of_a_perfect_a_reversed_and_an_undecided_judge():
    km, place = np.array([1.0, 5.0, 9.0, 2.0, 3.0, 4.0]), np.array([0, 0, 0, 1, 1, 2])

    def of(judged):
        return {name: values.tolist() for name, values in judging.agreement(judged, km, place).items()}

    chance = [pytest.approx(1 / 3), 1 / 2]  # the place with one candidate has nothing to choose
    assert of(-km) == {"nearest": [1, 1], "by_chance": chance, "order": [1, 1]}
    assert of(km) == {"nearest": [0, 0], "by_chance": chance, "order": [0, 0]}
    assert of(0 * km)["order"] == [0.5, 0.5]
