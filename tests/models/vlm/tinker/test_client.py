"""The kit's dialogues behind tinker-cookbook's interface, played against a client with canned replies."""

from __future__ import annotations

import asyncio
import pickle
import sys
import tomllib
from dataclasses import replace
from itertools import cycle
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinker_helper import REPLIES, RIGHT, STOP, Canned, Letters, Plain

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.dialogue import Dialogue
from kitlib.models.vlm.conversation.prompts import COMPETITION
from kitlib.models.vlm.conversation.recorder import Recorder, StepBuffer
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.tasks import ENVIRONMENTS, Task
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.tinker import client as remote
from kitlib.models.vlm.tinker.environments import GroupDataset, PlaceEnv, advantages

VIEWS = ("north", "east")
TRUTHS = [Reply((40.0 + i, -83.0), region="Ohio") for i in range(5)]
TASK = Task(COMPETITION, {"region": Labels(["Kansas", "Ohio"])}, Weights(region=0.5))
SECRET = "tml-never-to-be-seen"


@pytest.fixture
def tinker(monkeypatch):
    """What of the library is called where there is no server."""
    fake = ModuleType("tinker")
    fake.SamplingParams = SimpleNamespace
    fake.ServiceClient = lambda **given: SimpleNamespace(given=given)
    monkeypatch.setitem(sys.modules, "tinker", fake)
    return fake


def pictures(i: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (40 * i, 80 * v, 90)) for v in range(len(VIEWS))]


def cases(truths=TRUTHS) -> Cases:
    return Cases([f"place {i}" for i in range(len(truths))], list(truths), VIEWS, pictures)


def batches(task=TASK, recorder=None, **given) -> GroupDataset:
    return GroupDataset(cases(), task, Plain(), **({"steps": 4, "places": 2, "group": 3, "recorder": recorder} | given))


def recorder(folder) -> Recorder:
    return Recorder(rollouts.Writer(folder / "rollouts"), "single")


def play_step(made: GroupDataset, step: int, client: Canned) -> list:
    return [asyncio.run(remote.rollout(group, client, max_tokens=64)) for group in made.get_batch(step)]


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


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_kind_of_conversation_is_played_as_it_is_here(environment, tinker):
    task = TASK.with_options(environment=environment)
    [group, _] = batches(task).get_batch(3)
    played = asyncio.run(remote.rollout(group, Canned(), max_tokens=64))
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
    asyncio.run(remote.rollout(group, client, max_tokens=7, temperature=0.8))
    prompts, options = zip(*client.asked, strict=True)
    assert options == (SimpleNamespace(max_tokens=7, temperature=0.8, top_p=1.0, stop=[STOP]),) * 3
    assert all(prompt is prompts[0] for prompt in prompts)  # its pictures are compressed once


def test_a_group_gives_no_reward_of_its_own_and_has_seeds_of_its_own():
    task = TASK.with_options(environment="geohash", forcing=0.5)
    one, other = batches(task, group=40).get_batch(1)
    drawn = [[env.dialogue.env.forced.tolist() for env in asyncio.run(g.make_envs())] for g in (one, one, other)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(map(tuple, drawn[0]))) > 1
    assert asyncio.run(one.compute_group_rewards([None, None], [])) == [(0.0, {}), (0.0, {})]
    assert one.logging_tags() == ["geohash"] and asyncio.run(one.cleanup()) is None


def test_batches_go_through_all_places_in_another_order_each_pass():
    made = batches(steps=10)
    ids = [[group.case["sample_id"] for group in made.get_batch(step)] for step in range(len(made))]
    assert ids == [[group.case["sample_id"] for group in made.get_batch(step)] for step in range(10)]
    assert all(len(set(ids[i] + ids[i + 1])) == 4 for i in range(0, 10, 2))
    assert len({tuple(ids[i] + ids[i + 1]) for i in range(0, 10, 2)}) > 1
    assert {name for step in ids for name in step} == {f"place {i}" for i in range(5)}
    assert [group.step for group in made.get_batch(9)] == [9, 9]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"places": 6}, {"places": 0}, {"group": 1}])
def test_batches_that_make_no_sense_are_refused(wrong):
    with pytest.raises(KitError, match="expected at least 1 step, 1 to 5 places, and groups of at least 2"):
        batches(**wrong)


def test_a_place_that_cannot_be_graded_is_refused():
    made = GroupDataset(cases([Reply()] * 2), TASK, Plain(), steps=1, places=1, group=2)
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
        asyncio.run(remote.rollout(group, Canned(), max_tokens=64))
        assert steps() == written
    asyncio.run(remote.rollout(made.get_batch(2)[0], Canned(), max_tokens=64))
    made.buffer.close()
    assert steps() == [0] * 3 + [1] * 6 + [2] * 3


def test_a_book_without_a_writer_keeps_nothing(tinker):
    made = batches(recorder=Recorder(None, "single"))
    play_step(made, 0, Canned())
    assert isinstance(made.buffer, StepBuffer) and made.buffer.waiting == {}


