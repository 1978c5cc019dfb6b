"""A run whose model is at Tinker: training, evaluation and guesses, with a fake client and a fake cookbook."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("torch")

import toy
from tinker_helper import Canned, Plain

from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import fold_files
from kitlib.models.vlm import analysis, loading
from kitlib.models.vlm import config as vlm_config
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.conversation import rollouts
from kitlib.models.vlm.tinker import client as remote

CONFIG = vlm_config.Config(
    model=f"tinker:{remote.QWEN}",
    method="grpo",
    steps=2,
    batch=8,
    device_batch=8,
    group=4,
    samples=2,
    eval_places=3,
    max_side=28,
    tau_last_km=2000.0,
)
GUESSED = [f"Region: {name}\nLatitude: {lat}\nLongitude: {lon}"
           for name, lat, lon in (("Iowa", -20.0, -60.0), ("Utah", 30.0, 60.0), ("nowhere", 95.0, 0.0))]  # fmt: skip


@pytest.fixture
def tinker(monkeypatch):
    """Tinker's service and the cookbook's loop as far as the kit calls them; the loop plays, and notes a checkpoint."""
    monkeypatch.setenv(remote.KEY, "tml-never-to-be-seen")
    clients: list[dict[str, str]] = []

    def client(**which):
        clients.append(which)
        return Canned(GUESSED)

    async def loop(config):
        made, _ = await config.dataset_builder()
        for step in range(len(made)):
            for group in made.get_batch(step):
                await remote.rollout(group, Canned(GUESSED), max_tokens=config.max_tokens)
        Path(config.log_path).mkdir(parents=True)
        (Path(config.log_path) / "checkpoints.jsonl").write_text(f'{{"sampler_path": "tinker://run/{next(numbers)}"}}')

    def last(folder, key):
        return SimpleNamespace(**json.loads((Path(folder) / "checkpoints.jsonl").read_text()))

    numbers = count()
    fake = ModuleType("tinker")
    fake.SamplingParams = SimpleNamespace
    fake.ServiceClient = lambda: SimpleNamespace(create_sampling_client=client)
    modules = {"tinker": fake, "chz": SimpleNamespace(chz=lambda made: made)}
    modules["tinker_cookbook.rl.train"] = SimpleNamespace(Config=SimpleNamespace, main=loop)
    modules["tinker_cookbook.rl.types"] = SimpleNamespace(RLDatasetBuilder=object)
    modules["tinker_cookbook.checkpoint_utils"] = SimpleNamespace(get_last_checkpoint=last)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(remote, "renderer", lambda model: Plain())
    return clients


@pytest.fixture
def data(home, tmp_path):
    return readers.read(toy.draw(tmp_path / "toy", n_train=20, n_test=3))


def test_a_run_learns_there_and_guesses_here(tinker, data):
    async def cell():  # a notebook's cells run in a loop of their own
        return vlm.train(CONFIG, data, "away")

    run = asyncio.run(cell())
    assert run.finished and len(run.guesses("oof")) == 4 and len(run.guesses("test")) == 3
    assert fold_files.history(run)["step"].tolist() == [0, 2]
    assert analysis.evaluations(run).index.tolist() == [(0, 0), (0, 2)]
    frame = rollouts.read(run.dir / "rollouts")
    assert frame.groupby(["phase", "step"]).size().to_dict() == {
        ("eval", 0): 6, ("eval", 2): 6, ("train", 0): 8, ("train", 1): 8}  # fmt: skip
    assert tinker[0] == {"base_model": remote.QWEN} and tinker[-1] == {"model_path": "tinker://run/0"}
    assert run.metrics["states_by"]["0"]["chosen"] == "samples"
    again = vlm.predict("away", data)
    assert sorted(again.sample_id) == sorted(run.guesses("test").sample_id)
    assert not [f for f in run.dir.rglob("*") if f.is_file() and b"never-to-be-seen" in f.read_bytes()]


def test_without_a_key_no_run_begins(tinker, data, monkeypatch):
    monkeypatch.delenv(remote.KEY)
    with pytest.raises(KitError, match=r"^TINKER_API_KEY is not set"):
        vlm.train(CONFIG, data, "away")
    with pytest.raises(KitError, match="there is no run 'away'"):
        vlm.runs.open_run("away")


@pytest.mark.parametrize(
    "wrong", [{"method": "sft"}, {"start_from": "sft"}, {"kl": 0.1}, {"vllm": True}, {"lora_rank": 0}]
)
def test_what_is_not_done_there_is_refused(wrong):
    with pytest.raises(KitError, match=r"expected .* with tinker:Qwen/.*; got"):
        dataclasses.replace(CONFIG, **wrong)


def test_its_weights_are_not_here(tinker, data, tmp_path):
    vlm.train(CONFIG, data, "away")
    with pytest.raises(KitError, match="are at Tinker"):
        vlm.merge("away", tmp_path / "merged")
    with pytest.raises(KitError, match="are at Tinker"):
        loading.load(CONFIG.model, "auto")
