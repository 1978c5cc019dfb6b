"""Pairs and triplets are drawn with the chances that their weights say, and never within a group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval import pairing


def towns(n: int, seed: int = 0) -> np.ndarray:
    """Places in towns some 20 km wide, in a land of 2,000 km."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((30, -100), (48, -80), (12, 2))
    return centres[rng.integers(12, size=n)] + rng.normal(0, 0.1, (n, 2))


def exact(points: np.ndarray, radius_km: float) -> float:
    """The share of all pairs that are that near."""
    n = len(points)
    return float(((geo.distance_matrix_km(points) <= radius_km).sum() - n) / (n * (n - 1)))


def test_few_places_give_every_pair_once():
    a, b, weight = pairing.draw_pairs(towns(20), pairing.groups_of(None, 20), 190, np.random.default_rng(0))
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 190 and (a < b).all() and (weight == 1).all()
    group = np.arange(20) // 5
    a, b, _ = pairing.draw_pairs(towns(20), pairing.groups_of(group, 20), 190, np.random.default_rng(0))
    assert len(a) == 190 - 4 * 10 and (group[a] != group[b]).all()


@pytest.mark.parametrize("group", [None, np.r_[np.zeros(8, int), np.arange(1, 23)], np.r_[[3, 3, 3], np.full(27, -1)]])
def test_weights_sum_to_one_for_each_pair_on_average(group, monkeypatch):
    monkeypatch.setattr(pairing, "NEAR", 6)
    n, runs = 30, 1000
    groups, points, total = pairing.groups_of(group, n), towns(n), np.zeros((n, n))
    rng = np.random.default_rng(0)
    for _ in range(runs):
        a, b, weight = pairing.draw_pairs(points, groups, 200, rng)
        assert len(a) == 200
        np.add.at(total, (np.minimum(a, b), np.maximum(a, b)), weight)
    wanted = np.triu(groups.code[:, None] != groups.code, 1)
    assert not total[~wanted].any()
    mean = total[wanted] / runs
    assert mean.mean() == pytest.approx(1, abs=0.005)
    np.testing.assert_allclose(mean, 1, atol=0.3)  # five standard errors


def test_short_distances_are_well_represented_and_shares_unbiased():
    points = towns(2000)
    a, b, weight = pairing.draw_pairs(points, pairing.groups_of(None, 2000), 100_000, np.random.default_rng(0))
    km = geo.distance_km(points[a], points[b])
    for radius in (1, 3, 30, 500):
        share = exact(points, radius)
        assert weight @ (km <= radius) / weight.sum() == pytest.approx(share, rel=0.15 if radius < 10 else 0.03)
        if radius < 5:
            assert (km <= radius).mean() > 10 * share
    assert weight.max() <= 2 * 2000 * 1999 / 2 / 100_000 * (1 + 1e-9)


def test_neighbours_are_drawn_uniformly_in_log_distance():
    points = np.random.default_rng(0).uniform((40, -100), (41, -99), (6000, 2))
    a, b, _ = pairing.draw_pairs(points, pairing.groups_of(None, 6000), 40_000, np.random.default_rng(1))
    km = geo.distance_km(points[a], points[b])[20_000:]  # those among neighbours
    decades = np.histogram(np.log(km), np.log(np.geomspace(2, 8, 5)))[0]  # the nearest is 0.6 km away, the 128th 8
    assert decades.max() < 1.35 * decades.min()


def test_places_that_have_near_duplicates_only_for_neighbours_still_come():
    points = np.concatenate([np.full((200, 2), 10.0), towns(300)])
    group = np.r_[np.zeros(200, int), np.arange(1, 301)]
    groups = pairing.groups_of(group, 500)
    a, b, weight = pairing.draw_pairs(points, groups, 20_000, np.random.default_rng(0))
    assert (group[a] != group[b]).all() and len(a) == 20_000
    assert weight.sum() == pytest.approx(groups.others.sum() / 2, rel=0.03)
    assert (weight @ ((a < 200) | (b < 200))) / weight.sum() == pytest.approx(60_000 / (60_000 + 44_850), rel=0.03)
    lone = pairing.groups_of(np.r_[np.zeros(250, int), np.ones(250, int)], 500)
    points = np.r_[np.full((250, 2), 10.0), np.full((250, 2), 50.0)]  # no neighbour at all outside the group
    a, b, weight = pairing.draw_pairs(points, lone, 5000, np.random.default_rng(0))
    assert len(a) == 5000 and (lone.code[a] != lone.code[b]).all() and weight.sum() == pytest.approx(250 * 250)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-2, 4), min_size=4, max_size=14), st.integers(0, 9))
def test_triplets_are_of_three_places_the_others_outside_the_first_ones_group(group, seed):
    if len(set(group)) == 1 and group[0] >= 0:
        with pytest.raises(KitError, match="one group"):
            pairing.groups_of(group, len(group))
        return
    groups = pairing.groups_of(group, len(group))
    if groups.others.max() < 2:
        return
    place, one, two = pairing.draw_triplets(groups, 4000, np.random.default_rng(seed)).T
    own = np.asarray(group)
    for other in (one, two):
        assert not ((own[place] == own[other]) & (own[place] >= 0)).any() and (place != other).all()
    assert (one != two).all()
    possible = (groups.others * (groups.others - 1))[groups.others >= 2].sum()
    if possible <= 300:
        assert len(np.unique(np.stack([place, one, two]), axis=1).T) == possible


def test_bad_groups_are_refused():
    with pytest.raises(KitError, match="all 3 places are in one group"):
        pairing.groups_of([7, 7, 7], 3)
    with pytest.raises(KitError, match="wanted are 4 integers"):
        pairing.groups_of([7, 7, 8], 4)
    with pytest.raises(KitError, match="float64"):
        pairing.groups_of([7.0, 8.0], 2)
    with pytest.raises(KitError, match="n_pairs=0"):
        pairing.draw_pairs(towns(9), pairing.groups_of(None, 9), 0, np.random.default_rng(0))
    with pytest.raises(KitError, match="two others"):
        pairing.draw_triplets(pairing.groups_of(None, 2), 5, np.random.default_rng(0))
