"""What a vision-language model is set to do: the right replies earn all there is, nothing leaks the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation import tasks
from kitlib.models.vlm.conversation.prompts import COMPETITION, WORLD
from kitlib.models.vlm.conversation.replies import Answer
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.tasks import ENVIRONMENTS, Task
from kitlib.models.vlm.conversation.vocabulary import Labels

VIEWS = ("north", "east", "south", "west")
LABELS = {"region": Labels(["Iowa", "Ohio"])}
TRUTH = Answer((40.0, -83.0), region="Ohio")
BEST = {"single": 1.6, "telescoping": 1.6, "hierarchical": 1.0, "geohash": 1.74}  # a cell has a middle


def task(environment: str) -> Task:
    return Task(COMPETITION, LABELS, Weights(region=0.5), environment, forcing=0.0)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_right_replies_earn_all_there_is_and_say_the_place(environment):
    env = task(environment).last(VIEWS, TRUTH)
    earned, said = 0.0, []
    for turn in range(env.turns):
        reply = tasks.right_reply(env, TRUTH)
        earned += env.step(reply).reward
        said.append(tasks.said(env, turn, reply))
    assert earned == pytest.approx(BEST[environment], abs=0.05)
    concluded = tasks.concluded(said)
    assert geo.distance_km(concluded.point, TRUTH.point) < 1.0
    assert concluded.region == (None if environment == "geohash" else "Ohio")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_lessons_come_at_every_turn_and_end_with_a_question(environment):
    lessons = [task(environment).lesson(VIEWS, TRUTH, seed) for seed in range(20)]
    lengths = {len(messages) for messages, _ in lessons}
    assert lengths == {1 + 2 * turn for turn in range(task(environment).last(VIEWS, TRUTH).turns)}
    assert all(messages[-1]["role"] == "user" for messages, _ in lessons)
    assert sum(part["type"] == "image" for m in lessons[0][0] for part in m["content"]) == 4
    assert lessons[3] == task(environment).lesson(VIEWS, TRUTH, 3)


def test_what_is_unknown_is_neither_asked_nor_said():
    world = Task(WORLD, weights=Weights(city=1.0))
    messages, reply = world.lesson(("only",), Answer((1.0, 2.0), country="Gabon"), 0)
    assert reply == "Country: Gabon\nLatitude: 1.0000\nLongitude: 2.0000"
    assert "City" not in messages[-1]["content"][-1]["text"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_question_is_the_same_whatever_the_truth(environment):
    chosen = task(environment)
    true, blank = (chosen.last(VIEWS, truth) for truth in (TRUTH, chosen.blank()))
    assert true.messages() == blank.messages()
    replies = ["State: Ohio\nLatitude: 39\nLongitude: -80", "Geohash: dp", "?"]
    told = [[env.step(reply).message for reply in replies[: env.turns]] for env in (true, blank)]
    assert told[0] == told[1]


def test_tau_goes_by_the_step_alone():
    chosen = task("single")
    assert [round(chosen.tau_km(step, 3)) for step in range(4)] == [2000, 224, 25, 25]
    assert chosen.last(VIEWS, TRUTH).grader.tau_km == 25
    assert replace(chosen, tau_schedule="fixed").open(VIEWS, TRUTH, 0, 3).grader.tau_km == 25


def test_near_is_about_as_far_as_asked_everywhere():
    rng = np.random.default_rng(0)
    for point in ((0.0, 180.0), (89.9, 0.0), (40.0, -83.0)):
        moved = [tasks.near(Answer(point), 200.0, rng).point for _ in range(400)]
        assert 150 < geo.distance_km(np.array(moved), point).mean() < 250
    assert tasks.near(Answer(region="Ohio"), 9.0, rng) == Answer(region="Ohio")


def test_an_unknown_environment_is_refused():
    with pytest.raises(KitError, match="allowed are single, telescoping, geohash, hierarchical"):
        task("dance")
