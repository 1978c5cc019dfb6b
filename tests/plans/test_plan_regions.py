"""The plan `regions` on photographs of six cities: a region table in, an error within each region out."""

from __future__ import annotations

import pytest

from kitlib.core.errors import KitError
from kitlib.evaluation import runs
from kitlib.pipeline import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_published_pipeline_runs_on_a_real_region_table(home, real_us):
    weights = real_us.parents[2] / "weights/mobilenetv2_100_tf2_ptq_in1k"
    settings = {"DATA": real_us.parents[1] / "regions", "ENCODER": f"timm:mobilenetv2_100?pad_type=same@{weights}"}
    settings |= {"IMAGE_SIZE": 96, "EPOCHS": 1, "T_0": 1, "ONLY_REGIONS": "nairobi", "RATE": 1e-4}
    with pytest.raises(KitError, match="regions-regional is not finished"):
        runner.run_plan("regions", {name: str(value) for name, value in settings.items()})
    folder = runs.open_run("regions-regional").checkpoints / "fold_0"
    assert (folder / "region_nairobi/finished.ckpt").is_file() and (folder / "scaler_region_lima.joblib").is_file()
    heads = settings | {"FINETUNE": False, "ONLY_REGIONS": "", "RUN": "heads", "EPOCHS": 5}
    runner.run_plan("regions", {name: str(value) for name, value in heads.items()})
    within = runs.open_run("heads-regional").metrics["within_regions"]
    assert within["n"] == 100 and within["mean_km"] < 3.6  # the median points alone: 3.37
