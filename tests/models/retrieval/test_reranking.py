"""Re-ranking: what it learns from candidates, that no place is scored by its own truth, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from kitlib import geo
from kitlib.models.retrieval.reranking import Reranker, crowding, describe
from kitlib.models.retrieval.voting import Entries

N, M, K = 90, 300, 12


@pytest.fixture(scope="module")
def entries() -> Entries:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(30, 48, M), rng.uniform(-120, -80, M)])
    states = np.eye(2, dtype=np.float32)[(points[:, 1] > -100).astype(int)]
    return Entries(points, states, np.array([4, 7]), np.full(2, 0.5), points[0])


@pytest.fixture(scope="module")
def searched(entries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 2), and candidates (N, K) of them: half the nearest entries, half any, in random order."""
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(30, 48, N), rng.uniform(-120, -80, N)])
    near = geo.nearest(points, entries.points, K // 2)[1]
    index = np.concatenate([near, rng.integers(M, size=(N, K - K // 2))], axis=1)
    index = rng.permuted(index, axis=1)
    return points, -np.sort(-rng.uniform(0.4, 0.6, (N, K)), axis=1), index


@pytest.fixture(scope="module")
def crowded(entries) -> np.ndarray:
    return crowding(np.random.default_rng(2).normal(size=(M, 8)), entries.points)


def test_candidates_that_agree_come_first(entries, searched, crowded):
    points, similarity, index = searched
    _, _, order = Reranker.fit(similarity, index, entries, crowded, points, np.arange(N))
    km = [geo.distance_km(points, entries.points[rows[:, 0]]) for rows in (index, order)]
    assert np.median(km[0]) > 1.5 * np.median(km[1]), [np.median(k) for k in km]


def test_no_place_is_scored_by_its_own_truth(entries, searched, crowded):
    points, similarity, index = searched
    group = np.arange(N) // 3
    _, scores, order = Reranker.fit(similarity, index, entries, crowded, points, group)
    moved = points.copy()
    moved[group == 4] = [0.0, 0.0]
    other, scores_moved, order_moved = Reranker.fit(similarity, index, entries, crowded, moved, group)
    assert np.array_equal(order[group == 4], order_moved[group == 4])
    assert np.array_equal(scores[group == 4], scores_moved[group == 4])
    assert not np.array_equal(scores, scores_moved)
    assert np.isfinite(other.weights).all()


def test_missing_candidates_stay_last(entries, searched, crowded):
    points, similarity, index = searched
    short, rows = similarity.copy(), index.copy()
    short[:, 8:], rows[:, 8:] = -np.inf, -1
    short[0], rows[0] = -np.inf, -1
    reranker, scores, order = Reranker.fit(short, rows, entries, crowded, points, np.arange(N))
    for found, places in ((scores, order), reranker.rerank(short, rows, entries)):
        assert np.isneginf(found[0]).all() and (places[0] == -1).all()
        assert np.isfinite(found[1:, :8]).all() and (places[:, 8:] == -1).all()
        assert (np.diff(found[1:, :8]) <= 0).all()
    without = describe(similarity[1:, :8], index[1:, :8], entries, crowded)
    assert np.allclose(describe(short, rows, entries, crowded)[1:, :8], without)


def test_a_candidate_counts_the_others_around_it_and_not_itself():
    points = np.array([[40.0, -100.0], [40.0, -100.0], [40.0, 80.0]])
    entries = Entries(points, np.eye(2)[[0, 0, 1]], np.arange(2), np.full(2, 0.5), points[0])
    features = describe(np.full((1, 3), 0.5), np.arange(3)[None], entries, np.zeros((3, 3)))[0]
    shares = np.exp(features[:, 4:9]) - 1e-3  # at four distances, and for the state
    assert np.allclose(shares[:2, 0], 1 / 3, atol=1e-6) and np.allclose(shares[2], 0, atol=0.01)
    assert np.allclose(shares[:, 4], [1 / 3, 1 / 3, 0], atol=1e-6)


def test_crowding_is_higher_where_entries_are_alike_and_close():
    embeddings = np.concatenate([np.tile([1.0, 0.0, 0.0], (30, 1)), np.random.default_rng(0).normal(size=(30, 3))])
    points = np.column_stack([np.r_[np.full(30, 40.0), np.linspace(-60, 0, 30)], np.full(60, 10.0)])
    alike, fifth, twentieth = crowding(embeddings, points).T
    assert alike[:30].min() > alike[30:].max() - 1e-6 and alike[0] == pytest.approx(1)
    assert fifth[:30].max() == 0 and (fifth[30:] > np.log(200)).all() and (twentieth >= fifth).all()
