"""What trackers have written, read from their files, for several test files."""

from __future__ import annotations

import getpass
import importlib.util
import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR",
             "WANDB_ERROR_REPORTING", "KITLIB_TRACKER")  # fmt: skip
BOARD = importlib.util.find_spec("tensorboard") is not None  # an extra that the tests do without


def forget_settings(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)


def records(folder: Path) -> list[list]:
    """What the transaction logs below a folder hold, the oldest file first; their process may write on for a moment."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    found, deadline = [], time.monotonic() + 10
    for path in sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime):
        of_run: list = []
        while not (of_run and of_run[-1].WhichOneof("record_type") == "exit") and time.monotonic() < deadline:
            store, of_run = DataStore(), []
            with suppress(AssertionError):  # not even the header is there yet
                store.open_for_scan(str(path))
                while (data := store.scan_data()) is not None:
                    of_run.append(Record.FromString(data))
        found.append(of_run)
    return found


def metrics(of_run: list) -> list[dict[str, float]]:
    """The lines that were logged."""
    lines = (record.history.item for record in of_run if record.WhichOneof("record_type") == "history")
    return [{item.nested_key[0]: json.loads(item.value_json) for item in line} for line in lines]


def artifacts(of_run: list) -> list:
    requests = (record.request for record in of_run if record.WhichOneof("record_type") == "request")
    logged = [r.log_artifact.artifact for r in requests if r.WhichOneof("request_type") == "log_artifact"]
    return logged + [record.artifact for record in of_run if record.WhichOneof("record_type") == "artifact"]


def assert_nothing_personal(folder: Path, *told: str) -> None:
    """Neither of these words, nor the machine, its user, and where Python and home are, in any file of a tracker."""
    names = {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}  # root, vm are in other words
    for path in [*(folder / "wandb").rglob("*"), *(folder / "tensorboard").rglob("*")]:
        content = path.read_bytes() if path.is_file() else b""
        content += bytes(path.readlink()) if path.is_symlink() else b""
        words = {*told, *names, sys.executable, str(Path.home())}
        assert [word for word in words if word.encode() in content] == [], path.name
        assert socket.gethostname() not in path.name.split("."), path.name
