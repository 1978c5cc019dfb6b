"""Tasks: target replies earn the full reward, and no message leaks the truth."""

from __future__ import annotations

import numpy as np
import pytest

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation import tasks
from kitlib.models.vlm.conversation.prompts import COMPETITION, WORLD
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.tasks import ENVIRONMENTS, Task, TaskOptions
from kitlib.models.vlm.conversation.vocabulary import Labels

VIEWS = ("north", "east", "south", "west")
LABELS = {"region": Labels(["Iowa", "Ohio"])}
TRUTH = Reply((40.0, -83.0), region="Ohio")
BEST = {"single": 1.6, "telescoping": 1.6, "hierarchical": 1.0, "geohash": 1.74}  # a cell has a middle


def task(environment: str) -> Task:
    return Task(COMPETITION, LABELS, Weights(region=0.5), TaskOptions(environment=environment))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_right_replies_earn_all_there_is_and_say_the_place(environment):
    env = task(environment).open_final(VIEWS, TRUTH)
    earned, replies = 0.0, []
    for turn in range(env.turns):
        reply = tasks.target_reply(env, TRUTH)
        earned += env.step(reply).reward
        replies.append(tasks.parse_reply(env, turn, reply))
    assert earned == pytest.approx(BEST[environment], abs=0.05)
    result = tasks.final_reply(replies)
    assert geo.distance_km(result.point, TRUTH.point) < 1.0
    assert result.region == (None if environment == "geohash" else "Ohio")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_examples_come_at_every_turn_and_end_with_a_question(environment):
    examples = [task(environment).example(VIEWS, TRUTH, seed) for seed in range(20)]
    lengths = {len(messages) for messages, _ in examples}
    assert lengths == {1 + 2 * turn for turn in range(task(environment).open_final(VIEWS, TRUTH).turns)}
    assert all(messages[-1]["role"] == "user" for messages, _ in examples)
    assert sum(part["type"] == "image" for m in examples[0][0] for part in m["content"]) == 4
    assert examples[3] == task(environment).example(VIEWS, TRUTH, 3)


def test_what_is_unknown_is_neither_asked_nor_said():
    world = Task(WORLD, weights=Weights(city=1.0))
    messages, reply = world.example(("only",), Reply((1.0, 2.0), country="Gabon"), 0)
    assert reply == "Country: Gabon\nLatitude: 1.0000\nLongitude: 2.0000"
    assert "City" not in messages[-1]["content"][-1]["text"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_question_is_the_same_whatever_the_truth(environment):
    chosen = task(environment)
    true, blank = (chosen.open_final(VIEWS, truth) for truth in (TRUTH, chosen.placeholder()))
    assert true.messages() == blank.messages()
    replies = ["State: Ohio\nLatitude: 39\nLongitude: -80", "Geohash: dp", "?"]
    messages = [[env.step(reply).message for reply in replies[: env.turns]] for env in (true, blank)]
    assert messages[0] == messages[1]


def test_tau_goes_by_the_step_alone():
    chosen = task("single")
    assert [round(chosen.tau_km(step, 3)) for step in range(4)] == [2000, 224, 25, 25]
    assert chosen.open_final(VIEWS, TRUTH).grader.tau_km == 25
    assert chosen.with_options(tau_schedule="fixed").open(VIEWS, TRUTH, 0, 3).grader.tau_km == 25


def test_near_is_about_as_far_as_asked_everywhere():
    rng = np.random.default_rng(0)
    for point in ((0.0, 180.0), (89.9, 0.0), (40.0, -83.0)):
        moved = [tasks.perturbed(Reply(point), 200.0, rng).point for _ in range(400)]
        assert 150 < geo.distance_km(np.array(moved), point).mean() < 250
    assert tasks.perturbed(Reply(region="Ohio"), 9.0, rng) == Reply(region="Ohio")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment": "dance"}, "environment: expected one of single, telescoping, geohash, hierarchical"),
        ({"lengths": "4,2"}, "lengths: expected increasing values from 1 to 12; got '4,2'"),
        ({"lengths": "6,13"}, "expected increasing values"),
        ({"lengths": ""}, "expected increasing values"),
        ({"lengths": "2.7"}, "expected increasing values"),
        ({"lengths": "-1,2"}, "expected increasing values"),
        ({"lengths": "2,2"}, "expected increasing values"),
        ({"radii_km": "far"}, "radii_km: expected numbers above 0, commas between; got 'far'"),
        ({"radii_km": "200,0"}, "radii_km: expected numbers above 0"),
        ({"radii_km": "nan"}, "radii_km: expected numbers above 0"),
        ({"radii_km": "-5"}, "radii_km: expected numbers above 0"),
        ({"forcing": 1.5}, "from 0 to 1"),
        ({"tau_last_km": 0.0}, "more than 0"),
        ({"bonus": -1.0}, "not negative"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(KitError, match=message):
        TaskOptions(**options)
