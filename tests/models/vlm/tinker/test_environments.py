"""The kit's dialogues behind tinker-cookbook's interfaces."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker_helper import REPLIES, RIGHT, STOP, TASK, TRUTHS, VIEWS, Letters, Plain, cases, pictures

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Dialogue
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.tinker.batches import CaseBatches
from kitlib.models.vlm.tinker.environments import ExampleDataset, GroupDataset, PlaceEnv, advantages


def batches(task=TASK, **given) -> GroupDataset:
    return GroupDataset(CaseBatches(cases(), 2, 0), task, Plain(), **({"steps": 4, "group": 3} | given))


def place_env(task: Task) -> PlaceEnv:
    return PlaceEnv(Dialogue(task.open(VIEWS, TRUTHS[0], 3, 4), []), pictures(0), Plain())


def test_an_environment_takes_tokens_and_says_what_is_seen_next():
    env = place_env(TASK.with_options(environment="telescoping"))
    prompt, stop = asyncio.run(env.initial_observation())
    assert stop == [STOP] and prompt.text().count("#") == len(VIEWS) and prompt.text().endswith("<assistant>")
    result = asyncio.run(env.step([*Letters().encode(RIGHT), STOP], extra={"stop_reason": "stop"}))
    assert not result.episode_done and result.next_stop_condition == [STOP] and result.logs == {"reply": RIGHT}
    assert result.metrics["km"] == 0 and result.metrics["parsed"] == 1 and result.reward == pytest.approx(1.6)
    seen = result.next_observation.text()
    assert seen.startswith(prompt.text() + RIGHT) and "You said 40.0000, -83.0000." in seen
    for turn in (2, 3):
        result = asyncio.run(env.step(Letters().encode(RIGHT)))
        assert result.episode_done == (turn == 3) and result.next_observation.length > 0
    with pytest.raises(KitError, match="over after 3 replies"):
        asyncio.run(env.step([STOP]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(REPLIES), min_size=3, max_size=3))
def test_rewards_by_turn_sum_to_what_the_last_reply_is_worth(replies):
    env, single = place_env(TASK.with_options(environment="telescoping")), place_env(TASK)
    results = [asyncio.run(env.step(Letters().encode(reply))) for reply in replies]
    alone = asyncio.run(single.step(Letters().encode(replies[-1])))
    assert sum(result.reward for result in results) == pytest.approx(alone.reward, abs=1e-12)


def test_a_group_gives_no_reward_of_its_own_and_has_seeds_of_its_own():
    task = TASK.with_options(environment="geohash", forcing=0.5)
    one, other = batches(task, group=40).get_batch(1)
    drawn = [[env.dialogue.env.forced.tolist() for env in asyncio.run(g.make_envs())] for g in (one, one, other)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(map(tuple, drawn[0]))) > 1
    assert asyncio.run(one.compute_group_rewards([None, None], [])) == [(0.0, {}), (0.0, {})]
    assert one.logging_tags() == ["geohash"] and asyncio.run(one.cleanup()) is None


def test_a_dataset_knows_the_steps_made_when_the_cookbook_evaluates():
    """In grpo before it asks for the batch, in sft after."""
    groups, examples = batches(), ExampleDataset(CaseBatches(cases(), 2, 0), TASK, len, steps=4, seed=0)
    for made in (groups, examples):
        made.get_batch(2)
    assert (groups.step, examples.step) == (3, 2) and len(groups) == len(examples) == 4
    assert [group.step for group in groups.get_batch(3)] == [3, 3]


def test_an_example_ends_with_the_target_reply_and_has_the_pictures():
    made = ExampleDataset(CaseBatches(cases(), 5, 0), TASK.with_options(reasoning=True), list, steps=4, seed=0)
    for messages, again in zip(made.get_batch(1), made.get_batch(1), strict=True):
        assert messages == again and [message["role"] for message in messages] == ["user", "assistant"]
        images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        latitude = 40 + images[0].getpixel((0, 0))[0] // 40
        assert len(images) == 2 and f"Latitude: {latitude}.0000" in messages[1]["content"][0]["text"]
        assert "think" not in str(messages[0]["content"][-1]).lower()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"group": 1}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(KitError, match="expected at least 1 step and groups of at least 2"):
        batches(**wrong)


def test_a_place_that_cannot_be_graded_is_refused():
    made = GroupDataset(CaseBatches(cases([Reply()] * 2), 1, 0), TASK, Plain(), steps=1, group=2)
    with pytest.raises(KitError, match="cannot be graded"):
        asyncio.run(made.get_batch(0)[0].make_envs())


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=16))
def test_advantages_are_what_is_above_the_groups_mean(rewards):
    result = advantages(rewards)
    assert result.sum() == pytest.approx(0, abs=1e-9)
    if np.ptp(rewards) < 1e-6:
        assert not result.any()
    else:
        np.testing.assert_allclose(np.diff(result), np.diff(rewards), atol=1e-12)
