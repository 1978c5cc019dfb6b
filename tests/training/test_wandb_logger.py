"""tracking: metrics arrive in a real offline run, which says nothing about the machine or its user."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import fitting_helper as helper
import matplotlib
import pytest

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.training import fit, wandb_logger

USER, HOST, SECRET = "jane.doe", "janes-laptop", "sesame-0123456789abcdef"
LEFT = ["finished.ckpt", "fit.json", "history.csv"]
VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what `tracker` sets is undone
        monkeypatch.delenv(name)


def records(folder: Path) -> list[list]:
    """What the transaction logs below a folder hold, the oldest file first."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for path in sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime):
        store, of_run = DataStore(), []
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            of_run.append(Record.FromString(data))
        found.append(of_run)
    return found


def metrics(of_run: list) -> list[dict[str, float]]:
    """The lines that were logged."""
    lines = (record.history.item for record in of_run if record.WhichOneof("record_type") == "history")
    return [{item.nested_key[0]: json.loads(item.value_json) for item in line} for line in lines]


@pytest.mark.slow
def test_a_run_has_the_metrics_and_nothing_personal(tmp_path):
    """In a process of its own, with a home, a user and a command line that would be found."""
    home = tmp_path / "home" / USER
    folder = home / "kit" / "data" / "run"
    folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", home / "kit"], check=True)
    subprocess.run(["git", "-C", home / "kit", "remote", "add", "origin", f"https://{HOST}/{USER}.git"], check=True)
    subprocess.run(["git", "-C", home / "kit", "config", "user.email", f"{USER}@{HOST}"], check=True)
    known = dict.fromkeys(["USER", "LOGNAME", "USERNAME"], USER) | {"HOME": str(home), "HOSTNAME": HOST}
    known |= {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": matplotlib.get_cachedir()}  # a new list of fonts takes 20 s
    known |= {"WANDB_HOST": HOST, "WANDB_USERNAME": USER, "WANDB_EMAIL": f"{USER}@{HOST}"}
    known |= {"PYTHONPATH": os.pathsep.join([str(paths.checkout()), str(Path(helper.__file__).parent)])}
    given = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    program = (
        "import sys, pathlib, fitting_helper\nfrom kitlib.training import wandb_logger\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "logger = wandb_logger.tracker('a project', 'a run', folder / 'wandb')\n"
        "fitting_helper.fit(folder, checkpoint_steps=4, logger=logger)\n"
    )
    command = [sys.executable, "-c", program, folder, f"--password={SECRET}"]
    done = subprocess.run(command, env=given | known, cwd=home / "kit", capture_output=True, text=True, check=True)
    assert done.stdout == "" and "wandb" not in done.stderr

    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in written} == {"wandb", *LEFT}
    elsewhere = [path for path in home.rglob("*wandb*") if not path.is_relative_to(folder / "wandb")]
    assert elsewhere == []
    told = {USER, HOST, SECRET, sys.executable, str(tmp_path), str(Path.home())}
    told |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}  # root, vm are in other words
    for path in (folder / "wandb").rglob("*"):
        assert not path.is_symlink() or folder in path.resolve().parents
        content = path.read_bytes() if path.is_file() else b""
        assert [word for word in told if word.encode() in content] == [], path.name

    [run] = records(folder)
    [begun] = [record.run for record in run if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name, begun.run_group, begun.host) == ("a project", "a run", "a run", "")
    history, lines = helper.whole()[1], metrics(run)
    for name in ("loss", "lr", "val_loss"):
        assert [line[name] for line in lines if name in line] == pytest.approx(history[name].dropna().tolist())
    assert [line["trainer/global_step"] for line in lines if "root" in line] == [5, 11, 17]
    assert [line["trainer/global_step"] for line in lines if "loss" in line] == [3, 5, 7, 11, 15, 17]


def test_each_session_is_a_run_and_a_validation_that_was_owed_is_in_it(tmp_path):
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_validation = lambda epoch, batch: epoch == 1 and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit.fit(module, batches, folder, logger=wandb_logger.tracker("p", "r", folder / "wandb"), **options)
    logger = wandb_logger.tracker("p", "r", folder / "wandb")
    module, _ = helper.fit(tmp_path, checkpoint_steps=4, logger=logger)
    assert helper.weights(module) == helper.whole()[0]
    runs = records(folder)
    assert [run[-1].exit.exit_code for run in runs] == [1, 0]
    steps = [[line["trainer/global_step"] for line in metrics(run) if "val_loss" in line] for run in runs]
    assert steps == [[5], [11, 17]]
    assert len({record.run.run_id for run in runs for record in run if record.run.run_id}) == 2
    helper.fit(tmp_path / "another", epochs=1, logger=logger)
    assert len(records(folder)) == 3, "a logger that was closed begins anew"


def test_the_environment_says_where_to(tmp_path, monkeypatch):
    def mode():
        return wandb_logger.tracker("p", "r", tmp_path)._wandb_init["settings"].mode

    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"
    for said in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", said)
        assert mode() == said
    monkeypatch.setenv("WANDB_MODE", "dry")
    with pytest.raises(KitError, match="WANDB_MODE is 'dry': allowed is online, offline, disabled"):
        mode()


def test_disabled_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    helper.fit(tmp_path, epochs=1, logger=wandb_logger.tracker("p", "r", tmp_path / "wandb"))
    assert not [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(KitError, match=r"pip install -e '\.\[wandb\]'"):
        wandb_logger.tracker("p", "r", tmp_path)
