"""tracking: metrics, tables and weights arrive in real files, which say nothing about the machine or its user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fitting_helper as helper
import matplotlib
import pytest
from tracking_helper import BOARD, artifacts, assert_nothing_personal, forget_settings, metrics, records

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.training import fit, tracking
from kitlib.training.tracking import Tracker

USER, HOST, SECRET = "jane.doe", "janes-laptop", "sesame-0123456789abcdef"
LEFT = ["finished.ckpt", "fit.json", "history.csv"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    forget_settings(monkeypatch)


@pytest.mark.slow
def test_a_run_has_all_and_nothing_personal(tmp_path):
    """In a process of its own, with a home, a user and a command line that would be found; of both trackers."""
    home = tmp_path / "home" / USER
    kit = home / "kit"
    folder = kit / "data" / "runs" / "mine" / "checkpoints" / "fold_0"
    folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", kit], check=True)
    subprocess.run(["git", "-C", kit, "remote", "add", "origin", f"https://{HOST}/{USER}.git"], check=True)
    subprocess.run(["git", "-C", kit, "config", "user.email", f"{USER}@{HOST}"], check=True)
    known = dict.fromkeys(["USER", "LOGNAME", "USERNAME"], USER) | {"HOME": str(home), "HOSTNAME": HOST}
    known |= {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": matplotlib.get_cachedir()}  # a new list of fonts takes 20 s
    known |= {"WANDB_HOST": HOST, "WANDB_USERNAME": USER, "WANDB_EMAIL": f"{USER}@{HOST}", "WANDB_PROJECT": "a project"}
    known |= {"KITLIB_TRACKER": f"wandb{', tensorboard' * BOARD}", "KITLIB_HOME": str(kit)}
    known |= {"PYTHONPATH": os.pathsep.join([str(paths.checkout()), str(Path(helper.__file__).parent)])}
    given = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    program = (
        "import sys, pathlib, fitting_helper\nfrom kitlib.training.tracking import Tracker\n"
        "folder = pathlib.Path(sys.argv[1])\nfitting_helper.fit(folder, checkpoint_steps=4)\n"
        "with Tracker(folder) as tracker:\n    tracker.table('rollouts', [{'km': 3.5, 'reply': 'Ohio'}] * 300, 7)\n"
    )
    command = [sys.executable, "-c", program, folder, f"--password={SECRET}"]
    done = subprocess.run(command, env=given | known, cwd=kit, capture_output=True, text=True, check=True)
    assert done.stdout == "" and "wandb" not in done.stderr

    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in written} == {"wandb", *LEFT, *["tensorboard"] * BOARD}
    elsewhere = [path for path in home.rglob("*wandb*") if not path.is_relative_to(folder / "wandb")]
    assert elsewhere == []
    assert_nothing_personal(folder, USER, HOST, SECRET, str(tmp_path))

    run, tables = records(folder)
    [begun] = [record.run for record in run if record.WhichOneof("record_type") == "run"]
    names = begun.project, begun.display_name, begun.run_group, begun.host
    assert names == ("a project", "mine-fold_0", "mine-fold_0", "")
    history, lines = helper.whole()[1], metrics(run)
    for name in ("loss", "lr", "val_loss"):
        assert [line[name] for line in lines if name in line] == pytest.approx(history[name].dropna().tolist())
    assert [line["trainer/global_step"] for line in lines if "root" in line] == [5, 11, 17]
    assert [line["trainer/global_step"] for line in lines if "loss" in line] == [3, 5, 7, 11, 15, 17]
    [artifact] = artifacts(run)
    [entry] = artifact.manifest.contents
    assert (artifact.type, artifact.name, entry.path) == ("model", "mine-fold_0", "finished.ckpt")
    assert entry.local_path == "data/runs/mine/checkpoints/fold_0/finished.ckpt"
    assert entry.size == (folder / "finished.ckpt").stat().st_size
    [table] = (folder / "wandb").rglob("*.table.json")
    table = json.loads(table.read_text())
    assert table["columns"] == ["km", "reply"] and table["data"] == [[3.5, "Ohio"]] * tracking.ROWS
    assert [line["trainer/global_step"] for line in metrics(tables)] == [7]


def test_each_session_is_a_run_and_a_validation_that_was_owed_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KITLIB_TRACKER", "wandb")
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_validation = lambda epoch, batch: epoch == 1 and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit.fit(module, batches, folder, **options)
    module, _ = helper.fit(tmp_path, checkpoint_steps=4)
    assert helper.weights(module) == helper.whole()[0]
    runs = records(folder)
    assert [run[-1].exit.exit_code for run in runs] == [1, 0]
    steps = [[line["trainer/global_step"] for line in metrics(run) if "val_loss" in line] for run in runs]
    assert steps == [[5], [11, 17]]
    assert len({record.run.run_id for run in runs for record in run if record.run.run_id}) == 2
    helper.fit(tmp_path, checkpoint_steps=4)
    assert len(records(folder)) == 2, "a finished fit begins none"


def test_the_environment_says_where_to(tmp_path, monkeypatch):
    def mode():
        with Tracker(tmp_path) as tracker:
            return tracker.wandb._wandb_init["settings"].mode

    monkeypatch.setenv("KITLIB_TRACKER", "csv,wandb")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"
    for said in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", said)
        assert mode() == said
    monkeypatch.setenv("WANDB_MODE", "dry")
    with pytest.raises(KitError, match="WANDB_MODE is 'dry': allowed is online, offline, disabled"):
        mode()


def test_without_a_tracker_nothing_is_imported_or_written(tmp_path, monkeypatch):
    for name in ("wandb", "tensorboard", "pytorch_lightning.loggers"):
        monkeypatch.setitem(sys.modules, name, None)
    with Tracker(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.table("rollouts", [{"km": 1.0}], 1)
        tracker.weights(tmp_path)
    assert tracker.loggers == [] and list(tmp_path.iterdir()) == []


def test_disabled_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KITLIB_TRACKER", "wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    helper.fit(tmp_path, epochs=1)
    assert not [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]


@pytest.mark.parametrize("outside", [False, True])
def test_weights_that_are_large_or_elsewhere_are_not_logged(home, tmp_path, monkeypatch, outside):
    """elsewhere: where their path from here would tell where home is."""
    monkeypatch.setenv("KITLIB_TRACKER", "wandb")
    saved = paths.runs_dir() / "mine" / "adapter" / "model.safetensors"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"12345")
    monkeypatch.chdir(tmp_path.parent if outside else paths.runs_dir())
    with Tracker(saved.parents[1]) as tracker:
        monkeypatch.setattr(tracking, "LARGEST", 4)
        tracker.weights(saved.parent)
        monkeypatch.setattr(tracking, "LARGEST", 5)
        tracker.weights(saved.parent)
    [run] = records(saved.parents[1]) or [[]]
    logged = [(one.path, one.local_path) for artifact in artifacts(run) for one in artifact.manifest.contents]
    assert logged == [("adapter/model.safetensors", "mine/adapter/model.safetensors")] * (not outside)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_told(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KITLIB_TRACKER", name)
    monkeypatch.setitem(sys.modules, name, None)
    for call in (tracking.check, lambda: Tracker(tmp_path)):
        with pytest.raises(KitError, match=rf"^KITLIB_TRACKER={name}: .* pip install -e '\.\[{name}\]'"):
            call()
