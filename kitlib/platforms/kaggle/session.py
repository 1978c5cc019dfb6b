"""What a notebook does on Kaggle before and after its own cells: the first cell of a packed notebook calls `begin`."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from kitlib.core import paths, storage
from kitlib.core.errors import KitError

SESSION_HOURS = 12.0  # that Kaggle gives to a session; `kaggle quota` says what the week has left
SPARE_HOURS = 0.4  # for the last checkpoint, guesses and pages, and for Kaggle to keep the output
LINKED = 2**20  # bytes; larger files of an input stay there, behind a link


def begin(hours: float = SESSION_HOURS) -> str:
    """Take over what the attached inputs hold, set the time to stop at, and say what is there.

    hours: of the whole session. The session's start is that of the first process of its container.
    """
    until = psutil.Process(1).create_time() + (hours - SPARE_HOURS) * 3600
    os.environ.setdefault("KITLIB_UNTIL", f"{until:.0f}")
    sources = [folder for folder in paths.mounts() if (folder / "data").is_dir() or (folder / "submissions").is_dir()]
    links = [link for folder in sources for link in adopt(folder)]
    atexit.register(_unlink, links)
    _watch_cells()
    taken = ", ".join(dict.fromkeys(folder.name for folder in sources)) or "none"
    return f"earlier outputs: {taken}; {paths.hours_left():.1f} hours until training stops; device: {_devices()}"


def adopt(source: Path, link: bool = True) -> list[Path]:
    """Bring runs, derived files and submissions of another home into this one; what is here already stays as it is.

    With `link` large files of finished work stay in `source`, which may be read-only; the links to them are returned.
    What may be continued is copied: unfinished runs, and work under way (hidden and .partial).
    """
    links = []
    for file in sorted(path for kind in ("data/runs", "data/derived", "submissions") for path in _files(source / kind)):
        inside = file.relative_to(source)
        target, parts = paths.home() / inside, inside.parts
        if target.exists():
            continue
        run = source / Path(*parts[:3])
        finished = parts[1] != "runs" or (run / "metrics.json").is_file()
        under_way = any(part.startswith(".") or part.endswith(".partial") for part in parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and finished and not under_way and file.stat().st_size > LINKED:
            target.symlink_to(file)
            links.append(target)
        else:
            with storage.atomic_write(target) as beside:
                shutil.copyfile(file, beside)
    return links


def run_plan(plan: str) -> Path | None:
    """Run a plan as `kitlib run` does; return its report, or None when the session's time was up before its end."""
    from kitlib.pipeline import runner

    try:
        return runner.run_plan(plan)
    except KitError:
        if paths.hours_left() > 0:
            raise
        print("the session's time is up: everything is saved, and the next part goes on from here")  # noqa: T201
        return None
    finally:
        _offer_submission()


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def _unlink(links: list[Path]) -> None:
    """Take links to inputs out of the folder that Kaggle keeps as this notebook's output."""
    for link in links:
        if link.is_symlink():
            link.unlink()


def _watch_cells() -> None:
    """After each cell offer a new submission, and leave out the remaining cells once the session's time is up.

    A notebook that ends early without an error keeps its output, from which the next session goes on.
    """
    from IPython import get_ipython

    if (shell := get_ipython()) is None:
        return

    def after(result: Any) -> None:
        _offer_submission()
        if paths.hours_left() <= 0 and _leave_out not in shell.input_transformers_cleanup:
            shell.input_transformers_cleanup.append(_leave_out)
            print("the session's time is up: everything is saved; the cells below are left out")  # noqa: T201

    shell.events.register("post_run_cell", after)


def _leave_out(lines: list[str]) -> list[str]:
    return []


def _offer_submission() -> None:
    """Copy the newest submission to submission.csv, where Kaggle looks for it."""
    files = sorted(paths.submissions_dir().glob("*.csv"), key=lambda path: path.stat().st_mtime)
    target = paths.home() / "submission.csv"
    if files and not (target.is_file() and target.read_bytes() == files[-1].read_bytes()):
        with storage.atomic_write(target) as beside:
            shutil.copyfile(files[-1], beside)


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or f"{os.cpu_count()} CPU cores, no GPU"
