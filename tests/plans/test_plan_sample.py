"""The plan `sample`: a drawn competition in, a submission with its true score out."""

from __future__ import annotations

import json

import pytest

from kitlib.evaluation import submission as competition
from kitlib.pipeline import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_sample_plan_ends_with_a_scored_submission(home, small_sample):
    truth = small_sample / "test_truth.csv"
    settings = {"DATA": small_sample, "TRUTH": truth, "FOLDS": 2, "HEADS_EPOCHS": 3, "FINETUNE_EPOCHS": 1}
    settings |= {"EPOCHS": 3, "MIN_PLACES": 4, "SIZES": "10,20"}
    report = runner.run_plan("sample", {name: str(value) for name, value in settings.items()})
    submission, folder = home / "submissions/sample.csv", small_sample / "kaggle_dataset"
    competition.validate(submission, folder / "sample_submission.csv", folder / "state_mapping.csv")
    steps = json.loads((report.parent / "plan.json").read_text())["steps"]
    assert [step["status"] for step in steps] == ["done"] * 9
    assert float(steps[-1]["headline"]["value"]) == pytest.approx(
        competition.score_files(truth, submission).final, abs=1e-4
    )
    written = report.read_text() + (home / "submissions/sample.json").read_text()
    assert str(home) not in written