def test_training_hands_over_to_the_cookbook_also_from_a_notebook(tmp_path, monkeypatch, tinker):
    """The cookbook's loop is replaced by one that only plays; a notebook's cells run in a loop of their own."""
    monkeypatch.setenv(remote.KEY, SECRET)

    async def loop(config):
        made, _ = await config.dataset_builder()
        for group in [*made.get_batch(0), *made.get_batch(1)[:1]]:
            await remote.rollout(group, Canned(), max_tokens=config.max_tokens)

    cookbook = {"tinker_cookbook.rl.train": SimpleNamespace(Config=SimpleNamespace, main=loop)}
    cookbook |= {"chz": SimpleNamespace(chz=lambda made: made)}
    cookbook |= {"tinker_cookbook.rl.types": SimpleNamespace(RLDatasetBuilder=object)}
    for name, module in cookbook.items():
        monkeypatch.setitem(sys.modules, name, module)

    async def cell():
        remote.train(batches(recorder=recorder(tmp_path)), remote.QWEN, tmp_path / "tinker")

    asyncio.run(cell())
    assert rollouts.read(tmp_path / "rollouts")["step"].tolist() == [0] * 6 + [1] * 3


@pytest.mark.parametrize("call", [remote.connect, lambda: remote.renderer(remote.QWEN), lambda: train(None)])
def test_without_the_library_one_sentence_says_how_to_get_it(call, monkeypatch):
    monkeypatch.setenv(remote.KEY, SECRET)
    for name in ("tinker", "tinker_cookbook"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KitError, match=r"^tinker(_cookbook)? is not installed: .* pip install -e '.\[tinker\]'"):
        call()


@pytest.mark.parametrize("key", [None, ""])
@pytest.mark.parametrize("call", [remote.connect, lambda: train(None)])
def test_without_a_key_one_sentence_says_what_is_missing(call, key, monkeypatch, tinker):
    monkeypatch.delenv(remote.KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(remote.KEY, key)
    with pytest.raises(KitError, match=r"^TINKER_API_KEY is not set: make a key in Tinker's console"):
        call()


def train(folder) -> None:
    remote.train(batches(), remote.QWEN, folder or "nowhere")


def test_the_key_is_never_written_or_shown(tmp_path, monkeypatch, capfd, caplog, tinker):
    monkeypatch.setenv(remote.KEY, SECRET)
    assert remote.connect().given == {}  # the library reads the key itself
    made = batches(recorder=recorder(tmp_path))
    played = play_step(made, 0, Canned())
    group = replace(made.get_batch(1)[0], buffer=None)
    shown = [repr(made), repr(vars(made)), repr(played), repr(group), caplog.text, *capfd.readouterr()]
    monkeypatch.setitem(sys.modules, "tinker_cookbook", None)
    with pytest.raises(KitError) as refusal:
        remote.renderer(remote.QWEN)
    assert not [text for text in [*shown, str(refusal.value)] if SECRET in text]
    assert SECRET.encode() not in pickle.dumps(group)  # as the cookbook's processes get it
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not [file.name for file in written if SECRET.encode() in file.read_bytes()]


def test_the_extra_is_optional():
    extras = tomllib.loads((paths.checkout() / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [line.split(">")[0] for line in extras["tinker"]] == ["tinker", "tinker-cookbook"]
    assert not [line for line in extras["dev"] if "tinker" in line]
    assert "tinker" not in (paths.checkout() / "requirements.lock").read_text()


def test_the_cookbook_itself_plays_a_group(tmp_path):
    tinker = pytest.importorskip("tinker", reason="of the extra tinker")
    pytest.importorskip("tinker_cookbook", reason="of the extra tinker")
    from tinker_cookbook.completers import TinkerTokenCompleter
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.rl.data_processing import compute_advantages, trajectory_to_data
    from tinker_cookbook.rl.rollouts import do_group_rollout

    from kitlib.models.vlm.tiny_model import build

    processor = build("qwen3")[1]
    renderer = get_renderer("qwen3_vl_instruct", processor.tokenizer, processor.image_processor)
    [stop], replies = renderer.get_stop_sequences(), cycle(REPLIES)

    class Client:
        async def sample(self, prompt, num_samples, sampling_params):
            assert isinstance(prompt, tinker.ModelInput) and sampling_params.stop == [stop]
            assert sum(isinstance(chunk, tinker.types.ImageChunk) for chunk in prompt.chunks) == len(VIEWS)
            tokens = np.array([*processor.tokenizer.encode(next(replies)), stop])
            sequence = tinker.types.SampledSequence("stop", "1", tokens, np.full(len(tokens), -0.5))
            return tinker.types.SampleResponse([sequence])

    task = TASK.with_options(environment="telescoping")
    made = GroupDataset(cases(), task, renderer, steps=1, places=1, group=4, recorder=recorder(tmp_path))
    [group] = made.get_batch(0)
    played = asyncio.run(do_group_rollout(group, TinkerTokenCompleter(Client(), max_tokens=64)))
    frame = rollouts.read(tmp_path / "rollouts")
    assert played.get_total_rewards() == pytest.approx(frame["reward"].tolist())
    np.testing.assert_allclose(compute_advantages([played])[0], frame["advantage"], atol=1e-6)
    one_sequence = [len(trajectory_to_data(trajectory, 1.0)) for trajectory in played.trajectories_G]
    assert one_sequence == [1] * 4  # every turn continues the one before
    mine = asyncio.run(remote.rollout(replace(group, buffer=None), Client(), max_tokens=64))
    assert [len(turns) for turns in mine.turns] == [3] * 4
    dataset, test = asyncio.run(remote.dataset_builder(made)())
    assert dataset is made and test is None
    for model in ("Qwen/Qwen3-8B", "Qwen/None", "none/none", "none"):
        with pytest.raises(KitError, match="expected a vision-language model that Tinker has, such as Qwen/Qwen3-VL"):
            remote.renderer(model)
