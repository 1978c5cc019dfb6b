"""The cookbook's loops, with the kit's datasets: handed over to, and where they are installed, run to their end."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tinker_helper import MODEL, REPLIES, SECRET, TASK, VIEWS, Away, Canned, Plain, cases, real_response

from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.tinker import client, sampling, training
from kitlib.models.vlm.tinker.batches import CaseBatches
from kitlib.models.vlm.tinker.environments import ExampleDataset, GroupDataset

OPTIONS = {"rate": 1e-3, "lora_rank": 4, "save_every": 2}
REPLY = {"max_tokens": 64, "temperature": 1.0}


def groups(folder, renderer, task=TASK, steps=4) -> GroupDataset:
    recorder = Recorder(rollouts.Writer(folder / "rollouts"), "single")
    return GroupDataset(CaseBatches(cases(), 2, 0), task, renderer, steps=steps, group=3, recorder=recorder)


def test_training_hands_over_to_the_cookbook_also_from_a_notebook(tmp_path, monkeypatch):
    """The cookbook's loop is replaced by one that only plays; a notebook's cells run in a loop of their own."""
    Away().install(monkeypatch)

    async def loop(config):
        made, _ = await config.dataset_builder()
        for group in [*made.get_batch(0), *made.get_batch(1)[:1]]:
            await sampling.rollout(group, Canned(), max_tokens=config.max_tokens)
        (tmp_path / "tinker").mkdir()
        (tmp_path / "tinker" / "logs.log").write_text(str(tmp_path))

    evaluators = SimpleNamespace(SamplingClientEvaluator=object)
    monkeypatch.setitem(sys.modules, "tinker_cookbook.rl.train", SimpleNamespace(Config=SimpleNamespace, main=loop))
    monkeypatch.setitem(sys.modules, "tinker_cookbook.eval.evaluators", evaluators)

    async def cell():
        training.train("grpo", groups(tmp_path, Plain()), MODEL, tmp_path / "tinker", **OPTIONS, **REPLY)

    asyncio.run(cell())
    assert rollouts.read(tmp_path / "rollouts")["step"].tolist() == [0] * 6 + [1] * 3
    assert list((tmp_path / "tinker").iterdir()) == []  # the log named a folder of this machine
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]


def test_the_history_has_the_kits_names_and_forgives_a_line_that_a_kill_cut_short(tmp_path):
    lines = [{"step": 0, "optim/lr": 1e-3, "env/all/reward/total": 0.5, "eval_reward": 0.25, "time/total": 3.0}]
    lines += [{"step": 1, "optim/lr": 1e-3, "env/all/reward/total": 0.75, "env/all/km": 12.0}, {"step": 2, "cost": 1}]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 3, "optim')
    assert training.history(tmp_path) == [
        {"step": 0, "eval_reward": 0.25},
        {"step": 1, "learning_rate": 1e-3, "reward": 0.5},
        {"step": 2, "learning_rate": 1e-3, "reward": 0.75, "km": 12.0},
    ]
    assert training.history(tmp_path / "before") == []


@pytest.fixture(params=["qwen3_vl_instruct", "qwen3_5_disable_thinking"])
def real(request, monkeypatch):
    """The libraries, with a service of canned replies in the place of Tinker's, and a renderer."""
    tinker = pytest.importorskip("tinker", reason="of the extra tinker")
    tokenizers = pytest.importorskip("tinker_cookbook.tokenizer_utils", reason="of the extra tinker")
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.utils import cost_estimation

    from kitlib.models.vlm.tiny_model import build

    processor = build("qwen3.5" if "5" in request.param else "qwen3")[1]
    renderer = get_renderer(request.param, processor.tokenizer, processor.image_processor)
    monkeypatch.setattr(cost_estimation, "_download_pricing", lambda *given: [])
    monkeypatch.setitem(tokenizers._CUSTOM_TOKENIZER_REGISTRY, MODEL, lambda: processor.tokenizer)
    [stop] = renderer.get_stop_sequences()
    away = Away(sampler=partial(Canned, tokenizer=processor.tokenizer, stop=stop, response=real_response)).install(
        monkeypatch, tinker
    )
    return SimpleNamespace(away=away, renderer=renderer, tokenizer=processor.tokenizer)


