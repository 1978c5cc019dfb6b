"""Rewards: distances, schedules, terms, and that no trick earns more than an honest reply."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.evaluation import metrics
from kitlib.models.vlm.conversation.prompts import COMPETITION, RANKED, WORLD, ReplyForm
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Grader, Weights, returns, turn_advantages
from kitlib.models.vlm.conversation.schedules import SCHEDULES, tau_at
from kitlib.models.vlm.conversation.vocabulary import Labels

STATES = Labels(["Kansas", "Arkansas", "Ohio"])
TRUTH = Reply((38.5, -98.5), region="Kansas")
GRADER = Grader(COMPETITION, {"region": STATES}, Weights(distance=0.6, form=0.1, region=0.3))
HONEST = "State: Kansas\nLatitude: 38.5\nLongitude: -98.5"


def reward(grader: Grader, reply: str, truth: Reply) -> float | None:
    return grader.grade(reply, truth).total(grader.weights)


@pytest.mark.parametrize("kind", SCHEDULES)
@given(n_steps=st.integers(1, 500), levels=st.integers(2, 9))
def test_tau_falls_from_first_to_last(kind, n_steps, levels):
    taus = [tau_at(step, n_steps, kind, 2000.0, 25.0, levels) for step in range(n_steps)]
    assert taus[-1] == 25.0 and all(a >= b for a, b in pairwise(taus)) and max(taus) <= 2000.0
    assert tau_at(n_steps + 99, n_steps, kind, 2000.0, 25.0, levels) == 25.0
    if n_steps > 1 and kind != "fixed":
        assert taus[0] == 2000.0
    if kind == "stepped":
        assert len(set(taus)) <= levels


def test_steps_have_equal_length_and_ratio():
    taus = [tau_at(step, 8, "stepped", 2000.0, 2.0, 4) for step in range(8)]
    assert taus == pytest.approx([2000, 2000, 200, 200, 20, 20, 2, 2])
    assert tau_at(1, 3, "linear", 2000.0, 25.0) == pytest.approx(1012.5)
    assert tau_at(0, 1, "geometric", 2000.0, 25.0) == 25.0


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        (HONEST, 1.0),
        (f"<think>Ohio?</think>\n{HONEST}", 1.0),
        (HONEST.replace("Kansas", "KANSAS"), 1.0),
        (HONEST.replace("Kansas", "Ohio"), 0.7),
        (HONEST.replace("Kansas", "Kansas, Arkansas"), 0.6),
        (HONEST.replace("38.5", "-38.5"), 0.4),
        (HONEST.replace("38.5", "138.5"), 0.3),
        (f"Sure!\n{HONEST}", 0.9),
        ("Kansas\n38.5, -98.5", 0.9),
        (f"{HONEST}\n{HONEST}", 0.9),
        ("\n".join(f"State: {name}" for name in STATES.names), 0.0),
        ("\n".join([HONEST, "State: Ohio", "Latitude: 1"]), 0.0),
        ("\n".join(f"{lat}, {lon}" for lat in range(25, 50) for lon in range(-125, -65, 5)), 0.0),
        (f"<think>{HONEST}</think>", 0.0),
        (f"<think>{HONEST}", 0.0),
        (HONEST + " " * 10**6 + "x", 0.0),
        ("State: \nLatitude: \nLongitude: ", 0.0),
        ("State: <name>\nLatitude: <degrees, south negative>\nLongitude: <degrees, west negative>", 0.0),
        ("", 0.0),
    ],
)
def test_what_tricks_earn(reply, earned):
    assert reward(GRADER, reply, TRUTH) == pytest.approx(earned, abs=1e-3)


@given(st.lists(st.sampled_from([*HONEST.splitlines(), "State: Ohio", "38.5, -98.5", "1, 2", "<think>", "</think>"])))
def test_nothing_earns_more_than_the_whole_truth(lines):
    assert 0 <= reward(GRADER, "\n".join(lines), TRUTH) <= 1 + 1e-12


def test_unknown_truth_is_not_graded_and_unparsed_is_not_wrong():
    grade = GRADER.grade(HONEST, Reply(region="Kansas"))
    assert grade.terms["distance"] is None and grade.km is None and grade.total(GRADER.weights) == pytest.approx(0.4)
    wrong, silent = (GRADER.grade(reply, TRUTH) for reply in ("State: Ohio\n-38.5, 81.5", "Who knows?"))
    assert wrong.km > 19000 and silent.km is None
    assert (GRADER.metrics(wrong)["parsed"], GRADER.metrics(silent)["parsed"]) == (1.0, 0.0)
    assert "km" in GRADER.metrics(wrong) and "km" not in GRADER.metrics(silent)
    distance_only = Grader(COMPETITION, GRADER.labels, Weights(form=0.0))
    assert reward(distance_only, HONEST, Reply(region="Kansas")) is None
    assert reward(distance_only, "", TRUTH) == 0.0


def test_terms_are_shares_and_names_match_without_a_vocabulary():
    truth = Reply((48.85, 2.35), "Paris", "Île-de-France", "France")
    weights = Weights(distance=0.0, geoscore=1.0, form=0.0, city=1.0, region=1.0, country=1.0)
    grader = Grader(WORLD, weights=weights)
    assert reward(grader, WORLD.write(truth), truth) == pytest.approx(4.0)
    assert reward(grader, "City: paris\nRegion: Ile de France\nCountry: Francia\n", truth) == 2.0
    far = grader.grade("48.85, -20", truth)
    assert far.terms["geoscore"] == pytest.approx(np.exp(-far.km / 1492.7))


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        ("States: Kansas, Ohio, Virginia\nCoordinates: 38.5, -98.5", 1.0),
        ("States: Ohio, Kansas, Virginia\nCoordinates: 38.5, -98.5", 0.7 * 0.6 + 0.3),
        ("States: Ohio, Virginia\nCoordinates: 38.5, -98.5", 0.3),
        ("States: Kansas, Ohio", 0.7),
        ("States: Ohio, Ohio, Kansas, Virginia\nCoordinates: 0, 90", 0.7 * 0.6),
        ("State: Kansas\nCoordinates: 38.5, -98.5", 0.3),
        ("", 0.0),
    ],
)
def test_a_ranked_reply_earns_the_competitions_score(reply, earned):
    states = Labels(["Kansas", "Ohio", "Virginia"])
    grader = Grader(RANKED, {"states": states}, Weights(distance=0.0, form=0.0, score=1.0))
    truth = Reply((38.5, -98.5), states=("Kansas", "Ohio", "Virginia"))
    grade = grader.grade(reply, truth)
    assert grader.value(grade) == pytest.approx(earned)
    if grade.reply.point and grade.reply.states:
        ranked = [list(states.positions(grade.reply.states))]
        score = metrics.score_arrays([0], [truth.point], ranked, [grade.reply.point])
        assert grader.value(grade) == pytest.approx(score.final)


def test_a_single_answer_earns_the_score_of_its_first_rank():
    grader = Grader(COMPETITION, weights=Weights(distance=0.0, form=0.0, score=1.0))
    truth = Reply((38.5, -98.5), region="Kansas")
    assert grader.value(grader.grade("State: Kansas\n38.5, -98.5", truth)) == pytest.approx(1.0)
    assert grader.value(grader.grade("State: Ohio\n38.5, -98.5", truth)) == pytest.approx(0.3)
    with pytest.raises(KitError, match="cannot be graded"):
        grader.check(Reply((38.5, -98.5)))


def test_a_schedule_changes_only_tau():
    far = HONEST.replace("38.5", "39.5")
    taus = [tau_at(step, 10, "geometric", 2000.0, 25.0) for step in range(10)]
    rewards = [reward(replace(GRADER, tau_km=tau), far, TRUTH) for tau in taus]
    assert all(a > b for a, b in pairwise(rewards))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_returns_are_what_was_still_to_come(rewards):
    assert np.allclose(returns(rewards), [sum(rewards[turn:]) for turn in range(len(rewards))])


TALKS = st.integers(1, 3).flatmap(
    lambda turns: st.lists(st.lists(st.floats(-1, 1), min_size=turns, max_size=turns), min_size=2, max_size=6)
)


@given(TALKS)
def test_a_turn_is_credited_with_what_came_after_it_and_not_with_what_came_before(dialogues):
    rewards = np.array([dialogues])
    found, totals = turn_advantages(rewards, "none"), rewards.sum(-1)
    assert np.allclose(found.sum(axis=1), 0)
    assert np.allclose(found[..., 0], totals - totals.mean())
    before = np.cumsum(rewards, axis=-1) - rewards
    assert np.allclose((found * (before - before.mean(axis=1, keepdims=True))).sum(axis=(0, 1)), 0, atol=1e-4)


def test_a_refinement_that_owes_nothing_to_the_first_guess_is_credited_whole():
    first, last = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.2, 0.8, 0.2, 0.8])
    dialogues = np.stack([first, last - first], axis=-1)[None]
    assert np.allclose(turn_advantages(dialogues, "none")[0, :, 1], last - 0.5)
    copied = np.stack([first, 0 * first], axis=-1)[None]
    assert np.allclose(turn_advantages(copied, "none")[0, :, 1], 0)


def test_advantages_are_in_units_of_a_groups_or_the_batchs_deviation():
    rewards = np.array([[[0.0, 0.1], [0.2, 0.7]], [[0.5, 0.0], [0.1, 0.0]], [[0.3, 0.3], [0.6, 0.0]]])
    totals = rewards.sum(-1)
    for scale, spread in (("group", totals.std(1, ddof=1, keepdims=True)), ("batch", totals.std(ddof=1))):
        expected = (totals - totals.mean(1, keepdims=True)) / (spread + 1e-4)
        assert np.allclose(turn_advantages(rewards, scale)[..., 0], expected)
    assert not turn_advantages(rewards)[2, :, 0].any()  # all earned the same


def test_graders_that_cannot_work_are_refused():
    with pytest.raises(KitError, match="reward: expected terms of the form's point; got region"):
        Grader(ReplyForm(("point",)), weights=Weights(region=1.0))
    with pytest.raises(KitError, match="labels: expected vocabularies for city, region, country, states; got state"):
        Grader(WORLD, {"state": STATES})
    with pytest.raises(KitError, match="region: expected a truth among the 3 names of its vocabulary; got 'Utah'"):
        GRADER.grade("", Reply(region="Utah"))
    with pytest.raises(KitError, match="cannot be graded: the reward counts distance, region"):
        GRADER.check(Reply(city="Hays"))
    with pytest.raises(KitError, match="unknown setting tau"):
        Weights.from_dict({"tau": 3.0})
    assert reward(GRADER.only("region"), "Kansas", TRUTH) == 1.0 and GRADER.only("point").form.keys[0] == "Latitude"
