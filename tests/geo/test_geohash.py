"""geohash: known words, prefixes, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.geo.geohash import LONGEST, bits, decode, encode, is_geohash, radius_km

LAT, LON, LENGTH = st.floats(-90, 90), st.floats(-180, 180), st.integers(1, LONGEST)


@pytest.mark.parametrize(
    ("point", "word"),
    [
        ((57.64911, 10.40744), "u4pruydqqvj"),
        ((42.605, -5.603), "ezs42"),
        ((0, 0), "s0000"),
        ((-90, -180), "00000"),
        ((90, 180), "zzzzz"),
        ((-25.382708, -49.265506), "6gkzwgjzn820"),
    ],
)
def test_known_words(point, word):
    assert str(encode(point, len(word))) == word


@given(LAT, LON, LENGTH)
def test_there_and_back_within_half_a_cell(lat, lon, length):
    word = str(encode([lat, lon], length))
    lat_bits, lon_bits = bits(length)
    centre = decode(word)
    assert abs(centre[0] - lat) <= 90 / 2**lat_bits + 1e-9 and abs(centre[1] - lon) <= 180 / 2**lon_bits + 1e-9
    assert str(encode(centre, length)) == word and is_geohash(word)


@given(LAT, LON, LENGTH, LENGTH)
def test_the_shorter_word_begins_the_longer(lat, lon, one, other):
    words = sorted((str(encode([lat, lon], length)) for length in (one, other)), key=len)
    assert words[1].startswith(words[0])


def test_arrays_of_any_shape():
    points = np.random.default_rng(0).uniform([-90, -180], [90, 180], (3, 4, 2))
    words = encode(points, 6)
    assert words.shape == (3, 4) and str(words[1, 2]) == str(encode(points[1, 2], 6))
    assert np.allclose(decode(words[0])[2], decode(str(words[0, 2]))) and decode([]).shape == (0, 2)
    assert radius_km(2) > 500 > radius_km(4) > 10 > radius_km(6)


def test_bad_input_is_refused():
    for length in (0, 13):
        with pytest.raises(KitError, match="expected 1 to 12"):
            encode([0.0, 0.0], length)
    with pytest.raises(KitError, match="not on Earth"):
        encode([91.0, 0.0], 5)
    for word in ("a1", "DP", "d p"):
        with pytest.raises(KitError, match="geohash: expected the characters"):
            decode(word)
    with pytest.raises(KitError, match="characters; got 0"):
        decode("")
