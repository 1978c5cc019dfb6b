"""Modal: its definitions, the plain functions under them with a folder as the volume, and the end without a token."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.data import readers
from kitlib.evaluation import fold_files, runs

modal = pytest.importorskip("modal")

from kitlib.platforms import modal as cloud

WORDS = ["train", "run", "--data", "little", "--folds", "0", "-p", "finetune_epochs=8", "-p", "heads_epochs=1"]
WORDS += ["-p", "finetune_batch=8", "-p", "mirror=false", "-p", "encoder=tiny"]


def test_definitions():
    assert isinstance(cloud.command, modal.Function) and isinstance(cloud.fetch, modal.Function)
    assert type(cloud.main).__name__ == "LocalEntrypoint"
    for file in ("requirements.lock", "pyproject.toml", "notebooks/plans/kaggle.yaml"):
        assert (cloud.checkout / file).is_file()


@pytest.mark.slow
def test_modal_run_without_a_token_ends_in_one_sentence(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL")}
    environment |= {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "none.toml"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "modal", "run", "-m", "kitlib.platforms.modal", "--plan", "kaggle"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Token missing" in said and "Traceback" not in said


def test_an_estimate_grows_with_the_work_and_shrinks_with_the_gpu():
    texts = [cloud.estimate("kaggle", {}, gpu) for gpu in ("T4", "H100", "H100:4")]
    hours = [float(text.split()[1]) for text in texts]
    assert hours[0] > 4 * hours[1] > 4 * hours[2] > 0 and all("an estimate" in text for text in texts)
    more = cloud.estimate("kaggle", {"ONLY_FOLDS": "0,1,2,3,4"}, "H100")
    assert float(more.split()[1]) > 2 * hours[1]
    assert cloud.estimate("kaggle", {}, "RTX").startswith("no estimate: the table of prices has T4")
    assert "without sample-sft" in cloud.estimate("vlm", {}, "H100")
    with pytest.raises(KitError, match="no plan"):
        cloud.estimate("nothing", {}, "H100")


def test_the_folds_of_a_run_are_joined_when_all_are_there():
    words = ("--family", "multiview", "--folds")
    stage = [cloud.jobs.Job(f"a {k}", ("train", "a", *words, str(k), "--seeds", "0")) for k in range(3)]
    stage += [cloud.jobs.Job("b", ("train", "b", *words, "0")), cloud.jobs.Job("e", ("embed", "sample"))]
    assert [job.words for job in cloud.joining(stage)] == [("train", "a", *words, "0,1,2", "--seeds", "0")]


def test_what_the_volume_cannot_hold_is_refused(home):
    assert cloud.plan_words("kaggle", {"DEVICES": "2"}) == ["run", "kaggle", "-p", "DEVICES=2"]
    with pytest.raises(KitError, match="expected a plan of notebooks/plans"):
        cloud.plan_words("mine.yaml", {})
    with pytest.raises(KitError, match="DATA, on Modal a name under data/raw: expected"):
        cloud.bring("kaggle", {"DATA": "../photos"}, "")


def test_a_data_set_travels_as_one_file_and_reads_the_same(small_sample, home):
    file = cloud.packed(paths.find_data(small_sample), home)
    assert zipfile.ZipFile(file).infolist()[-1].compress_type == zipfile.ZIP_STORED
    assert readers.read(file).checksum == readers.read(small_sample).checksum
    assert cloud.packed(file, home) == file


def test_data_from_kaggle_by_its_client(tmp_path, monkeypatch):
    client = tmp_path / "bin" / "kaggle"
    client.parent.mkdir()
    client.write_text('#!/bin/sh\n[ "$KAGGLE_API_TOKEN" ] || { echo "401 - no token" >&2; exit 1; }\ncp "$ZIP" "$6"\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    zipped = tmp_path / f"{paths.COMPETITION}.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("train.csv", "")
    monkeypatch.setenv("ZIP", str(zipped))
    with pytest.raises(KitError, match=r"gave no data of geo-guessr.*: 401 - no token"):
        cloud.from_kaggle(paths.COMPETITION, tmp_path / "home", "kaggle_dataset")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x")
    file = cloud.from_kaggle(paths.COMPETITION, tmp_path / "home", "kaggle_dataset")
    assert file == tmp_path / "home/data/raw/kaggle_dataset.zip" and zipfile.is_zipfile(file)


def test_a_command_that_fails_is_named_by_its_last_line(home):
    with pytest.raises(KitError, match="there is no plan 'nothing'"):
        cloud.work(["run", "nothing"], home, lambda: None)


def place_data(home: Path, data: Path) -> Path:
    (home / "data/raw").mkdir(parents=True)
    cloud.packed(paths.find_data(data), home / "data/raw").rename(home / "data/raw/little.zip")
    return home


@pytest.mark.slow
def test_a_container_that_is_killed_costs_the_time_since_its_last_commit(small_sample, tmp_path, monkeypatch):
    """The second container finds what the first one committed, not what it had on its disk."""
    first, volume = place_data(tmp_path / "first", small_sample), tmp_path / "volume"
    code = f"""
import shutil, sys
from pathlib import Path
from kitlib.platforms import modal as cloud
cloud.LOOK_SECONDS = 0.2
def commit():
    shutil.copytree({str(first)!r}, {str(volume)!r} + "~", ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree({str(volume)!r}, ignore_errors=True)
    Path({str(volume)!r} + "~").rename({str(volume)!r})
cloud.work({WORDS!r}, Path({str(first)!r}), commit)
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True) as container:
        deadline = time.monotonic() + 200
        while not list(volume.glob("data/runs/run/checkpoints/fold_0/finetune/step-*.ckpt")):
            assert container.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(container.pid, signal.SIGKILL)
    assert not (volume / "data/runs/run/metrics.json").exists()
    cloud.work(WORDS, volume, lambda: None)
    whole = place_data(tmp_path / "whole", small_sample)
    cloud.work(WORDS, whole, lambda: None)
    made = []
    for home in (volume, whole):
        monkeypatch.setenv("KITLIB_HOME", str(home))
        run = runs.open_run("run")
        assert run.finished and fold_files.done_folds(run) == [0]
        made.append(run.guesses("oof"))
    assert np.array_equal(made[0].state_probs, made[1].state_probs)
    assert np.array_equal(made[0].points, made[1].points)
    shutil.rmtree(tmp_path, ignore_errors=True)
