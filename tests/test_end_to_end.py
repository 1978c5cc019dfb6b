"""The kit's own notebooks, run by its own plans: a competition folder in, a submission out."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kitlib import competition, pipeline, runs
from kitlib.paths import KitError

pytestmark = [pytest.mark.slow, pytest.mark.independent, pytest.mark.timeout(900)]


def test_the_sample_plan_ends_with_a_scored_submission(home, small_sample):
    truth = small_sample / "test_truth.csv"
    settings = {"DATA": small_sample, "TRUTH": truth, "FOLDS": 2, "HEADS_EPOCHS": 3, "FINETUNE_EPOCHS": 1}
    settings |= {"EPOCHS": 3, "MIN_PLACES": 4, "SIZES": "10,20"}
    report = pipeline.run_plan("sample", {name: str(value) for name, value in settings.items()})
    submission, folder = home / "submissions/sample.csv", small_sample / "kaggle_dataset"
    competition.validate(submission, folder / "sample_submission.csv", folder / "state_mapping.csv")
    steps = json.loads((report.parent / "plan.json").read_text())["steps"]
    assert [step["status"] for step in steps] == ["done"] * 8
    assert float(steps[-1]["headline"]["value"]) == pytest.approx(
        competition.score_files(truth, submission).final, abs=1e-4
    )
    written = report.read_text() + (home / "submissions/sample.json").read_text()
    assert str(home) not in written


def test_real_photographs_end_with_a_valid_submission_that_beats_the_commonest_states(home, real_us):
    weights = real_us.parents[2] / "weights/mobilenetv2_100_tf2_ptq_in1k"
    # 128 px instead of 224 make the encoder three times faster; the score needs no more here
    settings = {"DATA": real_us, "ENCODER": f"timm:mobilenetv2_100?pad_type=same@{weights}", "IMAGE_SIZE": 128}
    settings |= {"EPOCHS": 10}
    pipeline.run_plan("real", {name: str(value) for name, value in settings.items()})
    template = pd.read_csv(real_us / "sample_submission.csv")
    competition.validate(home / "submissions/real.csv", template, real_us / "state_mapping.csv")
    assert len(pd.read_csv(home / "submissions/real.csv")) == len(template) == 135
    for name in ("real-multiview", "real-retrieval", "real-retrieval-gps", "real-regional"):
        scores = runs.open_run(name).metrics["oof"]
        assert scores["n"] == 395 and scores["final"] > 0.3428  # the commonest states with one constant point


def test_the_published_pipeline_runs_on_a_real_region_table(home, real_us):
    weights = real_us.parents[2] / "weights/mobilenetv2_100_tf2_ptq_in1k"
    settings = {"DATA": real_us.parents[1] / "regions", "ENCODER": f"timm:mobilenetv2_100?pad_type=same@{weights}"}
    settings |= {"IMAGE_SIZE": 96, "EPOCHS": 1, "T_0": 1, "ONLY_REGIONS": "nairobi", "RATE": 1e-4}
    with pytest.raises(KitError, match="regions or folds are still to train"):
        pipeline.run_plan("regions", {name: str(value) for name, value in settings.items()})
    folder = runs.open_run("regions-regional").checkpoints / "fold_0"
    assert (folder / "region_nairobi/finished.ckpt").is_file() and (folder / "scaler_region_lima.joblib").is_file()
    heads = settings | {"FINETUNE": False, "ONLY_REGIONS": "", "RUN": "heads", "EPOCHS": 5}
    pipeline.run_plan("regions", {name: str(value) for name, value in heads.items()})
    within = runs.open_run("heads").metrics["within_regions"]
    assert within["n"] == 100 and within["mean_km"] < 3.6  # the median points alone: 3.37
