"""Ridge regression: the same as scikit-learn's, by the primal and by the dual, with its leave-one-out penalty."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from kitlib.models.ridge import regression


def problem(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    features = rng.normal(1, 1, (n, d))
    return features, features @ rng.normal(0, 1, (d, 3)) + rng.normal(0, 3, (n, 3)) + 5


def squared(targets):
    return lambda predicted, rows: float(((predicted - targets[rows]) ** 2).mean())


@pytest.mark.parametrize(("n", "d"), [(40, 8), (30, 50)])
def test_weights_and_leave_one_out_predictions_are_those_of_scikit_learn(n, d, monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", np.array([0.5]))
    features, targets = problem(n, d)
    seen = []

    def judge(predicted, rows):
        seen.extend([predicted, rows])
        return 0.0

    weights, intercept, (penalty,) = regression.fit(features, [targets], [judge])
    reference = Ridge(penalty).fit(features, targets)
    np.testing.assert_allclose(weights.T, reference.coef_, atol=1e-6)
    np.testing.assert_allclose(intercept, reference.intercept_, atol=1e-6)
    predicted, rows = seen
    for k in (0, n - 1):
        others = np.arange(n) != rows[k]
        alone = Ridge(penalty).fit(features[others], targets[others])
        np.testing.assert_allclose(predicted[k], alone.predict(features[rows[k : k + 1]])[0], atol=1e-6)


def test_each_of_the_targets_has_the_penalty_that_it_would_have_alone():
    features, targets = problem(60, 10)
    noise = np.random.default_rng(0).normal(0, 100, (60, 5))
    both = [targets, noise]
    weights, _, penalties = regression.fit(features, both, [squared(each) for each in both])
    assert penalties[0] < penalties[1]
    for own, of, penalty in ((targets, slice(3), penalties[0]), (noise, slice(3, 8), penalties[1])):
        alone, _, (own_penalty,) = regression.fit(features, [own], [squared(own)])
        assert own_penalty == penalty
        np.testing.assert_allclose(weights[:, of], alone, atol=1e-9)


def test_each_part_has_the_same_length_whatever_its_width():
    features = np.random.default_rng(0).normal(3, 5, (7, 12)).astype(np.float32)
    scaled = regression.scaled(features, features.mean(0), 1 / features.std(0), [2, 10])
    for part in (scaled[:, :2], scaled[:, 2:]):
        np.testing.assert_allclose((part**2).sum(1), 0.5, rtol=1e-5)
