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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kitlib import __version__
from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.core.storage import write_json
from kitlib.evaluation.guesses import Guesses

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "pandas", "torch", "timm", "transformers", "trl", "peft", "pytorch-lightning", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A run's directory and its contents; made by `start`, opened again by `open_run`."""

    name: str
    dir: Path

    @property
    def params(self) -> dict[str, Any]:
        """The content of params.json; the caller's settings are under "settings"."""
        return json.loads((self.dir / "params.json").read_text())

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
        return json.loads((self.dir / "metrics.json").read_text())

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
        write_json(self.dir / "metrics.json", metrics)
        return metrics

    def _guesses_path(self, split: str) -> Path:
        if split not in ("oof", "test"):
            raise KitError(f"guesses: expected 'oof' or 'test'; got {split!r}")
        return self.dir / f"{split}.npz"


def start(name: str, settings: dict[str, Any], *, data: dict[str, str], overwrite: bool = False) -> Run:
    """Start a run, or resume one with the same settings and data.

    `settings` holds every resolved value that decides the result, `data` the checksums of the training data. Raises
    KitError with the difference if the run was started with others, unless `overwrite`, which deletes the old run.
    """
    run = Run(name, paths.run_dir(name))
    decides = json.loads(json.dumps({"settings": settings, "data": data}))
    if overwrite and run.dir.is_dir():
        log.info("run %s: starting over, the old one is deleted", name)
        shutil.rmtree(run.dir)
    if (run.dir / "params.json").is_file():
        recorded = run.params
        changes = [
            f"{key} was {was!r}, now {now!r}"
            for part in decides
            for key, was, now in difference(recorded[part], decides[part])
        ]
        if changes:
            raise KitError(
                f"run {name} was started with other settings ({'; '.join(changes)}): "
                "take another run name, the old settings, or overwrite the run"
            )
        return run
    write_json(
        run.dir / "params.json",
        decides
        | {
            "run": name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "kitlib": __version__,
            "git": git_commit(),
            "python": platform.python_version(),
            "libraries": library_versions(),
        },
    )
    return run


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
    finished = [run for name in list_runs() if (run := open_run(name)).finished]
    matches = [run for run in finished if run.params["data"].get("places") == places_checksum]
    return [run.name for run in sorted(matches, key=lambda run: run.params["started"], reverse=True)]


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
