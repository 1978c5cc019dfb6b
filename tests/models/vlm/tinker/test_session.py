"""A run whose model is at Tinker: training, evaluation and guesses, with the tests' service and short loops.

test_training.py runs the cookbook's own loops where they are installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("torch")

import toy
from tinker_helper import MODEL, SECRET, Away, Canned, Plain
from tracking_helper import forget_settings, metrics, records

from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import fold_files
from kitlib.models.vlm import analysis, loading
from kitlib.models.vlm import config as vlm_config
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.tinker import client, sampling

CONFIG = vlm_config.Config(
    model=f"tinker:{MODEL}",
    method="grpo",
    steps=2,
    batch=8,
    device_batch=8,
    group=4,
    samples=2,
    eval_steps=1,
    eval_places=3,
    max_side=28,
    tau_last_km=2000.0,
)
GUESSED = [f"Region: {name}\nLatitude: {lat}\nLongitude: {lon}"
           for name, lat, lon in (("Iowa", -20.0, -60.0), ("Utah", 30.0, 60.0), ("nowhere", 95.0, 0.0))]  # fmt: skip


class Loop:
    """A loop of the cookbook that plays and evaluates, and notes metrics and a checkpoint at the end."""

    Config = SimpleNamespace

    def __init__(self, name: str) -> None:
        self.name, self.configs, self.dies_at = name, [], None

    async def main(self, config) -> None:
        folder = Path(config.log_path)
        folder.mkdir(parents=True, exist_ok=True)
        self.configs.append(config)
        sft = self.name == "supervised"
        made, _ = config.dataset_builder() if sft else await config.dataset_builder()
        for step in range(len(made)):
            line = {"step": step, "train_mean_nll" if sft else "env/all/reward/total": 0.5}
            if sft:
                assert len(made.get_batch(step)) == CONFIG.batch
            if step % config.eval_every == 0:
                line |= await config.evaluator_builders[0]()(Canned(GUESSED))
            for group in [] if sft else made.get_batch(step):
                await sampling.rollout(group, Canned(GUESSED), max_tokens=config.max_tokens)
            if step == self.dies_at:
                raise ConnectionError
            with (folder / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps(line) + "\n")
        paths = {f"{kind}_path": f"tinker://{self.name}/{kind}/final" for kind in ("state", "sampler")}
        (folder / "checkpoints.jsonl").write_text(json.dumps(paths))


@pytest.fixture
def loops(monkeypatch):
    """The service and short loops, by their names."""

    def last(folder, key):
        file = Path(folder) / "checkpoints.jsonl"
        return SimpleNamespace(batch=2, get=json.loads(file.read_text()).get) if file.is_file() else None

    away = Away(sampler=lambda: Canned(GUESSED)).install(monkeypatch)
    made = {name: Loop(name) for name in ("supervised", "rl")}
    modules: dict = {f"{name}.train": loop for name, loop in made.items()}
    modules["supervised.data"] = SimpleNamespace(conversation_to_datum=lambda messages, *given: messages)
    modules["renderers"] = SimpleNamespace(TrainOnWhat=SimpleNamespace(LAST_ASSISTANT_MESSAGE="last"))
    modules["eval.evaluators"] = SimpleNamespace(SamplingClientEvaluator=object)
    modules["checkpoint_utils"] = SimpleNamespace(get_last_checkpoint=last)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"tinker_cookbook.{name}", module)
    monkeypatch.setattr(client, "renderer", lambda model, thinking=False: Plain())
    return SimpleNamespace(away=away, **made)


@pytest.fixture
def data(home, tmp_path):
    return readers.read(toy.draw(tmp_path / "toy", n_train=20, n_test=3))


def test_a_run_learns_there_and_guesses_here(loops, data):
    loops.rl.dies_at = 0
    with pytest.raises(ConnectionError):
        vlm.train(CONFIG, data, "away")
    loops.rl.dies_at = None

    async def cell():  # a notebook's cells run in a loop of their own
        return vlm.train(CONFIG, data, "away")

    run = asyncio.run(cell())
    assert run.finished and len(run.guesses("oof")) == 4 and len(run.guesses("test")) == 3
    history = fold_files.history(run)
    assert history["step"].tolist() == [0, 1, 1, 2, 2] and history["reward"].dropna().tolist() == [0.5, 0.5]
    assert analysis.evaluations(run).index.tolist() == [(0, 0), (0, 1), (0, 2)]
    frame = rollouts.read(run.dir / "rollouts")
    assert frame.groupby(["phase", "step"]).size().to_dict() == {
        ("eval", 0): 6, ("eval", 1): 6, ("eval", 2): 6, ("train", 0): 8, ("train", 1): 8}  # fmt: skip
    assert set(loops.away.asked) == {"tinker://rl/sampler/final"}
    assert run.metrics["states_by"]["0"]["chosen"] == "samples"
    again = vlm.predict("away", data)
    assert sorted(again.sample_id) == sorted(run.guesses("test").sample_id)
    assert not [f for f in run.dir.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]


def test_grpo_starts_from_a_run_that_was_taught_there(loops, data):
    taught = vlm.train(dataclasses.replace(CONFIG, method="sft"), data, "taught")
    history = fold_files.history(taught)
    assert history["loss"].dropna().tolist() == [0.5, 0.5] and analysis.evaluations(taught).index[-1] == (0, 2)
    vlm.train(dataclasses.replace(CONFIG, start_from="taught"), data, "rewarded")
    [sft], [grpo] = loops.supervised.configs, loops.rl.configs
    assert (sft.load_checkpoint_path, grpo.load_checkpoint_path) == (None, "tinker://supervised/state/final")
    assert (sft.learning_rate, grpo.learning_rate) == (1e-4, 1e-5) and sft.lr_schedule == "cosine"
    with pytest.raises(KitError, match=r"^lora_rank: expected 16 as in 'taught'; got 4"):
        vlm.train(dataclasses.replace(CONFIG, start_from="taught", lora_rank=4), data, "other")


def test_a_training_there_is_tracked_once_a_step_over_all_sessions(loops, data, monkeypatch):
    forget_settings(monkeypatch)
    monkeypatch.setenv("KITLIB_TRACKER", "wandb")
    loops.rl.dies_at = 1
    with pytest.raises(ConnectionError):
        vlm.train(CONFIG, data, "away")
    loops.rl.dies_at = None
    run = vlm.train(CONFIG, data, "away")
    sessions = [metrics(one) for one in records(run.dir)]
    expected = {"reward": [[1], [2]], "eval_reward": [[0, 1], [0, 1, 2]], "rollouts": [[0, 1], [0, 1, 2]]}
    for name, steps in expected.items():
        assert [[line["trainer/global_step"] for line in one if name in line] for one in sessions] == steps, name


def test_grpo_starts_from_an_address(loops, data):
    address = "tinker://elsewhere/weights/final"
    with pytest.raises(KitError, match=f"^Tinker: no checkpoint {address}"):
        vlm.train(dataclasses.replace(CONFIG, start_from=address), data, "away")
    loops.away.saved[address] = 7
    run = vlm.train(dataclasses.replace(CONFIG, start_from=address), data, "away")
    assert loops.rl.configs[0].load_checkpoint_path == address == run.settings["start_from"]
    with pytest.raises(KitError, match="run away"):
        vlm.train(dataclasses.replace(CONFIG, start_from=""), data, "away")


def test_a_stream_is_learnt_from_there(loops, data, tmp_path):
    rows = [{"file_name": f"{i}.jpg", "latitude": 40.0 + i, "longitude": -83.0, "region": "Ohio"} for i in range(3)]
    (tmp_path / "stream").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "stream" / "metadata.csv", index=False)
    for i in range(3):
        Image.new("RGB", (40, 30), (40 * i, 80, 90)).save(tmp_path / "stream" / f"{i}.jpg")
    config = dataclasses.replace(CONFIG, stream=str(tmp_path / "stream"))
    assert vlm.train(dataclasses.replace(config, method="sft"), data, "taught").finished
    run = vlm.train(config, data, "rewarded")
    frame = rollouts.read(run.dir / "rollouts").query("phase == 'train'")
    assert {tuple(truth) for truth in frame["truth"]} <= {(40.0 + i, -83.0) for i in range(3)} and len(frame) == 16


def test_without_a_key_or_with_another_model_no_run_begins(loops, data, monkeypatch):
    with pytest.raises(KitError, match=rf"trains, {MODEL}, .*; got 'Lab/Sees-9'"):
        vlm.train(dataclasses.replace(CONFIG, model="tinker:Lab/Sees-9"), data, "away")
    monkeypatch.delenv(client.KEY)
    with pytest.raises(KitError, match=r"^TINKER_API_KEY is not set"):
        vlm.train(CONFIG, data, "away")
    with pytest.raises(KitError, match="there is no run 'away'"):
        vlm.runs.open_run("away")


@pytest.mark.parametrize(
    "wrong", [{"lora_attention_only": True}, {"weight_decay": 0.1}, {"kl": 0.1}, {"vllm": True}, {"lora_rank": 0}]
)
def test_what_is_not_done_there_is_refused(wrong):
    with pytest.raises(KitError, match=r"expected .* with tinker:Lab/.*; got"):
        dataclasses.replace(CONFIG, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"start_from": "tinker://run"}, {"start_from": "tinker://run/sampler_weights/1"},
              {"model": "tiny", "start_from": "tinker://run/weights/1"}])  # fmt: skip
def test_an_address_is_of_weights_to_go_on_with_there(wrong):
    with pytest.raises(KitError, match=r"^start_from: expected (tinker://RUN/weights/NAME|a run with tiny); got"):
        dataclasses.replace(CONFIG, **wrong)


def test_its_weights_are_not_here(loops, data, tmp_path):
    vlm.train(CONFIG, data, "away")
    with pytest.raises(KitError, match="are at Tinker"):
        vlm.merge("away", tmp_path / "merged")
    with pytest.raises(KitError, match="are at Tinker"):
        loading.load(CONFIG.model, "auto")
