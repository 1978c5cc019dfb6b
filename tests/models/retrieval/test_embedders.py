"""Embedders: saving and loading, standardisation, and refused scales; see test_run too."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.models.retrieval import embedders
from kitlib.models.retrieval.config import METHODS
from kitlib.models.retrieval.embedders import EmbedderOptions, Frozen, Matched, Projected
from kitlib.models.retrieval.gps_network import GpsMatch
from kitlib.models.retrieval.metric_learning import Projection


@pytest.mark.parametrize("method", METHODS)
def test_an_embedder_goes_to_a_folder_and_back(tmp_path, method):
    torch.manual_seed(0)
    features, points = torch.randn(9, 2, 4, 6).half(), np.random.default_rng(0).uniform(-40, 40, (9, 2))
    small = GpsMatch(6, dim=5, hidden=4, sigmas=(2,), n_frequencies=4, location_hidden=8)
    made = {"knn": Frozen.fit(features, "mean"), "metric": Projected(Projection(6, 5)), "gps": Matched(small)}[method]
    made.save(tmp_path)
    again = embedders.load(tmp_path, method, "mean")
    assert np.array_equal(again.queries(features), made.queries(features))
    assert np.array_equal(again.entries(features, points), made.entries(features, points))


def test_frozen_features_are_standardised():
    features = torch.randn(4000, 1, 2, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    standard = Frozen.fit(features, "mean")._standard(features)
    assert np.allclose(standard.mean((0, 1)), 0, atol=1e-3) and np.allclose(standard.std((0, 1)), 1, atol=0.03)


@pytest.mark.parametrize("bad", ["", "0", "2,,4", "inf", "nan", "-1", "x"])
def test_sigmas_that_are_no_scales_are_refused(bad):
    with pytest.raises(KitError, match="sigmas: expected numbers above 0"):
        EmbedderOptions(sigmas=bad)
