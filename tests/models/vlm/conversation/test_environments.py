"""Environments: rewards by turn, what they sum to, and messages that reveal nothing of the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.environments import Environment, Hierarchical, SingleTurn, Telescoping
from kitlib.models.vlm.conversation.prompts import COMPETITION, WORLD
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Grader, Weights, returns
from kitlib.models.vlm.conversation.vocabulary import Labels

VIEWS = ("north", "east", "south", "west")
STATES = Labels(["Kansas", "Ohio"])
TRUTH = Reply((38.5, -98.5), region="Kansas")
GAME = Weights(distance=0.0, geoscore=1.0, form=0.0)
GRADER = Grader(COMPETITION, {"region": STATES}, GAME)
RADII_KM = (2000.0, 200.0, 25.0)
PLACE = Reply((48.85, 2.35), "Paris", "Île-de-France", "France")

REPLY = st.one_of(
    st.sampled_from(
        ["", "Somewhere.", "<think>38.5, -98.5", "99, 0", "1, 2\n3, 4", "State: Kansas", "State: KANSAS, 38.5, -98.5"]
    ),
    st.builds("{:.3f}, {:.3f}".format, st.floats(-90, 90), st.floats(-180, 180)),
)
WEIGHTS = st.sampled_from([GAME, Weights(), Weights(distance=0.5, region=0.4, geoscore=0.2)])


def play(env: Environment, replies) -> list:
    return [env.step(reply) for reply in replies]


def shown(messages) -> str:
    return "\n".join(part.get("text", "<image>") for message in messages for part in message["content"])


def test_one_turn_is_the_graders_reward():
    env = SingleTurn(VIEWS, TRUTH, Grader(COMPETITION, {"region": STATES}, Weights(region=0.5)), listed=["region"])
    prompt = shown(env.messages())
    assert prompt.count("<image>") == 4 and "Allowed for State: Kansas, Ohio." in prompt
    step = env.step("State: KANSAS\nLatitude: 38.5\nLongitude: -98.5")
    assert step.reward == pytest.approx(1.6) and step.done and step.message is None
    assert step.metrics == {"parsed": 1.0, "km": 0.0, "distance": 1.0, "geoscore": 1.0, "region": 1.0, "form": 1.0,
                            "score": 1.0}  # fmt: skip
    with pytest.raises(KitError, match="over after 1 replies"):
        env.step("38.5, -98.5")


@given(st.lists(REPLY, min_size=1, max_size=5), WEIGHTS)
def test_telescoping_rewards_sum_to_what_the_last_reply_alone_would_earn(replies, weights):
    grader = Grader(COMPETITION, {"region": STATES}, weights, tau_km=2000.0)
    steps = play(Telescoping(VIEWS, TRUTH, grader, radii_km=[100.0] * len(replies)), replies)
    rewards = [step.reward for step in steps]
    alone = [SingleTurn(VIEWS, TRUTH, grader).step(reply).reward for reply in replies]
    assert sum(rewards) == pytest.approx(alone[-1], abs=1e-9)
    assert np.allclose(returns(rewards), np.array(alone[-1]) - np.array([0.0, *alone[:-1]]))
    assert [step.done for step in steps] == [False] * (len(replies) - 1) + [True]


def test_an_unparsed_turn_gives_back_what_was_earned():
    env = Telescoping(VIEWS, TRUTH, GRADER, radii_km=RADII_KM)
    rewards = [step.reward for step in play(env, ["38.5, -98.5", "hm", "38.5, -98.5"])]
    assert rewards == [1.0, -1.0, 1.0]
    assert [step.metrics["parsed"] for step in play(Telescoping(VIEWS, TRUTH, GRADER, radii_km=RADII_KM), ["hm"])] == [
        0.0
    ]


def test_telescoping_asks_for_ever_closer_guesses():
    env = Telescoping(VIEWS, TRUTH, GRADER, radii_km=RADII_KM)
    assert shown(env.messages()).endswith("\nA first guess is enough, within 2,000 km.")
    assert shown(env.messages()).count("<image>") == 4
    second, third, last = play(env, ["40, -83", "no idea", "38, -98"])
    assert shown([second.message]).startswith("You said 40.0000, -83.0000.") and "200 km" in shown([second.message])
    assert shown([third.message]).startswith("Your reply did not say where.") and "25 km" in shown([third.message])
    assert last.message is None and "<image>" not in shown([second.message, third.message])


@given(st.lists(REPLY, min_size=3, max_size=3))
def test_messages_depend_on_the_replies_alone(replies):
    def messages(truth):
        env = Telescoping(VIEWS, truth, GRADER, radii_km=RADII_KM)
        return json.dumps([env.messages(), *(step.message for step in play(env, replies))])

    assert messages(TRUTH) == messages(TRUTH) == messages(Reply((40.0, -83.0), region="Ohio"))


LEVELS = ("country", "region", "city", "point")
WORLD_GRADER = Grader(
    WORLD,
    {
        "country": Labels(["France", "Peru"]),
        "region": Labels(["Île-de-France", "Lima"]),
        "city": Labels(["Paris", "Lima"]),
    },
)


@pytest.mark.parametrize(
    ("replies", "rewards"),
    [
        (["France", "Region: Ile-de-France", "City: Paris", "48.85, 2.35"], [0.25, 0.25, 0.25, 0.25]),
        (["Country: France\nRegion: Île-de-France\nCity: Paris\n48.85, 2.35", "", "", ""], [0.25, 0, 0, 0]),
        (["France, Peru", "Lima", "Paris", "48.85, 2.35\n1, 2"], [0, 0, 0.25, 0]),
        (["<think>France</think>", "France", "Par", "nowhere"], [0, 0, 0, 0]),
    ],
)
def test_every_level_earns_its_share(replies, rewards):
    env = Hierarchical(["only"], PLACE, WORLD_GRADER, levels=LEVELS)
    steps = play(env, replies)
    assert [step.reward for step in steps] == pytest.approx(rewards) and steps[-1].done


def test_hierarchical_asks_one_level_at_a_time():
    env = Hierarchical(["only"], PLACE, WORLD_GRADER, levels=LEVELS, listed=["country"])
    first = shown(env.messages())
    assert "Country: <name>" in first and "City" not in first and "Allowed for Country: France, Peru." in first
    steps = play(env, ["Peru", "hm", "lima", "0, 0"])
    second, third, fourth = (shown([step.message]) for step in steps[:3])
    assert second.startswith("You said Peru.") and "Region: <name>" in second
    assert third.startswith("You said Peru, nothing clear.") and "City: <name>" in third
    assert fourth.startswith("You said Peru, nothing clear, Lima.") and "Latitude" in fourth
    states = Hierarchical(VIEWS, TRUTH, GRADER, levels=("region", "point"))
    assert "State: <name>" in shown(states.messages()) and "Latitude" not in shown(states.messages())
    assert sum(step.reward for step in play(states, ["Kansas", "38.5, -98.5"])) == 1.0


def test_environments_that_cannot_work_are_refused():
    with pytest.raises(KitError, match="cannot be graded"):
        SingleTurn(VIEWS, Reply(region="Kansas"), GRADER)
    with pytest.raises(KitError, match="listed: expected fields with a vocabulary; got city"):
        SingleTurn(VIEWS, TRUTH, GRADER, listed=["city"])
    with pytest.raises(KitError, match="expected a form with the point; got region"):
        Telescoping(VIEWS, TRUTH, GRADER.only("region"), radii_km=RADII_KM)
    with pytest.raises(KitError, match="each once"):
        Hierarchical(VIEWS, TRUTH, GRADER, levels=("region", "region"))
    with pytest.raises(KitError, match="cannot be graded: the reward counts city"):
        Hierarchical(VIEWS, TRUTH, GRADER, levels=("city", "point"))
    with pytest.raises(KitError, match="got 'Utah'"):
        Hierarchical(VIEWS, Reply(region="Utah"), GRADER, levels=("region",))
