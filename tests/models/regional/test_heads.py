"""Ridge heads of regions: what they learn, when they predict the median point, which region uses which."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib.models.regional.heads import ALPHAS, RidgeHeads

D, R = 6, 3


def examples(n: int = 120, noise: float = 0.0, seed: int = 0):
    """Features, regions and offsets that each region derives from the features in a way of its own."""
    rng = np.random.default_rng(seed)
    region = np.arange(n) % R
    features = rng.normal(3.0, 2.0, (n, D)) + region[:, None]
    ways = np.random.default_rng(9).normal(size=(R, D, 2))
    offsets = np.einsum("nd,ndk->nk", features - 3.0 - region[:, None], ways[region])
    return features, region, offsets + rng.normal(0, noise, (n, 2)) if noise else offsets


def of_true_region(heads: RidgeHeads, features: np.ndarray, region: np.ndarray) -> np.ndarray:
    return heads.predict(features)[np.arange(len(region)), region]


def test_each_region_learns_its_own_way():
    heads = RidgeHeads.fit(*examples(), [True] * R)
    features, region, offsets = examples(seed=1)
    error = of_true_region(heads, features, region) - offsets
    assert np.abs(error).mean() < 0.25 * np.abs(offsets).mean()
    assert (heads.alphas == ALPHAS[0]).all() and heads.slot.tolist() == [0, 1, 2]


def test_a_head_that_learned_nothing_predicts_the_median_point():
    features, region, _ = examples(60)
    heads = RidgeHeads.fit(features, region, np.random.default_rng(1).normal(size=(60, 2)), [True] * R)
    assert np.abs(heads.predict(features)).mean() < 0.3 and np.median(heads.alphas) > 100


def test_small_regions_share_a_head_that_learns_from_all():
    features, region, offsets = examples()
    heads = RidgeHeads.fit(features, region, offsets, [True, False, False])
    assert heads.slot.tolist() == [0, 1, 1] and len(heads.weights) == 2
    predicted = heads.predict(features)
    assert np.array_equal(predicted[:, 1], predicted[:, 2]) and not np.allclose(predicted[:, 0], predicted[:, 1])
    alone = RidgeHeads.fit(features, region * 0, offsets, [False])
    assert np.allclose(alone.predict(features)[:, 0], predicted[:, 1])


def test_validation_places_choose_the_penalty():
    """The training places say that features matter, the validation places of region 0 that they do not."""
    features, region, offsets = examples()
    val = examples(seed=1)
    val[2][val[1] == 0] = 0.0
    heads = RidgeHeads.fit(features, region, offsets, [True] * R, val)
    assert heads.alphas[0] == ALPHAS[-1] and (heads.alphas[1:] < 10).all()
    without = tuple(part[val[1] > 0] for part in val)  # a region without validation places leaves places out
    assert RidgeHeads.fit(features, region, offsets, [True] * R, without).alphas[0] < 10


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_a_feature_that_never_changes_does_no_harm(constant):
    features, region, offsets = examples()
    features[:, 0] = constant
    assert np.isfinite(RidgeHeads.fit(features, region, offsets, [True] * R).predict(features)).all()


def test_saved_and_read_again(tmp_path):
    heads = RidgeHeads.fit(*examples(), [True, True, False])
    heads.save(tmp_path / "heads.npz")
    features = examples(seed=2)[0]
    assert np.array_equal(RidgeHeads.load(tmp_path / "heads.npz").predict(features), heads.predict(features))
