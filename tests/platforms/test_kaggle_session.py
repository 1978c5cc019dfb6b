"""In a session on Kaggle: what inputs hold is found and taken over, and time that is up stops training."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.platforms.kaggle import session


@pytest.fixture
def inputs(home, monkeypatch) -> Path:
    monkeypatch.setattr(paths, "KAGGLE_INPUT", home / "input")
    return home / "input"


def run(folder: Path, finished: bool) -> Path:
    storage.write_json(folder / "params.json", {})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").write_bytes(bytes(session.LINKED + 1))
    if finished:
        storage.write_json(folder / "metrics.json", {})
    return folder


@pytest.mark.parametrize(
    "mount",
    ["streetclip", "datasets/me/streetclip", "models/me/streetclip/transformers/default/2", "streetclip/pytorch/b/1"],
)
def test_weights_are_found_under_each_mount(inputs, mount):
    assert paths.attached_weights("geolocal/StreetCLIP") is None
    (inputs / mount).mkdir(parents=True)
    assert paths.attached_weights("geolocal/StreetCLIP") is None  # an empty folder is no weights
    (inputs / mount / "model.safetensors").touch()
    assert paths.attached_weights("geolocal/StreetCLIP") == inputs / mount
    assert paths.attached_weights("x/default") is None and paths.attached_weights("1") is None


@pytest.mark.parametrize("mount", ["earlier", "notebooks/me/earlier", "datasets/me/earlier"])
def test_runs_of_earlier_notebooks_are_taken_over(inputs, mount):
    source = inputs / mount
    run(source / "data/runs/done", finished=True)
    run(source / "data/runs/half", finished=False)
    storage.write_json(source / "submissions/a.json", {})
    (source / "data/derived/x/e.partial").mkdir(parents=True)
    (source / "data/derived/x/e.partial/features.npy").write_bytes(bytes(session.LINKED + 1))
    storage.write_json(paths.run_dir("done") / "params.json", {"mine": 1})
    assert source in paths.mounts()
    links = session.adopt(source)
    assert [link.relative_to(paths.home()).as_posix() for link in links] == ["data/runs/done/checkpoints/last.ckpt"]
    assert storage.read_json(paths.run_dir("done") / "params.json") == {"mine": 1}  # what is here stays
    half = paths.run_dir("half") / "checkpoints/last.ckpt"
    assert half.is_file() and not half.is_symlink()  # it will be written to
    assert not (paths.derived_dir("x") / "e.partial/features.npy").is_symlink()
    assert (paths.submissions_dir() / "a.json").is_file()
    session._unlink(links)
    assert not (paths.run_dir("done") / "checkpoints/last.ckpt").exists()


def test_hours_until_the_end(monkeypatch):
    assert paths.hours_left() == float("inf")
    monkeypatch.setenv("KITLIB_UNTIL", f"{time.time() + 7200:.0f}")
    assert paths.hours_left() == pytest.approx(2, abs=0.01)
    monkeypatch.setenv("KITLIB_UNTIL", "tomorrow")
    with pytest.raises(KitError, match="KITLIB_UNTIL: expected seconds since 1970; got 'tomorrow'"):
        paths.check_environment()


def test_training_stops_when_the_session_ends_and_goes_on_in_the_next(world, monkeypatch):
    from kitlib.models import multiview

    config = multiview.Config.from_dict({"encoder": "tiny", "heads_epochs": 1, "finetune_epochs": 0}, world.preset)
    monkeypatch.setenv("KITLIB_UNTIL", f"{time.time() - 1:.0f}")
    stopped = multiview.train(config, world, "short", only_folds="0")
    assert not stopped.finished
    monkeypatch.setenv("KITLIB_UNTIL", f"{time.time() + 3600:.0f}")
    assert multiview.train(config, world, "short", only_folds="0").finished


def test_cells_after_the_end_are_left_out(home, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    session._watch_cells()
    shell.run_cell("a = 1")
    monkeypatch.setenv("KITLIB_UNTIL", "1")
    shell.run_cell("b = 2")  # the cell in which time runs out ends as usual
    assert shell.run_cell("raise RuntimeError").success
    assert shell.user_ns["b"] == 2


def test_the_newest_submission_is_offered(home):
    for number, text in enumerate(("old", "new")):
        file = home / "submissions" / f"{text}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        os.utime(file, (number + 1, number + 1))
    session._offer_submission()
    assert (home / "submission.csv").read_text() == "new"
