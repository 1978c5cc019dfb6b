"""The plan `qwen` with a tiny model in the place of Qwen's: LoRA is taught, rewarded, guessed with, and mapped."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")

from kitlib.evaluation import fold_files, runs
from kitlib.models.vlm import loading, tiny_model
from kitlib.models.vlm.conversation import rollouts
from kitlib.pipeline import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_published_model_goes_through_the_plan(home, small_sample, tmp_path):
    model, processor = tiny_model.build()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "published")
    settings = {"DATA": small_sample, "MODEL": f"hf:{tmp_path / 'published'}", "MAX_SIDE": 56, "STEPS": 2, "BATCH": 8}
    settings |= {"REPLY_TOKENS": 32, "SAMPLES": 2, "EVAL_STEPS": 0, "EVAL_PLACES": 4, "FOLDS": 2}
    runner.run_plan("qwen", {name: str(value) for name, value in settings.items()})
    sft, grpo = (runs.open_run(f"qwen-{method}") for method in ("sft", "grpo"))
    assert {sft.settings["rate"], grpo.settings["rate"]} == {1e-4, 1e-5}
    assert all(loading.saved(fold_files.folder(run, 0)).name == "adapter" for run in (sft, grpo))
    table = rollouts.read(grpo.dir / "rollouts")
    assert table.loc[table["phase"] == "train", "tau_km"].unique().tolist() == [2000.0, 25.0]
    assert len(grpo.guesses("test")) and grpo.metrics["oof"]["final"] > 0
