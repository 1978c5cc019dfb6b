"""answers: what is read in replies, good and bad, and what each earns.

Every reply is about a place in Kansas at 38.5, -98.5, and earns exp(-km / 25) for the point. `-` is unparsed: no
distance, no reward, and counted as such; a wrong answer has a distance and next to no reward.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.models.vlm.conversation.prompts import COMPETITION
from kitlib.models.vlm.conversation.replies import MAX_LENGTH, Reply, read, visible
from kitlib.models.vlm.conversation.rewards import Grader, Weights
from kitlib.models.vlm.conversation.vocabulary import Labels

NAMES = ["Kansas", "Arkansas", "Virginia", "West Virginia", "New York", "Ohio", "Oregon", "Washington"]
STATES = Labels(NAMES)
HERE = (38.5, -98.5)
TRUTH = Reply(HERE, region="Kansas")
GRADER = Grader(COMPETITION, {"region": STATES}, Weights(distance=1.0, form=0.0, region=0.0))

# reply, the point read, the state read, exp(-km / 25) rounded to two digits
REPLIES = [
    # the form that is asked for
    ("State: Kansas\nLatitude: 38.5\nLongitude: -98.5", HERE, "Kansas", 1.0),
    ("City: Hays\nRegion: Kansas\nCountry: USA\nLatitude: 38.5\nLongitude: -98.5", HERE, "Kansas", 1.0),
    ("state: kansas\nlatitude: 38.6\nlongitude: -98.5", (38.6, -98.5), "Kansas", 0.64),
    ("State: Ohio\nLatitude: 40\nLongitude: -83", (40.0, -83.0), "Ohio", 0.0),
    ("State = KANSAS\nLat = 38.5\nLon = -98.5", HERE, "Kansas", 1.0),
    ("Lat 38.5, Long -98.5", HERE, None, 1.0),
    ("State: Kansas, Lat: 38.5, Lng: -98.5", HERE, "Kansas", 1.0),
    ("Longitude: -98.5\nLatitude: 38.5\nState: Kansas", HERE, "Kansas", 1.0),
    ("State: Kansas\r\nLatitude: 38.5\r\nLongitude: -98.5\r\n", HERE, "Kansas", 1.0),
    # bare
    ("38.5, -98.5", HERE, None, 1.0),
    ("38.5,-98.5", HERE, None, 1.0),
    ("38.5 -98.5", HERE, None, 1.0),
    ("38.5; -98.5", HERE, None, 1.0),
    ("38.5 / -98.5", HERE, None, 1.0),
    ("(38.5, -98.5)", HERE, None, 1.0),
    ("[38.5, -98.5]", HERE, None, 1.0),
    ("The picture was taken at 38.5, -98.5.", HERE, None, 1.0),
    ("1. 38.5, -98.5", HERE, None, 1.0),
    ("Beside I-70, at 38.5, -98.5", HERE, None, 1.0),
    ("Latitude, Longitude: 38.5, -98.5", HERE, None, 1.0),
    ("Kansas\n38.5, -98.5", HERE, "Kansas", 1.0),
    ("Kansas, 38.5, -98.5", HERE, None, 1.0),
    ("Kansas City: 39.1, -94.6", (39.1, -94.6), None, 0.0),
    ("State: Kansas, 38.5, -98.5", HERE, "Kansas", 1.0),
    ("-33.5, 151", (-33.5, 151.0), None, 0.0),
    ("0, 0", (0.0, 0.0), None, 0.0),
    ("90, -180", (90.0, -180.0), None, 0.0),
    # letters, words, degrees, minutes, seconds
    ("38.5° N, 98.5° W", HERE, None, 1.0),
    ("38.5N 98.5W", HERE, None, 1.0),
    ("N 38.5, W 98.5", HERE, None, 1.0),
    ("N38.5° W98.5°", HERE, None, 1.0),
    ("38.5 degrees north, 98.5 degrees West", HERE, None, 1.0),
    ("98.5° W, 38.5° N", HERE, None, 1.0),
    ("38º30′00″N 98º30′00″W", HERE, None, 1.0),
    ("38° 30' N, 98° 30' W", HERE, None, 1.0),
    ("Latitude: 38.5° N\nLongitude: 98.5° W", HERE, None, 1.0),
    ("Latitude (°): 38.5\nLongitude (°): -98.5", HERE, None, 1.0),
    ("latitude is 38.5 and longitude is -98.5", HERE, None, 1.0),
    ("33.5° S, 98.5° W", (-33.5, -98.5), None, 0.0),
    ("-33.5° S, 98.5° W", (-33.5, -98.5), None, 0.0),
    ("-38.5° N, 98.5° W", None, None, 0.0),  # south or north?
    ("38.5° N, 98.5° S", None, None, 0.0),
    ("38° 75' N, 98° W", None, None, 0.0),  # 75 minutes
    ("Latitude: 98.5° W\nLongitude: 38.5° N", None, None, 0.0),
    # minus signs, digits, decimal commas
    ("38.5, −98.5", HERE, None, 1.0),
    ("38.5, –98.5", HERE, None, 1.0),
    ("38.5, - 98.5", HERE, None, 1.0),
    ("Latitude：３８．５\nLongitude：－９８．５", HERE, None, 1.0),
    ("+38.5, -98.5", HERE, None, 1.0),
    ("38,5, -98,5", HERE, None, 1.0),
    ("38,5; -98,5", HERE, None, 1.0),
    ("38,5 -98,5", HERE, None, 1.0),
    ("Latitude: 38,5\nLongitude: -98,5", HERE, None, 1.0),
    ("38,-98", (38.0, -98.0), None, 0.06),  # two whole numbers, not one with a comma
    # markdown, fences, bullets, tables, JSON
    ("**State:** Kansas\n**Latitude:** 38.5\n**Longitude:** -98.5", HERE, "Kansas", 1.0),
    ("- **State**: *Kansas*\n- Latitude: `38.5`\n- Longitude: `-98.5`", HERE, "Kansas", 1.0),
    ("```\nState: Kansas\nLatitude: 38.5\nLongitude: -98.5\n```", HERE, "Kansas", 1.0),
    ("### Reply\n> 38.5, -98.5", HERE, None, 1.0),
    ('{"state": "Kansas", "latitude": 38.5, "longitude": -98.5}', HERE, "Kansas", 1.0),
    ('```json\n{\n "lat": "38.5",\n "lng": "-98.5"\n}\n```', HERE, None, 1.0),
    ("| Latitude | 38.5 |\n| Longitude | -98.5 |", HERE, None, 1.0),
    ("<answer>38.5, -98.5</answer><|im_end|>", HERE, None, 1.0),
    # reasoning does not count
    ("<think>Ohio? 40, -83.</think>38.5, -98.5", HERE, None, 1.0),
    ("40, -83 it is not.</think>\nState: Kansas\n38.5, -98.5", HERE, "Kansas", 1.0),
    ("38.5, -98.5<think>or 40, -83", HERE, None, 1.0),
    ("<THINK>40, -83</THINK>38.5, -98.5", HERE, None, 1.0),
    ("<think>State: Kansas\n38.5, -98.5</think>", None, None, 0.0),
    ("<think>State: Kansas\n38.5, -98.5", None, None, 0.0),
    ("State: Kansas\n38.5, -98.5</think>", None, None, 0.0),
    ("<think>a</think><think>38.5, -98.5</think>", None, None, 0.0),
    ("38.5,<think></think>-98.5", None, None, 0.0),
    # missing, out of range, no numbers
    ("", None, None, 0.0),
    ("   \n", None, None, 0.0),
    ("I cannot tell.", None, None, 0.0),
    ("State: Kansas", None, "Kansas", 0.0),
    ("Latitude: 38.5", None, None, 0.0),
    ("Latitude:\nLongitude:", None, None, 0.0),
    ("38.5", None, None, 0.0),
    ("98.5, 38.5 W", None, None, 0.0),
    ("-98.5, 38.5", None, None, 0.0),
    ("38.5, -198.5", None, None, 0.0),
    ("38.5, 261.5", None, None, 0.0),
    ("nan, nan", None, None, 0.0),
    ("inf, -inf", None, None, 0.0),
    ("385e-1, -98.5", None, None, 0.0),
    ("38.5.1, -98.5", None, None, 0.0),
    ("38.5%, 98.5%", None, None, 0.0),
    ("4000, -98.5", None, None, 0.0),
    ("Latitude: thirty-eight\nLongitude: -98.5", None, None, 0.0),
    # several places are no place
    ("38.5, -98.5\n40, -83", None, None, 0.0),
    ("38.5, -98.5 or 40, -83", None, None, 0.0),
    ("38.5, -98.5, 40, -83", None, None, 0.0),
    ("38.5, -98.5, -83", None, None, 0.0),
    ("[(38.5, -98.5), (40, -83)]", None, None, 0.0),
    ("1) 38.5, -98.5\n2) 40, -83\n3) 45, -120", None, None, 0.0),
    ("38.5, -98.5\n95, -83", None, None, 0.0),
    ("Latitude: 38.5\nLatitude: 40\nLongitude: -98.5", None, None, 0.0),
    ("Latitude: 38.5 to 40\nLongitude: -98.5", None, None, 0.0),
    ("Latitude: 38.5, 40\nLongitude: -98.5, -83", None, None, 0.0),
    ('[{"lat": 38.5, "lon": -98.5}, {"lat": 40, "lon": -83}]', None, None, 0.0),
    # labelled lines win over what is bare
    ("Latitude: 38.5\nLongitude: -98.5\n40, -83", HERE, None, 1.0),
    ("State: Kansas\nArkansas", None, "Kansas", 0.0),
    # the same place twice is one
    ("38.5, -98.5\nLatitude: 38.50\nLongitude: -98.5", HERE, None, 1.0),
    ("State: Kansas\nRegion: KANSAS\n38.5, -98.5", HERE, "Kansas", 1.0),
    # states: the whole name, one of them
    ("State: Arkansas", None, "Arkansas", 0.0),
    ("State: West Virginia", None, "West Virginia", 0.0),
    ("State: west-virginia.", None, "West Virginia", 0.0),
    ("State: Virginia", None, "Virginia", 0.0),
    ("Kansas", None, "Kansas", 0.0),
    ("State: Kansas, Arkansas", None, None, 0.0),
    ("State: Kansas/Arkansas", None, None, 0.0),
    ("State: Kansas or Arkansas", None, None, 0.0),
    ("State: Kansas (Arkansas)", None, None, 0.0),
    ("State: Kansas\nState: Arkansas", None, None, 0.0),
    ("Kansas\nArkansas", None, None, 0.0),
    ("State: Kansas Region: Arkansas", None, None, 0.0),
    ("Kansas\nArkansas\nOhio", None, None, 0.0),
    ("KansasArkansasVirginia", None, None, 0.0),
    ("State:\n- Kansas\n- Arkansas", None, None, 0.0),
    ("State: kan", None, None, 0.0),
    ("State: a state in the United States, probably Kansas", None, None, 0.0),
    ("State:", None, None, 0.0),
    ('{"state": ["Kansas", "Arkansas"]}', None, None, 0.0),
    ('{"state": ""}', None, None, 0.0),
]


@pytest.mark.parametrize(("reply", "point", "state", "reward"), REPLIES)
def test_what_a_reply_says_and_earns(reply, point, state, reward):
    grade = GRADER.grade(reply, TRUTH)
    assert (grade.reply.point is None) == (point is None)
    if point is not None:
        assert grade.reply.point == pytest.approx(point, abs=1e-6)
    assert grade.reply.region == state
    assert grade.terms["distance"] == pytest.approx(reward, abs=0.005)
    assert (grade.km is None) == (point is None), "unparsed is not wrong"
    assert grade.terms["region"] == (state == "Kansas")


def test_the_table_is_a_table():
    assert len(REPLIES) > 100 and len({reply for reply, *_ in REPLIES}) == len(REPLIES)


def test_names_without_a_vocabulary_are_what_the_reply_calls_them():
    reply = read("City:  São Paulo.\nRegion: SP\nCountry: **Brazil**\n-23.5, -46.6")
    assert reply == Reply((-23.5, -46.6), "São Paulo", "SP", "Brazil")
    assert read("City: A\nCity: B").city is None and read("City: ?").city is None
    assert read("City: Lima\nTown: lima").city in ("Lima", "lima") and read("City: " + "x" * 101).city is None


def test_a_bare_name_answers_only_the_field_it_is_asked_for():
    assert read("Kansas", {"region": STATES}).region is None
    assert read("New York", {"region": STATES, "city": Labels(["New York"])}, "city") == Reply(city="New York")


@pytest.mark.parametrize(
    "filler",
    ["x", "<think>", "</think>", "1, ", "1,1 ", "Kansas, ", "State: ", "\n", "Latitude: 1 ", "(", "1°1'", "- "],
)
def test_huge_replies_are_refused_at_once(filler):
    huge = filler * (10**6 // len(filler))
    start = time.perf_counter()
    assert read("State: Kansas\n38.5, -98.5\n" + huge + "x", {"region": STATES}, "region").region in (None, "Kansas")
    assert read((filler * MAX_LENGTH)[:MAX_LENGTH], {"region": STATES}, "region").point is None
    assert time.perf_counter() - start < 1.5


def test_a_long_answer_is_none_but_long_reasoning_is_fine():
    assert read("38.5, -98.5" + " x" * MAX_LENGTH) == Reply()
    assert read("<think>" + "x" * 10**5 + "</think>38.5, -98.5").point == HERE


@given(st.text(alphabet="0123456789.,-+;/ NSEW°'\nLatitude:on<think>{}[]()State", max_size=60))
def test_any_text_is_read_and_what_is_read_is_on_earth(text):
    reply = read(text, {"region": STATES}, "region")
    assert reply.region in (None, *NAMES)
    if reply.point is not None:
        assert abs(reply.point[0]) <= 90 and abs(reply.point[1]) <= 180


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_is_in_think_tags_is_never_visible(before, thought, after):
    shown = visible(f"{before}<think>{thought}§§{thought}</think>{after}")
    assert "§§" not in shown and shown.strip("\n").endswith(after.strip("\n")[-1:])
