"""A pulled run answers with nothing else: without the training data, and without the run that was pushed."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from kitlib import __main__ as cli
from kitlib.core import paths
from kitlib.data import readers
from kitlib.evaluation import runs
from kitlib.models import multiview
from kitlib.platforms import hub
from kitlib.training import checkpoints


def test_a_run_from_the_hub_answers_for_photographs_and_for_a_data_set(server, small_sample, tmp_path, monkeypatch):
    data = paths.raw_dir() / "us"
    shutil.copytree(small_sample, data)
    config = multiview.Config(encoder="tiny", heads_epochs=2, finetune_epochs=1, finetune_blocks=1, places_per_cell=8)
    run = multiview.train(config, readers.read(data), "first", n_folds=2, only_folds=[0])
    own = run.guesses("test")
    hub.push(["first"], "u/m")
    shutil.rmtree(paths.home() / "data")
    asked = tmp_path / "asked"
    shutil.copytree(small_sample / "kaggle_dataset", asked)
    for word in ("locate", "predict"):
        out = tmp_path / word
        monkeypatch.setattr(sys, "argv", ["kitlib", word, "hf:u/m", str(asked), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        table = pd.read_csv(out / "submission.csv").set_index("sample_id").loc[own.sample_id]
        top = own.state_idx[own.state_probs.argmax(axis=1)]
        assert np.mean(table["predicted_state_idx_1"].to_numpy() == top) > 0.9
        np.testing.assert_allclose(table[["predicted_latitude", "predicted_longitude"]], own.point(), atol=0.2)
    assert runs.list_runs() == ["u--m--first"]


def test_a_region_s_training_state_goes_up_as_plain_tensors_and_is_read_from_there(server):
    run = runs.start("regions", {"family": "regional"}, data={"places": "abc"})
    folder = run.checkpoints / "fold_0/region_a"
    weights = {"encoder.w": torch.arange(6.0).reshape(2, 3), "encoder.h": torch.ones(2, dtype=torch.bfloat16)}
    checkpoints.finish(folder, {"settings": {}}, weights)
    run.finish({})
    hub.push(["regions"], "u/m")
    assert not [name for name in server.files if name.endswith(".ckpt")]

    [name] = hub.pull("u/m")
    found = checkpoints.final_weights(paths.run_dir(name) / "checkpoints/fold_0/region_a")
    torch.testing.assert_close(found, weights)
