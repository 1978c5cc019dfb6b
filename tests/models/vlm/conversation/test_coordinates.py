"""coordinates: every way of writing a point reads as the same point."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.models.vlm.conversation.coordinates import degrees, only_number, plain, point, runs

LATITUDES, LONGITUDES = st.integers(-900000, 900000), st.integers(-1800000, 1800000)


def minutes(value: float, letters: str) -> str:
    whole = abs(value)
    seconds = round((whole % 1) * 3600, 2)
    return f"{int(whole)}° {int(seconds // 60)}′ {seconds % 60:.2f}″ {letters[value < 0]}"


WRITINGS = {
    "signs": lambda lat, lon: f"{lat:.4f}, {lon:.4f}",
    "spaces": lambda lat, lon: f"{lat:.4f}   {lon:.4f}",
    "commas": lambda lat, lon: f"{lat:.4f}, {lon:.4f}".replace(".", ","),
    "semicolon": lambda lat, lon: f"{lat:.4f};{lon:.4f}".replace(".", ","),
    "minus": lambda lat, lon: f"({lat:.4f}, {lon:.4f})".replace("-", "−"),
    "letters": lambda lat, lon: f"{abs(lat):.4f}°{'NS'[lat < 0]} {abs(lon):.4f}°{'EW'[lon < 0]}",
    "ahead": lambda lat, lon: f"{'NS'[lat < 0]} {abs(lat):.4f}, {'EW'[lon < 0]} {abs(lon):.4f}",
    "words": lambda lat, lon: f"{abs(lon):.4f} deg {'EW'[lon < 0]}, {abs(lat):.4f} degrees {'NS'[lat < 0]}",
    "minutes": lambda lat, lon: f"{minutes(lat, 'NS')}, {minutes(lon, 'EW')}",
}


@pytest.mark.parametrize("writing", WRITINGS)
@given(lat=LATITUDES, lon=LONGITUDES)
def test_a_point_reads_as_it_was_written(writing, lat, lon):
    lat, lon = lat / 1e4, lon / 1e4
    (run,) = runs(plain(WRITINGS[writing](lat, lon)))
    assert run.point == pytest.approx((lat, lon), abs=1e-5)


def test_a_run_of_two_is_a_point_of_three_none_of_one_nothing():
    def points(text):
        return [run.point for run in runs(text)]

    assert points("a 1, 2 b") == [(1.0, 2.0)] and points("1, 2, 3") == [None]
    assert points("1 and 2, I-70, 24/7") == [] and points("1 N and 2 W") == [(1.0, -2.0)]
    assert points("39 to 41 N, 82 to 84 W") == [] and points("12, 14 miles") == []
    for run in ("1,5, 2,5, 3,5", "4, 1,5, 2,5", "1,5, 2,5, 4", "1,5; 2,5; 3,5", "1,5, 2,5, 3,5, 4,5"):
        assert points(run) == [None], run


def test_precise_numbers_are_no_remark():
    for text in ("40.5, -83.25", "40.123, 83.123", "40.5 N, 83.5 W", "40° N, 83° W"):
        assert runs(text)[0].is_precise, text
    for text in ("12, 14", "-5, -10", "3.49, 3.79", "40 E, 71 N"):
        assert not runs(text)[0].is_precise, text


def test_a_line_has_one_number_of_its_own_axis():
    for good in ("about 40.5 or so", "40.5, near exit 12", "40.5 (39 to 41)", "in my view 40.5"):
        assert only_number(good, "lat") == (40.5, "lat"), good
    for bad in ("", "40, 41", "40 to 41", "40.5 W", "4e1", "-40 N", "near exit 12", "40 miles", "west of 40.5"):
        assert math.isnan(only_number(bad, "lat")[0]), bad


def test_letters_decide_the_order_and_contradict_signs():
    assert point(degrees("83 W"), degrees("40")) == (40.0, -83.0)
    assert point(degrees("83 W"), degrees("40 E")) is None
    assert math.copysign(1, point((-0.0, ""), (0.0, ""))[0]) == 1
