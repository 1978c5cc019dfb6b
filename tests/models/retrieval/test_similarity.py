"""Embeddings whose answers are known: the globe itself, noise, a cone, a collapsed one; and brute force."""

from __future__ import annotations

import doctest
import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval import similarity

RNG = np.random.default_rng(0)


def world(n: int, seed: int = 0) -> np.ndarray:
    return geo.from_unit_vectors(np.random.default_rng(seed).normal(size=(n, 3)))


def test_the_globe_itself_is_in_perfect_order():
    points = world(2000)
    result = similarity.summary(points, 7 * geo.unit_vectors(points), 50_000)
    assert result.spearman == pytest.approx(-1, abs=1e-5) and result.violations < 1e-4
    assert result.nearest_km == pytest.approx(result.best_km, rel=0.01)
    assert result.participation == pytest.approx(3, abs=0.02)
    assert result.cosine_mean == pytest.approx(0, abs=0.01) and result.cosine_std == pytest.approx(3**-0.5, abs=0.01)
    assert result.first_share == pytest.approx(1 / 3, abs=0.02)
    assert result.random_km == pytest.approx(np.pi / 2 * geo.EARTH_RADIUS_KM, rel=0.05)
    assert (result.n, result.dim) == (2000, 3)
    turned = similarity.summary(points, -geo.unit_vectors(points), 50_000)
    assert asdict(turned) == pytest.approx(asdict(result), abs=1e-5), "only angles between rows count"


def test_noise_is_in_no_order():
    points, noise = world(2000), RNG.normal(size=(2000, 64))
    result = similarity.summary(points, noise, 50_000)
    assert result.spearman == pytest.approx(0, abs=0.02) and result.violations == pytest.approx(0.5, abs=0.01)
    assert result.cosine_mean == pytest.approx(0, abs=0.005) and result.cosine_std == pytest.approx(1 / 8, rel=0.05)
    assert result.nearest_km == pytest.approx(result.random_km, rel=0.1) and result.best_km < 0.1 * result.random_km
    assert result.participation == pytest.approx(64, rel=0.05)


def test_what_cannot_tell_a_place_from_its_antipode_is_half_right():
    vectors = geo.unit_vectors(world(1000))
    squares = np.einsum("nd,ne->nde", vectors, vectors).reshape(1000, 9)  # the cosine squared
    result = similarity.summary(geo.from_unit_vectors(vectors), squares, 100_000)
    assert result.spearman == pytest.approx(0, abs=0.02) and result.violations == pytest.approx(0.5, abs=0.02)
    north = vectors[:, 2] > np.cos(np.radians(40))  # within 80 degrees of each other
    result = similarity.summary(geo.from_unit_vectors(vectors[north]), squares[north])
    assert result.spearman == pytest.approx(-1, abs=1e-4) and result.violations < 1e-3


def test_a_cone_has_a_high_mean_cosine():
    points, one = world(1000), np.ones((1000, 50)) / 50**0.5
    line = one + 0.1 * RNG.normal(size=(1000, 1)) * np.r_[1, -1, np.zeros(48)]
    result = similarity.summary(points, line, 20_000)
    assert result.cosine_mean > 0.97 and result.participation < 1.1 and result.first_share > 0.95
    cone = similarity.summary(points, one + 0.01 * RNG.normal(size=(1000, 50)), 20_000)
    assert cone.cosine_mean > 0.99 and cone.participation > 40, "about its mean it uses every dimension but one"


def test_a_collapsed_embedding_is_by_chance():
    result = similarity.summary(world(100), np.ones((100, 8), np.float16))
    assert (result.spearman, result.violations, result.participation) == (0, 0.5, 0)
    assert result.first_share == 1 and result.cosine_mean == pytest.approx(1) and result.cosine_std < 1e-6


def test_the_same_as_brute_force():
    points = world(40) * (0.3, 0.3)
    features = np.hstack([geo.unit_vectors(points), RNG.normal(0, 0.05, (40, 5))])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine, km = unit @ unit.T, geo.distance_matrix_km(points, dtype=float)
    i, j = np.triu_indices(40, 1)
    result = similarity.summary(points, features, 400_000)
    assert result.spearman == pytest.approx(stats.spearmanr(km[i, j], cosine[i, j])[0], abs=1e-6)
    wrong = [(km[a, b] < km[a, c]) != (cosine[a, b] > cosine[a, c]) for a, b, c in itertools.permutations(range(40), 3)]
    assert result.violations == pytest.approx(np.mean(wrong), abs=0.003)
    assert result.cosine_mean == pytest.approx(cosine[i, j].mean(), abs=1e-6)
    assert result.cosine_std == pytest.approx(cosine[i, j].std(), abs=1e-6)
    variances = np.linalg.eigvalsh(np.cov(unit.T, bias=True))[::-1]
    np.testing.assert_allclose(similarity.spectrum(features), variances, atol=1e-6)
    assert result.first_share == pytest.approx(variances[0] / variances.sum(), abs=1e-5)
    np.fill_diagonal(cosine, -2)
    np.fill_diagonal(km, np.inf)
    assert result.nearest_km == pytest.approx(np.median(km[np.arange(40), cosine.argmax(1)]), rel=1e-5)
    assert result.best_km == pytest.approx(np.median(km.min(1)), rel=1e-5)


