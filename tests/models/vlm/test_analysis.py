"""Tables for the notebooks: examples before training; evaluations and replies from disk."""

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


def test_examples_are_the_question_and_the_target_reply(world):
    examples = analysis.examples(CONFIG, world, 2)
    first = world.rows("train").iloc[0]
    assert (
        examples["reply"][0]
        == f"State: {first['state']}\nLatitude: {first['latitude']:.1f}\nLongitude: {first['longitude']:.1f}"
    )
    assert examples["question"][0].startswith("Facing north:") and "Latitude: <degrees" in examples["question"][0]


def test_evaluations_are_the_lines_of_the_history_with_scores(tmp_path):
    folder = tmp_path / "checkpoints/fold_1/sft"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(
        "step,loss,eval_reward,eval_parsed,eval_answered,eval_final,eval_mean_km\n"
        "0,,0.0,0.5,0.5,0.1,900\n1,3.0,,,,,\n2,2.0,0.2,1.0,1.0,0.3,500\n"
    )
    table = analysis.evaluations(FakeRun(tmp_path))
    assert table.index.tolist() == [(1, 0), (1, 2)]
    assert table[["reward", "parsed", "mean_km"]].to_numpy().tolist() == [[0.0, 0.5, 900], [0.2, 1.0, 500]]


def test_replies_are_the_first_ones_at_the_first_and_the_last_evaluation(tmp_path):
    writer = rollouts.Writer(tmp_path / "rollouts")
    for step in (0, 5, 10):
        rows = [
            {"step": step, "phase": "eval", "sample_id": name, "rollout": k, "environment": "single", "prompt": "",
             "pictures": [], "replies": [f"State: Ohio\n{step}{name}{k}"], "points": [[1.0, 2.0]], "point": [1.0, 2.0],
             "truth": [1.0, 2.0], "rewards": [0.5], "reward": 0.5, "advantage": None, "km": 0.0, "tau_km": 25.0}
            for name in "ab" for k in range(2)
        ]  # fmt: skip
        writer.write(step, rows)
    table = analysis.replies(FakeRun(tmp_path), 1)
    assert table.index.tolist() == [("a", 0), ("a", 10)]
    assert table["reply"].tolist() == ["State: Ohio · 0a0", "State: Ohio · 10a0"]
