"""Dialogues played against a client with canned replies, and what is recorded of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tinker_helper import MODEL, STOP, TASK, VIEWS, Away, Canned, Plain, cases

from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.recorder import Recorder, StepBuffer
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.tasks import ENVIRONMENTS
from kitlib.models.vlm.tinker import sampling
from kitlib.models.vlm.tinker.batches import CaseBatches
from kitlib.models.vlm.tinker.environments import GroupDataset


@pytest.fixture
def tinker(monkeypatch):
    return Away().install(monkeypatch)


def batches(task=TASK, recorder=None, **given) -> GroupDataset:
    return GroupDataset(
        CaseBatches(cases(), 2, 0), task, Plain(), **({"steps": 4, "group": 3, "recorder": recorder} | given)
    )


def recorder(folder) -> Recorder:
    return Recorder(rollouts.Writer(folder / "rollouts"), "single")


def play_step(made: GroupDataset, step: int, client: Canned) -> list:
    return [asyncio.run(sampling.rollout(group, client, max_tokens=64)) for group in made.get_batch(step)]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_kind_of_conversation_is_played_as_it_is_here(environment, tinker):
    task = TASK.with_options(environment=environment)
    [group, _] = batches(task).get_batch(3)
    played = asyncio.run(sampling.rollout(group, Canned(), max_tokens=64))
    envs = asyncio.run(group.make_envs())
    for dialogue, turns, again in zip(played.dialogues, played.turns, envs, strict=True):
        steps = [again.dialogue.env.step(reply) for reply in dialogue.replies]
        assert len(turns) == again.dialogue.env.turns == len(dialogue.replies)
        assert [turn.result.reward for turn in turns] == [step.reward for step in steps] == dialogue.rewards
        assert [turn.result.episode_done for turn in turns] == [step.done for step in steps]
        assert all(len(turn.tokens) == len(turn.logprobs) for turn in turns)


def test_a_client_is_asked_in_its_own_words(tinker):
    client = Canned()
    [group, _] = batches().get_batch(0)
    asyncio.run(sampling.rollout(group, client, max_tokens=7, temperature=0.8))
    prompts, options = zip(*client.asked, strict=True)
    assert options == (SimpleNamespace(max_tokens=7, temperature=0.8, top_p=1.0, stop=[STOP]),) * 3
    assert all(prompt is prompts[0] for prompt in prompts)  # its pictures are compressed once


def test_rollouts_are_written_for_the_page_that_watches(tmp_path, tinker):
    made = batches(recorder=recorder(tmp_path))
    played = play_step(made, 0, Canned())
    frame = rollouts.read(tmp_path / "rollouts")
    assert list(frame["sample_id"].value_counts()) == [3, 3] and set(frame["phase"]) == {"train"}
    assert frame["rollout"].tolist() == [0, 1, 2, 0, 1, 2] and (frame["tau_km"] == 2000).all()
    np.testing.assert_allclose(frame["advantage"], np.concatenate([one.advantages for one in played]))
    np.testing.assert_allclose(frame["reward"], [dialogue.reward for one in played for dialogue in one.dialogues])
    assert frame["prompt"][0].count("[picture]") == len(VIEWS)
    assert all((tmp_path / "rollouts" / "pictures" / name).is_file() for names in frame["pictures"] for name in names)
    assert rollouts.summary(frame)["rollouts"].tolist() == [6]


def test_a_step_waits_for_its_last_group_or_for_the_end(tmp_path, tinker):
    made = batches(recorder=recorder(tmp_path))
    (first, second), (third, fourth) = made.get_batch(0), made.get_batch(1)

    def steps() -> list[int]:
        return rollouts.read(tmp_path / "rollouts")["step"].tolist() if (tmp_path / "rollouts/steps").is_dir() else []

    for group, written in ((first, []), (third, []), (fourth, [0] * 3 + [1] * 6), (second, [0] * 3 + [1] * 6)):
        asyncio.run(sampling.rollout(group, Canned(), max_tokens=64))
        assert steps() == written
    asyncio.run(sampling.rollout(made.get_batch(2)[0], Canned(), max_tokens=64))
    made.buffer.close()
    assert steps() == [0] * 3 + [1] * 6 + [2] * 3


def test_a_book_without_a_writer_keeps_nothing(tinker):
    made = batches(recorder=Recorder(None, "single"))
    play_step(made, 0, Canned())
    assert isinstance(made.buffer, StepBuffer) and made.buffer.waiting == {}


def test_guesses_are_played_many_at_a_time_but_not_all(tinker, monkeypatch):
    """Each place in its row of the result, also one without a truth; replies to 3 of 5 places are awaited at most."""
    monkeypatch.setattr(sampling, "AT_ONCE", 3)
    awaited, at_once = [], []

    class Slow(Canned):
        async def sample(self, prompt, num_samples, sampling_params):
            [shade] = {chunk.getpixel((0, 0))[0] for chunk in prompt.chunks if isinstance(chunk, Image.Image)}
            awaited.append(shade)
            at_once.append(len(set(awaited)))
            await asyncio.sleep(0.02)
            awaited.remove(shade)
            return SimpleNamespace(sequences=[SimpleNamespace(tokens=[ord("0") + shade // 40], logprobs=None)])

    tinker.sampler = Slow
    places = cases([Reply((40.0, -83.0)), Reply(), *cases().truths[:3]])

    async def cell():  # a notebook's cells run in a loop of their own
        return sampling.sampled(places, TASK, Plain(), MODEL, "", 2, max_tokens=8, temperature=0.7)

    played = asyncio.run(cell())
    assert [[dialogue.replies for dialogue in row] for row in played] == [[[str(i)]] * 2 for i in range(5)]
    assert max(at_once) == 3 and tinker.asked == [MODEL]
    sampling.sampled(cases(), TASK, Plain(), MODEL, "tinker://run/sampler_weights/7", 1, max_tokens=8, temperature=0.7)
    assert tinker.asked[1:] == ["tinker://run/sampler_weights/7"]
