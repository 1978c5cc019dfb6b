"""What a run is made from: checksums of its places, folds and pictures, and of the files that its Config names.

A run records files and folders by name and content, never by their place on this machine.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from kitlib.core import paths, storage
from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.data import folds, pictures
from kitlib.data.places import SPLITS, Places
from kitlib.data.readers import load, read
from kitlib.evaluation.runs import Run


def data_checksums(places: Places, folds_column: str, n_folds: int) -> dict[str, str]:
    """Checksums of the places and, unless these are "given", of their saved folds, which are made if there are none."""
    if folds_column == "given":
        return {"places": places.checksum}
    folds.load_or_make(places, n_folds)
    return {"places": places.checksum, "folds": folds.folds_checksum(places)}


def picture_checksums(places: Places) -> dict[str, str]:
    """Checksums of the packed pictures of each split. Raises KitError if no training place has a usable one."""
    return {f"{split} pictures": pictures.pack(places, split).checksum for split in SPLITS if len(places.rows(split))}


def portable(config: Settings) -> dict[str, Any]:
    """The fields of a Config without folders of this machine, which a run records; `Settings.from_run` reads them."""
    values = asdict(config)  # type: ignore[call-overload]
    return {name: paths.portable(name, v) if isinstance(v, str) else v for name, v in values.items()}


def file_checksums(config: Settings) -> dict[str, str]:
    """Checksums of the files and folders that a Config names, by field; a run records only their names."""
    files: dict[str, str] = {}
    for name, value in portable(config).items():
        path = Path(paths.given().get(f"{name} {paths.split(value)[1]}", "")) if isinstance(value, str) else Path()
        if path.is_absolute() and path.exists():
            files[name] = _content(path)
    return files


def check_files(run: Run, config: Settings) -> None:
    """Raise KitError if a file that a run was started with is now another of the same name."""
    recorded = run.params["data"]
    for name, checksum in file_checksums(config).items():
        if recorded.get(name, checksum) != checksum:
            raise KitError(
                f"run {run.name}, {name}: expected the file that it was started with; got another one named "
                f"{paths.portable(name, getattr(config, name))!r}"
            )


def _content(path: Path) -> str:
    """A checksum of a file, or of a folder of weights: the names and sizes of its files, the content of its weights."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    parts = [f"{file.name} {file.stat().st_size}" for file in files] if path.is_dir() else []
    weights = [file for file in files if file.suffix in (".safetensors", ".json", ".pth", ".bin") or path.is_file()]
    return storage.digest(*parts, *(_file_digest(file, file.stat().st_mtime_ns) for file in weights))


@lru_cache(maxsize=64)
def _file_digest(file: Path, changed: int) -> str:
    return storage.digest(file)


def data_reference(places: Places) -> dict[str, Any]:
    """The settings by which another process finds the places of a run."""
    folder = places.folder
    if folder.name == "kaggle_dataset" and not folder.is_relative_to(paths.home()):
        folder = folder.parent  # whose name says more
    paths.portable("data", str(folder))  # for `reload_places`
    return {"data": paths.relative(folder)} | ({"read": places.options} if places.options else {})


def learned(places: Places) -> dict[str, Any]:
    """What a run records of its places, so that it can answer where they are not: states, views, and their kind."""
    states = zip(places.states["state"].tolist(), places.states["state_idx"].tolist(), strict=True)
    kind = {"competition": places.template is not None, "drawn": places.is_drawn}
    return {"name": places.name, "views": list(places.views), "states": [list(pair) for pair in states]} | kind


def learned_places(run: Run) -> Places:
    """The places of a run without any training place: the states and views that it has learned.

    Raises KitError for a run of an earlier kit, which has not recorded them.
    """
    known = run.params.get("learned")
    if not known:
        raise KitError(f"run {run.name}: expected the states that it has learned in params.json; got none: train anew")
    columns = ["split", "sample_id", *(f"image_{view}" for view in known["views"]), "state", "state_idx"]
    states = pd.DataFrame(known["states"], columns=["state", "state_idx"])[["state_idx", "state"]]
    table = pd.DataFrame(columns=[*columns, "latitude", "longitude"])
    return Places(known["name"], run.dir, table, states, pd.DataFrame() if known["competition"] else None)


def reload_places(run: Run, data: str = "") -> Places:
    """Read the places of a run again, from `data` or else from the location in its settings."""
    options = run.settings.get("read", {})
    return load(data, **options) if data else read(paths.located("data", run.settings["data"]), **options)
