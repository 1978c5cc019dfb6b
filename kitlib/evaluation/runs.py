"""Runs: one directory each, in which params.json is written first, then guesses, and metrics.json last.

A run without metrics.json is unfinished and can be resumed with the same settings. Other settings are refused with the
difference shown, because they would mix two experiments in one result.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from kitlib import __version__
from kitlib.core import headline, paths, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.evaluation.guesses import Guesses

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "pandas", "torch", "timm", "transformers", "trl", "peft", "pytorch-lightning", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A run's directory and its contents; made by `start`, opened again by `open_run`."""

    name: str
    dir: Path

    def _repr_html_(self) -> str:
        score = self.metrics.get("oof", {}).get("final") if self.finished else None
        state = "not finished" if not self.finished else "finished" if score is None else f"{score:.4f} out of fold"
        settings = "".join(
            f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in self.settings.items()
        )
        folded = f"<details><summary>settings</summary><table>{settings}</table></details>"
        pages = "".join(headline.link(page)._repr_html_() for page in sorted(self.dir.glob("figures/*.html")))
        return f"<p>run <b>{self.name}</b>: {state}</p>{pages}{folded}"

    @property
    def params(self) -> dict[str, Any]:
        """The content of params.json; the caller's settings are under "settings". Raises Damaged."""
        path, mend = self.dir / "params.json", f"start run {self.name} over (--overwrite), or delete its folder"
        params = storage.read_json(path, needed=("settings", "data", "started"), mend=mend)
        if not isinstance(params["settings"], dict) or not isinstance(params["data"], dict):
            raise Damaged(f"{storage.place(path)}: expected settings and data by name; got others: {mend}")
        return params

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run."""
        return self.params["settings"]

    @property
    def checkpoints(self) -> Path:
        """The folder of training states and trained weights."""
        return self.dir / "checkpoints"

    @property
    def figures(self) -> Path:
        """The folder of figures of this run."""
        (self.dir / "figures").mkdir(parents=True, exist_ok=True)
        return self.dir / "figures"

    @property
    def finished(self) -> bool:
        """Whether metrics.json, the last file, exists."""
        return (self.dir / "metrics.json").is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Raises KitError for an unfinished run."""
        if not self.finished:
            raise KitError(f"run {self.name} is not finished: it has no metrics.json; run its training again to go on")
        mend = "delete it and run the training again, which only joins the guesses of its folds"
        return storage.read_json(self.dir / "metrics.json", mend=mend)

    def files(self, pattern: str = "*.*") -> list[Path]:
        """The tables, settings, guesses and metrics of the run, or the files of a `pattern` such as figures/*.png."""
        kinds = (".csv", ".json", ".npz") if pattern == "*.*" else ("",)
        return [path for path in sorted(self.dir.glob(pattern)) if path.name.endswith(kinds)]

    def save_guesses(self, split: str, guesses: Guesses) -> Path:
        """Write the guesses for "oof" (held-out training places) or "test"."""
        path = self._guesses_path(split)
        guesses.save(path)
        return path

    def guesses(self, split: str) -> Guesses:
        """The run's guesses for "oof" or "test"."""
        path = self._guesses_path(split)
        if not path.is_file():
            raise KitError(f"run {self.name} has no {path.name}: run its training notebook to the end first")
        return Guesses.load(path)

    def finish(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write metrics.json, which marks the run as finished, and return the metrics."""
        storage.write_json(self.dir / "metrics.json", metrics)
        return metrics

    def _guesses_path(self, split: str) -> Path:
        if split not in ("oof", "test"):
            raise KitError(f"guesses: expected 'oof' or 'test'; got {split!r}")
        return self.dir / f"{split}.npz"


def start(
    name: str,
    settings: dict[str, Any],
    *,
    data: dict[str, str],
    overwrite: bool = False,
    learned: dict[str, Any] | None = None,
) -> Run:
    """Start a run, or resume one with the same settings and data.

    `settings` holds every resolved value that decides the result, `data` the checksums of the training data, `learned`
    what `origin.learned` says of it, with which the run answers where that data is not. Raises KitError with the
    difference if the run was started with others, unless `overwrite`, which deletes the old run.
    """
    run = Run(name, paths.run_dir(name))
    if overwrite and run.dir.is_dir():
        log.info("run %s: starting over, the old one is deleted", name)
        shutil.rmtree(run.dir)
    if (run.dir / "params.json").is_file():
        refuse_changes(run, settings, data)
        return run
    if run.checkpoints.is_dir():
        raise Damaged(f"run {name} has checkpoints but no params.json: overwrite the run, or delete its folder")
    storage.write_json(
        run.dir / "params.json",
        {
            "settings": settings,
            "data": data,
            "learned": learned,
            "run": name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "kitlib": __version__,
            "git": git_commit(),
            "python": platform.python_version(),
            "libraries": library_versions(),
        },
    )
    return run


def refuse_changes(run: Run, settings: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise KitError with the difference if a run was started with other settings or checksums of data."""
    recorded, now = run.params, json.loads(json.dumps({"settings": settings, "data": data}))
    pairs = [pair for part in now for pair in difference(recorded[part], now[part])]
    if message := "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in pairs):
        raise KitError(
            f"run {run.name} was started with other settings or data ({message}): "
            "take another run name, the old settings, or overwrite the run"
        )


def lock(name: str, busy: bool = True, part: str = "") -> AbstractContextManager[None]:
    """The lock of whoever begins, joins or deletes a run, or trains a `part` of it; it is beside the run's folder.

    Raises KitError if another process holds it, or waits for that one unless `busy`.
    """
    folder = paths.run_dir(name)
    what = " of ".join(filter(None, [part, f"run {name}"]))
    sentence = f"{what} is being trained by another process; wait for it to end, or take another run name"
    file = folder.with_name(f".{name}{'@' if part else ''}{part.replace(' ', '-')}.lock")
    return storage.lock(file, sentence if busy else None)


def is_being_trained(name: str, but: str = "") -> bool:
    """Whether a process holds the lock of a part of a run, other than that of the part `but`."""
    for file in paths.runs_dir().glob(f".{name}@*.lock"):
        if file.name != f".{name}@{but.replace(' ', '-')}.lock":
            try:
                with storage.lock(file, "busy"):
                    pass
            except KitError:
                return True
    return False


def open_run(name: str) -> Run:
    """Open an existing run. Raises KitError listing the runs for an unknown one."""
    run = Run(name, paths.run_dir(name))
    if not (run.dir / "params.json").is_file():
        raise KitError(f"there is no run {name!r}; there are: {', '.join(list_runs()) or 'none yet'}")
    return run


def list_runs() -> list[str]:
    """The names of all runs, finished or not."""
    return sorted(file.parent.name for file in paths.runs_dir().glob("*/params.json"))


def finished_on(places_checksum: str) -> list[str]:
    """The names of the finished runs on the places with that checksum, the latest first."""
    started: dict[str, str] = {}
    for run in (run for name in list_runs() if (run := open_run(name)).finished):
        try:
            if run.params["data"].get("places") == places_checksum:
                started[run.name] = str(run.params["started"])
        except Damaged as error:
            log.warning("run %s is left out: %s", run.name, error)
    return sorted(started, key=lambda name: started[name], reverse=True)


def best_on(places_checksum: str) -> list[str]:
    """As `finished_on`, the best out-of-fold score first; runs without one last."""
    scores = {name: open_run(name).metrics.get("oof", {}).get("final", -1.0) for name in finished_on(places_checksum)}
    return sorted(scores, key=lambda name: -scores[name])


def difference(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List (key, old value, new value) for each key whose values differ; an absent key counts as None.

    >>> difference({"epochs": 3, "seed": 0}, {"epochs": 5, "seed": 0})
    [('epochs', 3, 5)]
    """
    keys = dict.fromkeys([*was, *now])
    return [(key, was.get(key), now.get(key)) for key in keys if was.get(key) != now.get(key)]


def git_commit() -> str | None:
    """The checkout's commit, followed by "+" if files have changed since; None outside a git checkout."""
    try:
        command = ["git", "-C", str(paths.checkout()), "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that affect results."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