def towns(n: int, seed: int = 0) -> np.ndarray:
    """Places in towns some 20 km wide, in a land of 2,000 km."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((30, -100), (48, -80), (12, 2))
    return centres[rng.integers(12, size=n)] + rng.normal(0, 0.1, (n, 2))


def test_few_places_give_every_pair_once():
    points, features, group = towns(20), RNG.normal(size=(20, 4)), np.arange(20) // 5
    result = similarity.pairs(points, features, 190)
    assert len(set(zip(result.a.tolist(), result.b.tolist(), strict=True))) == 190 and (result.weight == 1).all()
    result = similarity.pairs(points, features, 190, group=group)
    assert len(result.a) == 190 - 4 * 10 and (group[result.a] != group[result.b]).all()


@pytest.mark.parametrize("group", [None, np.r_[np.zeros(8, int), np.arange(1, 23)], np.r_[[3, 3, 3], np.full(27, -1)]])
def test_weights_sum_to_one_for_each_pair_on_average(group, monkeypatch):
    monkeypatch.setattr(similarity, "LEVELS", 3)
    n, runs = 30, 1000
    points, features, total = towns(n), np.ones((n, 2)), np.zeros((n, n))
    for seed in range(runs):
        result = similarity.pairs(points, features, 200, seed, group)
        np.add.at(total, (np.minimum(result.a, result.b), np.maximum(result.a, result.b)), result.weight)
    code = np.arange(n) if group is None else np.where(group < 0, 100 + np.arange(n), group)
    different = np.triu(code[:, None] != code, 1)
    assert not total[~different].any()
    mean = total[different] / runs
    assert mean.mean() == pytest.approx(1, abs=0.005)
    np.testing.assert_allclose(mean, 1, atol=0.3)  # five standard errors


def test_short_distances_are_well_represented_and_shares_unbiased():
    points = towns(2000)
    result, km = similarity.pairs(points, np.ones((2000, 2)), 100_000), geo.distance_matrix_km(points)
    for radius in (1, 3, 30, 500):
        share = ((km <= radius).sum() - 2000) / (2000 * 1999)
        weighted = result.weight @ (result.km <= radius) / result.weight.sum()
        assert weighted == pytest.approx(share, rel=0.15 if radius < 10 else 0.03)
        if radius < 5:
            assert (result.km <= radius).mean() > 10 * share


def test_drawn_pairs_estimate_all_pairs():
    rng = np.random.default_rng(3)
    points = rng.uniform((30, -100), (48, -80), (20, 2))[rng.integers(20, size=700)] + rng.normal(0, 0.2, (700, 2))
    features = np.hstack([20 * geo.unit_vectors(points), rng.normal(0, 1, (700, 8))]).astype(np.float16)
    drawn, everything = similarity.pairs(points, features, 60_000), similarity.pairs(points, features, 250_000)
    assert len(everything.km) == 700 * 699 // 2 and 50_000 < len(drawn.km) <= 60_000
    few, full = (similarity.summary(points, features, n) for n in (60_000, 250_000))
    assert few.spearman == pytest.approx(full.spearman, abs=0.02)
    assert few.cosine_mean == pytest.approx(full.cosine_mean, abs=0.002)
    assert few.cosine_std == pytest.approx(full.cosine_std, rel=0.02)
    a, b = similarity.curve(drawn, [0, 50, 400, 1000, 5000]), similarity.curve(everything, [0, 50, 400, 1000, 5000])
    np.testing.assert_allclose(a[["mean", "q25", "q75"]], b[["mean", "q25", "q75"]], atol=0.01)
    np.testing.assert_allclose(a["km"], b["km"], rtol=0.05)


def test_which_pairs_depends_on_the_places_alone():
    points = world(900)
    one, two = (similarity.pairs(points, RNG.normal(size=(900, d)), 5000, seed=4) for d in (3, 70))
    for field in ("a", "b", "km", "weight"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert not np.array_equal(similarity.pairs(points, np.ones((900, 2)), 5000, seed=5).a, one.a)


def test_near_duplicates_never_meet():
    points = np.repeat(world(200), 2, axis=0)
    features = np.repeat(RNG.normal(size=(200, 40)), 2, axis=0)
    group = np.repeat(np.arange(200), 2)
    assert similarity.summary(points, features).nearest_km == 0
    result = similarity.summary(points, features, group=group)
    assert result.nearest_km > 1000 and result.best_km > 100
    assert similarity.pairs(points, features, group=group).km.min() > 1


def test_curve_has_a_row_for_each_bin_that_has_pairs():
    points = np.column_stack([np.zeros(5), [0, 1, 2, 3, 100]])
    table = similarity.curve(similarity.pairs(points, geo.unit_vectors(points)), [0, 120, 230, 1000, 5000, 20_000])
    assert table["count"].tolist() == [3, 2, 1, 4]
    np.testing.assert_allclose(table["km"], geo.EARTH_RADIUS_KM * np.radians([1, 2, 3, 98]))
    np.testing.assert_allclose(table["mean"].iloc[:3], np.cos(np.radians([1, 2, 3])), atol=1e-6)
    assert (table["q25"] <= table["mean"] + 1e-9).all() and table["from_km"].tolist() == [0, 120, 230, 5000]
    whole = similarity.curve(similarity.pairs([[0, 0], [0, 180], [0, 0]], np.eye(3)))
    assert whole["count"].sum() == 3, "from the same spot to the antipode"
    for edges in ([5], [0, 3, 3], [[0, 1]], [0, np.nan]):
        with pytest.raises(KitError, match="ascending"):
            similarity.curve(similarity.pairs(points, geo.unit_vectors(points)), edges)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.lists(st.integers(1, 5), min_size=12, max_size=12))
def test_weighted_quantiles_are_those_of_repeated_values(values, weights):
    values, weights = np.array(values), np.array(weights[: len(values)])
    repeated = np.sort(np.repeat(values, weights))
    low, middle, high = similarity.quantiles(values, weights.astype(float), 0.0, 0.5, 1.0)
    assert low == values.min() and high == values.max() and middle in repeated
    assert (repeated < middle).mean() <= 0.5 <= (repeated <= middle).mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from([0.1, 1.0, 1e4]))
def test_effective_dimensions_lie_between_one_and_the_rank(n, dim, scale):
    features = scale * np.random.default_rng(n * 100 + dim).normal(size=(n + 1, dim))
    variances = similarity.spectrum(features)
    assert len(variances) == min(n + 1, dim) and (np.diff(variances) <= 0).all() and (variances >= 0).all()
    if variances.any():
        assert 1 - 1e-9 <= similarity.participation(variances) <= min(n, dim) * (1 + 1e-4)
        assert variances.sum() <= 1 + 1e-5, "rows have length 1"


def test_zeros_and_extremes_do_no_harm():
    features = np.array([[0, 0], [6e4, 6e4], [1e-7, 1e-7], [6e4, -6e4]], np.float32)
    result = similarity.pairs([[0, 0], [0, 1], [0, 2], [0, 3]], features)
    np.testing.assert_allclose(result.cosine, [0, 0, 0, 1, 0, 0], atol=1e-6)


def test_summaries_stand_side_by_side_and_go_to_json():
    points = world(60)
    features = {"frozen": RNG.normal(size=(60, 5)), "globe": geo.unit_vectors(points)}
    result = {name: similarity.summary(points, x) for name, x in features.items()}
    table = similarity.table(result)
    assert list(table.columns) == ["frozen", "globe"] and table.loc["spearman", "globe"] == -1
    assert str(table.loc["n", "globe"]) == "60"
    assert json.loads(json.dumps(asdict(result["globe"])))["dim"] == 3


def test_bad_input_is_refused():
    points, features = world(10), RNG.normal(size=(10, 4))
    with pytest.raises(KitError, match="features_for"):
        similarity.pairs(points, RNG.normal(size=(10, 4, 6)))
    with pytest.raises(KitError, match=r"got \(10, 2\) and \(9, 4\)"):
        similarity.summary(points, features[:9])
    with pytest.raises(KitError, match="at least 2"):
        similarity.pairs(points[:1], features[:1])
    with pytest.raises(KitError, match="not on Earth"):
        similarity.pairs(points + 200, features)
    with pytest.raises(KitError, match="n_pairs: expected a whole number from 1; got 0"):
        similarity.pairs(points, features, 0)
    with pytest.raises(KitError, match="expected places of different groups; got 3 of the same"):
        similarity.pairs(points[:3], features[:3], group=[7, 7, 7])
    with pytest.raises(KitError, match="expected 4 integers"):
        similarity.pairs(points[:4], features[:4], group=[7, 7, 8])
    with pytest.raises(KitError, match="float64"):
        similarity.pairs(points[:2], features[:2], group=[7.0, 8.0])
    with pytest.raises(KitError, match=r"\(N, D\)"):
        similarity.spectrum(np.empty((0, 4)))


def test_examples():
    assert doctest.testmod(similarity).failed == 0
