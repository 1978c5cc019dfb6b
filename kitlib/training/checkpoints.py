"""The files of a fit, all written atomically: fit.json, the last two checkpoints, the best and the final weights."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: atomically, the last two, and past a damaged one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint and drop all but the last two."""
        checkpoint.pop("hyper_parameters", None)  # they may be more than plain values; fit.json has the config
        _save(Path(path), checkpoint)
        for older in listed(Path(path).parent)[2:]:
            older.unlink()

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read the newest checkpoint in the folder of `path` that is whole; KitError if none is."""
        checkpoints = listed(Path(path).parent)
        for checkpoint in checkpoints:
            try:
                return _load(checkpoint)
            except Damaged as error:
                what = str(error).partition(": delete")[0]
                log.warning("%s; perhaps it was cut short; going back to the one before it", what)
        raise Damaged(f"none of {len(checkpoints)} checkpoints in {storage.place(Path(path).parent)} can be read: "
                      f"{mend(Path(path).parent)}")  # fmt: skip


def listed(folder: Path) -> list[Path]:
    """The folder's checkpoints, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def begin(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Content of fit.json, or of a new one; KitError with the differences if the folder has other settings."""
    settings = _portable(json.loads(json.dumps(settings, default=str)))  # tuples become lists, as in the file
    path = folder / "fit.json"
    if not path.exists():
        return {"settings": settings}
    record = storage.read_json(path, needed=("settings",), mend=mend(path.parent))
    old, new = _flat(record["settings"]), _flat(settings)
    changes = [(name, old.get(name, "unset"), new.get(name, "unset")) for name in sorted(old | new)]
    if message := "; ".join(f"{name} was {was!r}, now {now!r}" for name, was, now in changes if was != now):
        raise KitError(f"{folder} began with other settings: {message}; give the old ones, or another folder")
    return record


def save_best(folder: Path, weights: dict[str, Any]) -> None:
    """Replace the best weights so far."""
    _save(folder / "best.ckpt", weights)


def best_weights(folder: Path) -> dict[str, Any]:
    """The state dict that `save_best` wrote last; Damaged if it cannot be read."""
    return _load(folder / "best.ckpt")


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write fit.json, and remove what a killed process left half written."""
    storage.write_json(folder / "fit.json", record)
    for half_written in folder.glob(".*.ckpt"):
        half_written.unlink()


def finish(folder: Path, record: dict[str, Any], weights: dict[str, Any]) -> None:
    """Write the final weights in place of the checkpoints."""
    _save(folder / "finished.ckpt", weights)
    write(folder, record)
    clear(folder)


def clear(folder: Path) -> None:
    """Remove what a finished fit no longer needs."""
    for path in [*listed(folder), folder / "best.ckpt"]:
        path.unlink(missing_ok=True)


def final_weights(folder: Path) -> dict[str, Any]:
    """The state dict of a finished fit, of plain tensors in a run from the hub; Damaged if it cannot be read."""
    if (plain := folder / "finished.safetensors").is_file():
        with storage.reading(plain, "whole weights", mend(folder)):
            return load_file(plain)
    return _load(folder / "finished.ckpt")


def _save(path: Path, state: dict[str, Any]) -> None:
    try:
        with storage.atomic_write(path) as beside:
            torch.save(state, beside)
    except (OSError, RuntimeError) as error:
        raise KitError(f"{path} could not be written ({error}); earlier checkpoints are kept") from error


def _load(path: Path) -> dict[str, Any]:
    """Read what `_save` wrote; torch itself does not compare the checksums that its zip files hold."""
    if not path.is_file():
        raise Damaged(f"{storage.place(path)}: expected a checkpoint; there is no such file: {mend(path.parent)}")
    with storage.reading(path, "a whole checkpoint", mend(path.parent)):
        with zipfile.ZipFile(path) as file:
            if flipped := file.testzip():
                raise zipfile.BadZipFile(flipped)
        return torch.load(path, map_location="cpu", weights_only=True)


def mend(folder: Path) -> str:
    """What to do about a damaged file of a fit."""
    return f"delete {paths.relative(folder)} and run the same command again, which trains that part anew"


def _portable(value: Any, name: str = "") -> Any:
    """Settings without folders of this machine."""
    if isinstance(value, dict):
        return {key: _portable(inner, key) for key, inner in value.items()}
    return paths.portable(name, value) if isinstance(value, str) else value


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings on one level, under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
