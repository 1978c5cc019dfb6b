"""Voting: weights, guesses from neighbours, the choice of k and temperature, states of entries without a label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.models.retrieval.voting import Entries, Vote, choose, state_frequencies, states_nearby

POINTS = np.array([[40.0, -100.0], [41.0, -101.0], [30.0, -90.0], [31.0, -91.0]])
STATE = np.array([0, 0, 1, 1])


def entries(points=POINTS, state=STATE) -> Entries:
    return Entries(
        points, np.eye(3, dtype=np.float32)[state], np.array([4, 7, 9]), state_frequencies(state, 3), POINTS[0]
    )


@given(st.integers(1, 6), st.floats(0.001, 10), st.integers(0, 10**6))
def test_weights_fall_with_similarity_and_sum_to_one(k, temperature, seed):
    similarity = -np.sort(-np.random.default_rng(seed).uniform(-1, 1, (5, 4)), axis=1)
    weights = Vote(k, temperature).weights(similarity)
    assert weights.shape == (5, min(k, 4)) and np.allclose(weights.sum(1), 1)
    assert (np.diff(weights, axis=1) <= 0).all()


def test_a_guess_is_its_neighbours():
    similarity, index = np.array([[0.9, 0.9, -np.inf]], np.float32), np.array([[2, 0, -1]])
    guess = Vote(3, 0.1, 0.1).guess(np.array(["a"]), similarity, index, entries())
    assert guess.weights.tolist() == [[0.5, 0.5, 0.0]]
    assert guess.points[0, :2].tolist() == POINTS[[2, 0]].tolist()
    common = state_frequencies(STATE, 3)
    assert np.allclose(guess.state_probs, 0.9 * np.array([0.5, 0.5, 0]) + 0.1 * common) and (common > 0).all()


def test_the_choice_is_the_best_of_all_that_were_tried():
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(30, 45, 200), rng.uniform(-120, -80, 200)], axis=1)
    state = (points[:, 1] > -100).astype(int)
    km = np.abs(points[:, None] - points).sum(-1) + np.diag(np.full(200, 1e9))
    index = np.argsort(km, axis=1)[:, :40]
    similarity = -np.take_along_axis(km, index, 1) / 10
    vote, tried = choose(similarity, index, entries(points, state), np.array([4, 7])[state], points)
    assert set(tried["k"]) == {5, 10, 20, 40} and len(tried) == 24
    best = tried.loc[tried["final"].idxmax()]
    assert (vote.k, vote.temperature) == (best["k"], best["temperature"]) and best["mean_km"] < 200


def test_places_without_a_neighbour_choose_nothing():
    similarity, index = np.array([[0.9], [-np.inf]]), np.array([[1], [-1]])
    truth = np.array([4, 9]), POINTS[:2]
    vote, tried = choose(similarity, index, entries(), *truth)
    assert vote.k == 1 and (tried["final"] > 0.9).all()
    with pytest.raises(KitError, match="got none for all 1"):
        choose(similarity[1:], index[1:], entries(), truth[0][1:], truth[1][1:])
    with pytest.raises(KitError, match="got none for place 1 of 2"):
        vote.weights(similarity)


def test_a_point_without_a_label_has_the_states_around_it():
    probs = states_nearby(np.array([[40.2, -100.2], [30.5, -90.5], [-60.0, 90.0]]), POINTS, STATE, 3)
    assert np.allclose(probs.sum(1), 1) and (probs.argmax(1)[:2] == [0, 1]).all() and (probs[:, 2] == 0).all()


def test_entries_go_to_a_file_and_back(tmp_path):
    entries().save(tmp_path / "gallery.npz", np.eye(4))
    again, embeddings = Entries.load(tmp_path / "gallery.npz")
    assert np.array_equal(again.points, POINTS) and np.array_equal(embeddings, np.eye(4))
    assert again.fallback(np.array(["a"])).answered.tolist() == [False]