def test_the_cookbook_teaches_replies_and_goes_on_after_a_failure(tmp_path, real):
    evaluated = []

    def learn(folder):
        made = ExampleDataset(CaseBatches(cases(), 2, 0), TASK, training.to_datum(real.renderer), steps=5, seed=0)

        async def evaluate(sampler):
            evaluated.append(made.step)
            replies = await sampling.play(cases(), TASK, real.renderer, sampler, 2, **REPLY)
            return {"eval_replies": float(sum(map(len, replies)))}

        training.train("sft", made, MODEL, folder, **OPTIONS, evaluate=evaluate, eval_every=2)

    learn(tmp_path / "whole")
    whole, real.away.batches, real.away.begun = real.away.batches, [], []
    assert evaluated == [0, 2, 4] and len(real.away.rates) == 5 and real.away.rates == sorted(real.away.rates)[::-1]
    lines = training.history(tmp_path / "whole")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line for line in lines if "loss" not in line] == [{"step": n, "eval_replies": 10} for n in (0, 2, 4)]
    assert client.newest(tmp_path / "whole") == "tinker://run/sampler_weights/final"

    real.away.dies_at = 5
    with pytest.raises(ConnectionError):
        learn(tmp_path / "parts")
    learn(tmp_path / "parts")
    assert real.away.begun == [MODEL, "tinker://run/weights/000002 with optimizer"]
    again = training.history(tmp_path / "parts")
    assert [line["step"] for line in again if "loss" in line] == [1, 2, 3, 4, 5]
    assert repr(real.away.batches[-3:]) == repr(whole[-3:])
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and str(tmp_path).encode() in f.read_bytes()]


def flat(prompt) -> list:
    """The tokens of a prompt, and its pictures' bytes."""
    chunks = [getattr(chunk, "tokens", None) or [chunk.data] for chunk in prompt.chunks]
    return [token for chunk in chunks for token in chunk]


def test_only_the_reply_is_learnt_after_the_prompt_that_asks_for_it(real):
    task = TASK.with_options(environment="telescoping")
    messages: list = []
    made = ExampleDataset(CaseBatches(cases(), 5, 0), task, messages.append, steps=1, seed=0)
    made.get_batch(0)
    assert max(map(len, messages)) > 2  # some are later turns
    for one in messages:
        datum = training.to_datum(real.renderer)(one)
        weights = np.array(datum.loss_fn_inputs["weights"].data)
        targets = np.array(datum.loss_fn_inputs["target_tokens"].data)
        prompt = real.renderer.build_generation_prompt(one[:-1])
        learnt = real.tokenizer.decode(targets[weights > 0], skip_special_tokens=True)
        assert learnt.strip() == one[-1]["content"][0]["text"] and weights.sum() == pytest.approx(1)
        shown = [flat(one) for one in (datum.model_input, prompt)]
        assert shown[0][: len(shown[1])] == shown[1]
        assert real.renderer.get_stop_sequences()[0] in targets[weights > 0]


def test_the_cookbook_reinforces_from_a_checkpoint_and_goes_on_after_a_failure(tmp_path, real):
    real.away.saved["tinker://sft/weights/final"] = 0
    evaluated = []

    def learn():
        made = groups(tmp_path, real.renderer, TASK.with_options(environment="telescoping"))

        async def evaluate(sampler):
            evaluated.append(made.step)
            return {"eval_reward": 0.5}

        training.train(
            "grpo",
            made,
            MODEL,
            tmp_path / "tinker",
            **OPTIONS,
            **REPLY,
            evaluate=evaluate,
            eval_every=2,
            start_from="tinker://sft/weights/final",
        )

    real.away.dies_at = 4
    with pytest.raises(ConnectionError):
        learn()
    learn()
    assert real.away.begun == ["tinker://sft/weights/final", "tinker://run/weights/000002 with optimizer"]
    assert evaluated == [0, 2, 2, 4]
    lines = training.history(tmp_path / "tinker")
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_reward" in line] == [0, 2, 4]
    assert all({"learning_rate", "km", "parsed"} <= set(line) for line in lines if "reward" in line)
    frame = rollouts.read(tmp_path / "rollouts")
    assert frame.groupby("step").size().tolist() == [6] * 4
    for step, line in enumerate([line for line in lines if "reward" in line]):
        assert line["reward"] == pytest.approx(frame[frame["step"] == step]["reward"].mean())
    assert {loss for loss, _ in real.away.batches} == {"importance_sampling"}
    assert list(map(len, (REPLIES, VIEWS))) == [5, 2] and client.newest(tmp_path / "tinker", "state_path")
