"""Single values: what is allowed, and one sentence for what is not."""

from __future__ import annotations

import math

import pytest

from kitlib.core import checks
from kitlib.core.errors import KitError


@pytest.mark.parametrize("value", [0, -1, 10**400, 1.5, math.nan, True, None, "2"])
def test_a_count_is_a_whole_number_from_1(value):
    assert checks.number("WORST", 5, 1, 100) == 5
    with pytest.raises(KitError, match=r"^WORST: expected a whole number from 1 to 100; got "):
        checks.number("WORST", value, 1, 100)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 10**400, "2", None])
def test_a_length_is_a_finite_number_above_0(value):
    assert checks.number("SHARP_KM", 75, 0, 20_000, float, above=True) == 75
    with pytest.raises(KitError, match=r"^SHARP_KM: expected a number above 0 to 20000; got "):
        checks.number("SHARP_KM", value, 0, 20_000, float, above=True)


@pytest.mark.parametrize("text", ["0;1", "1.5", "x", "-1", "0,0", "0,", "[0]", "9" * 6000, "5", 5, True])
def test_folds_that_are_none_of_five(text):
    assert checks.whole_numbers("folds", " 0, 3 ", high=4) == [0, 3] and checks.whole_numbers("folds", "") == []
    assert checks.whole_numbers("folds", 0) == [0]
    with pytest.raises(
        KitError, match=r"^folds: expected different whole numbers from 0 to 4, commas between; got "
    ) as e:
        checks.whole_numbers("folds", text, high=4)
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "nan", "inf", "1,,2", "1;2"])
def test_numbers_above_0(text):
    assert checks.numbers("radii_km", "2000, 2.5") == [2000.0, 2.5]
    with pytest.raises(KitError, match=r"^radii_km: expected numbers above 0, commas between; got "):
        checks.numbers("radii_km", text)


def test_names_of_runs():
    assert checks.names("COMPARE", "a, b-1") == ["a", "b-1"] and checks.names("COMPARE", " ") == []
    for text in ("../x", "a,b c", "x" * 300, "a\0b"):
        with pytest.raises(KitError, match=r"^COMPARE: expected 1 to 100 letters, digits"):
            checks.names("COMPARE", text)
