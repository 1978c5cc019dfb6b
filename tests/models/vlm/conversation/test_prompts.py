"""Prompts: the messages, and that the question, the target reply and the check of its layout agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.prompts import COMPETITION, RANKED, WORLD, ReplyForm, ask, assistant, chat
from kitlib.models.vlm.conversation.replies import Reply, read
from kitlib.models.vlm.conversation.vocabulary import Labels

VIEWS = ("north", "east", "south", "west")
STATES = Labels(["Ohio", "New York"])
HERE = (40.0, -83.0)


def texts(messages):
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


def test_four_views_are_labelled_by_heading_in_one_prompt():
    (message,) = ask(COMPETITION, VIEWS, {"region": STATES}, reasoning=True)
    kinds = [part["type"] for part in message["content"]]
    assert message["role"] == "user" and kinds == ["text", "image"] * 4 + ["text"]
    *headings, question = texts([message])
    assert headings == ["Facing north:", "Facing east:", "Facing south:", "Facing west:"]
    assert "Where were these 4 pictures of one place taken?" in question
    assert "State: <name>\nLatitude: <" in question and "Allowed for State: Ohio, New York." in question
    assert "<think></think>" in question and "City" not in question
    assert json.loads(json.dumps(message)) == message


def test_a_single_picture_has_no_heading():
    system, message = ask(WORLD, ["only"], system="You know the world.")
    assert system["role"] == "system" and [part["type"] for part in message["content"]] == ["image", "text"]
    (question,) = texts([message])
    assert "Where was this picture taken?" in question and "think" not in question
    assert [line.split(":")[0] for line in question.splitlines()[1:]] == WORLD.keys
    with pytest.raises(KitError, match="at least one view"):
        chat([], "Where?")


NAME = st.sampled_from(["Ohio", "New York", "Columbus", "São Paulo"])


@given(st.floats(-90, 90), st.floats(-180, 180), NAME, NAME, NAME, st.integers(0, 6))
def test_what_a_form_writes_it_reads_and_fits(lat, lon, city, region, country, digits):
    truth = Reply((lat, lon), city, region, country)
    for form in (ReplyForm(digits=digits), ReplyForm(("region", "point"), "State", digits), ReplyForm(("city",))):
        reply = form.write(truth)
        assert form.fits(reply) and form.fits(f"<think>hm</think>\n{reply}\n") and not form.fits(f"{reply}\nNo.")
        parsed = read(reply)
        for field in form.fields:
            if field == "point":
                assert parsed.point == pytest.approx((lat, lon), abs=0.51 * 10**-digits)
            else:
                assert getattr(parsed, field) == getattr(truth, field)
    assert assistant(reply)["content"][0]["text"] == reply


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "38.5, -98.5",
        "State: Ohio",
        "Latitude: 1\nLongitude: 2\nState: Ohio",
        "State: \nLatitude: 1\nLongitude: 2",
        "State: Ohio\nLatitude: 1°\nLongitude: 2",
        "State: Ohio: no\nLatitude: 1\nLongitude: 2",
        "**State:** Ohio\nLatitude: 1\nLongitude: 2",
        "State: Ohio\nLatitude: 1\nLongitude: 2\nState: Ohio\nLatitude: 1\nLongitude: 2",
        "<think>State: Ohio\nLatitude: 1\nLongitude: 2</think>",
    ],
)
def test_other_layouts_do_not_fit(reply):
    assert not COMPETITION.fits(reply)


def test_a_ranked_form_is_a_row_of_the_competition():
    truth = Reply((40.5, -83.25), states=("Ohio", "New York", "Iowa", "Utah", "Maine"))
    reply = RANKED.write(truth)
    assert reply == "States: Ohio, New York, Iowa, Utah, Maine\nCoordinates: 40.5000, -83.2500"
    assert (
        read(reply) == truth and RANKED.fits(reply) and not RANKED.fits(COMPETITION.write(Reply(HERE, region="Ohio")))
    )
    assert "States: <five names, the likeliest first>" in RANKED.question()


def test_a_form_asks_for_what_is_known():
    truth = Reply((1.0, 2.0), country="Peru")
    assert WORLD.known(truth).keys == ["Country", "Latitude", "Longitude"]
    with pytest.raises(KitError, match="city: expected a value"):
        WORLD.write(truth)
    with pytest.raises(KitError, match="fields: expected some of"):
        WORLD.known(Reply())
    assert COMPETITION.bare == "region" and WORLD.bare is None


def test_bad_forms_are_refused():
    for fields in ((), ("point", "city"), ("city", "city"), ("state",)):
        with pytest.raises(KitError, match="expected some of city, region, country, states, point, each once"):
            ReplyForm(fields)
    with pytest.raises(KitError, match="expected Region, State or Province; got 'Bezirk'"):
        ReplyForm(region="Bezirk")
