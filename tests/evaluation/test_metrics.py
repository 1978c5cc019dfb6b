"""Reports on distances against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.evaluation import metrics


def test_known_numbers():
    found = metrics.report([0.0, 1.0, 25.0, 200.0, 750.0, 2500.0, 2501.0, 10_000.0])
    assert found.as_dict() == pytest.approx(
        {
            "n": 8,
            "mean_km": 15_977 / 8,
            "median_km": 475.0,
            "geoscore": 5000 / 8 * sum(np.exp(-km / 1492.7) for km in [0, 1, 25, 200, 750, 2500, 2501, 10_000]),
            "within_1_km": 2 / 8,
            "within_25_km": 3 / 8,
            "within_200_km": 4 / 8,
            "within_750_km": 5 / 8,
            "within_2500_km": 6 / 8,
        }
    )


def test_geoscore_halves_every_1035_km_and_keeps_its_shape():
    np.testing.assert_allclose(metrics.geoscore([[0.0, 1492.7 * np.log(2)]]), [[5000, 2500]])


def test_other_radii_and_what_is_shown():
    found = metrics.report([3.0, 80.0], radii_km=(2.5, 100))
    assert found.as_dict()["within_2.5_km"] == 0 and found.within == (0.0, 1.0)
    assert "100.0% within 100 km" in str(found) and "(2 places)" in str(found)
    html = found._repr_html_()
    assert "<th>2.5 km</th><th>100 km</th>" in html and html.count("<th>") == html.count("<td>") == 6
    assert json.loads(json.dumps(found.as_dict()))["n"] == 2


@given(st.lists(st.floats(0, 20_016), min_size=1, max_size=50))
def test_shares_grow_with_the_radius_and_order_does_not_matter(km):
    found = metrics.report(km)
    assert list(found.within) == sorted(found.within)
    assert metrics.report(sorted(km)).as_dict() == pytest.approx(found.as_dict())


@pytest.mark.parametrize(
    "km, message",
    [
        ([], r"got \(0,\)"),
        ([[1.0]], r"got \(1, 1\)"),
        ([1.0, np.nan], "first at row 1: nan km"),
        ([np.inf], "first at row 0: inf"),
        ([2.0, -1.0], "-1 km"),
    ],
)
def test_what_is_no_distance_is_refused(km, message):
    with pytest.raises(KitError, match=message):
        metrics.report(km)
