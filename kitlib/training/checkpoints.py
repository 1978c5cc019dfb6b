"""The files of a fit: its settings in fit.json, the last two checkpoints, the best weights so far; all are renamed."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from kitlib.core import storage
from kitlib.core.errors import KitError

log = logging.getLogger(__name__)


class Disk(CheckpointIO):
    """Lightning's way to the disk: writes atomically, and hands out what `newest` has read already."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint and drop all but the last two."""
        with storage.atomic_write(path) as beside:
            torch.save(checkpoint, beside)
        for older in listed(Path(path).parent)[2:]:
            older.unlink()

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Hand over, so that the memory can go when Lightning lets go of it."""
        found, self.found = self.found, {}
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """Lightning asks for this one, but nothing calls it here."""
        Path(path).unlink()


def listed(folder: Path) -> list[Path]:
    """The folder's checkpoints, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def newest(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint that can be read, and what it holds; KitError where there are some but none can be."""
    for path in listed(folder):
        try:
            if zipfile.is_zipfile(path):
                return path, torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            log.debug("%s: %s", path, error)
        log.warning("%s cannot be read, perhaps it was cut short; going back to the one before it", path)
    if unreadable := listed(folder):
        raise KitError(
            f"none of {len(unreadable)} checkpoints in {folder} can be read: remove the folder to begin anew"
        )
    return None, {}


def begin(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What fit.json holds, or its beginning; KitError, with the difference, where other settings began the folder."""
    settings = json.loads(json.dumps(settings, default=str))  # tuples become lists, as they will be read again
    path = folder / "fit.json"
    if not path.exists():
        return {"settings": settings}
    record = json.loads(path.read_text())
    old, new = _flat(record["settings"]), _flat(settings)
    changes = [(name, old.get(name, "unset"), new.get(name, "unset")) for name in sorted(old | new)]
    if told := "; ".join(f"{name} was {was!r}, now {now!r}" for name, was, now in changes if was != now):
        raise KitError(f"{folder} began with other settings: {told}; give the old ones, or another folder")
    return record


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write fit.json and sweep up what a killed process left half written."""
    with storage.atomic_write(folder / "fit.json") as beside:
        beside.write_text(json.dumps(record, indent=1))
    for half_written in folder.glob(".*.ckpt"):
        half_written.unlink()


def keep_best(folder: Path, weights: dict[str, Any]) -> None:
    """Put these weights in place of the best so far."""
    path = folder / "best.ckpt"
    try:
        with storage.atomic_write(path) as beside:
            torch.save(weights, beside)
    except (OSError, RuntimeError) as error:
        raise KitError(f"{path} could not be written ({error}); the one before it is kept") from error


def best_weights(folder: Path) -> dict[str, Any]:
    """The state dict that `keep_best` kept last; KitError where it cannot be read."""
    path = folder / "best.ckpt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise KitError(f"{path} cannot be read ({error}): remove the folder to begin anew") from error


def finish(folder: Path, record: dict[str, Any], weights: dict[str, Any]) -> None:
    """Leave the final weights in place of the checkpoints."""
    with storage.atomic_write(folder / "finished.ckpt") as beside:
        torch.save(weights, beside)
    write(folder, record)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what a finished fit needs no more."""
    for checkpoint in [*listed(folder), folder / "best.ckpt"]:
        checkpoint.unlink(missing_ok=True)


def final_weights(folder: Path) -> dict[str, Any]:
    """The state dict that a finished fit left."""
    return torch.load(folder / "finished.ckpt", map_location="cpu", weights_only=True)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings on one level, under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
