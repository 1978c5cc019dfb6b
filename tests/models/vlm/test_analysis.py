"""conversed: what is taught can be read before training; looks and replies are those on disk."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from kitlib.models.vlm import analysis
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.conversation import rollouts

CONFIG = Config(model="tiny", lora_rank=0, digits=1, max_side=28, steps=1, batch=4, device_batch=4)


class FakeRun:
    """A run as far as files go."""

    def __init__(self, folder):
        self.dir, self.checkpoints = folder, folder / "checkpoints"


def test_lessons_are_the_question_and_the_right_reply(world):
    taught = analysis.lessons(CONFIG, world, 2)
    first = world.rows("train").iloc[0]
    assert (
        taught["reply"][0]
        == f"State: {first['state']}\nLatitude: {first['latitude']:.1f}\nLongitude: {first['longitude']:.1f}"
    )
    assert taught["question"][0].startswith("Facing north:") and "Latitude: <degrees" in taught["question"][0]


def test_looks_are_the_lines_of_the_history_with_evaluations(tmp_path):
    folder = tmp_path / "checkpoints/fold_1/sft"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("step,loss,eval_reward,eval_parsed\n0,,0.0,0.5\n1,3.0,,\n2,2.0,0.2,1.0\n")
    table = analysis.looks(FakeRun(tmp_path))
    assert table[["fold", "step", "reward", "parsed"]].to_numpy().tolist() == [[1, 0, 0.0, 0.5], [1, 2, 0.2, 1.0]]


def test_said_is_the_first_reply_at_the_first_and_the_last_look(tmp_path):
    writer = rollouts.Writer(tmp_path / "rollouts")
    for step in (0, 5, 10):
        rows = [
            {"step": step, "phase": "eval", "sample_id": name, "rollout": k, "environment": "single", "prompt": "",
             "pictures": [], "replies": [f"State: Ohio\n{step}{name}{k}"], "points": [[1.0, 2.0]], "point": [1.0, 2.0],
             "truth": [1.0, 2.0], "rewards": [0.5], "reward": 0.5, "advantage": None, "km": 0.0, "tau_km": 25.0}
            for name in "ab" for k in range(2)
        ]  # fmt: skip
        writer.write(step, rows)
    table = analysis.said(FakeRun(tmp_path), 1)
    assert table.index.tolist() == [("a", 0), ("a", 10)]
    assert table["reply"].tolist() == ["State: Ohio · 0a0", "State: Ohio · 10a0"]
