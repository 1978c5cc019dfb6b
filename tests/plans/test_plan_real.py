"""The plan `real` on photographs: a competition folder in, a submission out."""

from __future__ import annotations

import pandas as pd
import pytest

from kitlib.evaluation import runs, submission
from kitlib.pipeline import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_real_photographs_end_with_a_valid_submission_that_beats_the_commonest_states(home, real_us):
    weights = real_us.parents[2] / "weights/mobilenetv2_100_tf2_ptq_in1k"
    # 128 px instead of 224 make the encoder three times faster; the score needs no more here
    settings = {"DATA": real_us, "ENCODER": f"timm:mobilenetv2_100?pad_type=same@{weights}", "IMAGE_SIZE": 128}
    settings |= {"EPOCHS": 10, "HEADS_EPOCHS": 20, "SEEDS": 0, "FOLDS": 2, "SIZES": 100}
    runner.run_plan("real", {name: str(value) for name, value in settings.items()})
    template = pd.read_csv(real_us / "sample_submission.csv")
    submission.validate(home / "submissions/real.csv", template, real_us / "state_mapping.csv")
    assert len(pd.read_csv(home / "submissions/real.csv")) == len(template) == 135
    for name in ("real-ridge", "real-multiview", "real-retrieval", "real-retrieval-gps", "real-regional"):
        scores = runs.open_run(name).metrics["oof"]
        assert scores["n"] == 395 and scores["final"] > 0.3428  # the commonest states with one constant point
