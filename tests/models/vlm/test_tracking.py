"""A vision-language training is tracked as the others are: TRL's logs, evaluations, rollouts and weights."""

from __future__ import annotations

import dataclasses
import sys

import pytest

pytest.importorskip("trl", reason="of the extra rl")

import toy
from tracking_helper import BOARD, artifacts, assert_nothing_personal, forget_settings, metrics, records

from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import fold_files, runs
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.config import Config

CONFIG = Config(
    model="tiny",
    method="grpo",
    steps=2,
    batch=8,
    device_batch=8,
    group=4,
    max_side=28,
    lora_rank=2,
    reply_tokens=28,
    samples=2,
    eval_places=2,
    gradient_checkpointing=False,
)


@pytest.fixture
def data(home, tmp_path, monkeypatch):
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return readers.read(toy.draw(tmp_path / "toy", n_train=12, n_test=2))


def test_a_grpo_run_is_tracked_and_says_nothing_personal(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KITLIB_TRACKER", f"wandb{',tensorboard' * BOARD}")
    run = vlm.train(CONFIG, data, "tracked")
    folder = fold_files.folder(run, 0) / "grpo"
    [logged] = records(folder)
    [begun] = [record.run for record in logged if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name, begun.host) == ("kitlib", "tracked-fold_0-grpo", "")
    history, lines = fold_files.history(run), metrics(logged)
    for name in ("loss", "reward", "tau_km", "eval_reward", "eval_final"):
        assert [line[name] for line in lines if name in line] == pytest.approx(history[name].dropna().tolist()), name
    tables = [line for line in lines if "rollouts" in str(line)]
    assert len(tables) == 2 and len(list((folder / "wandb").rglob("*.table.json"))) in (1, 2)
    kinds = {artifact.type: artifact for artifact in artifacts(logged)}
    paths = [entry.local_path for entry in kinds["model"].manifest.contents]
    assert "data/runs/tracked/checkpoints/fold_0/adapter/adapter_model.safetensors" in paths
    assert_nothing_personal(folder, str(tmp_path))
    assert bool(BOARD) == (folder / "tensorboard").is_dir()

    monkeypatch.delenv("KITLIB_TRACKER")
    plain = vlm.train(CONFIG, data, "plain")
    assert fold_files.history(plain)["reward"].equals(history["reward"])
    assert plain.guesses("oof").points.tobytes() == run.guesses("oof").points.tobytes()
    assert not (fold_files.folder(plain, 0) / "grpo" / "wandb").exists()


def test_a_tracker_that_is_not_there_is_told_before_a_run_begins(data, monkeypatch):
    monkeypatch.setenv("KITLIB_TRACKER", "wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(KitError, match=r"^KITLIB_TRACKER=wandb: wandb is not installed"):
        vlm.train(dataclasses.replace(CONFIG, steps=1), data, "tracked")
    assert runs.list_runs() == []
