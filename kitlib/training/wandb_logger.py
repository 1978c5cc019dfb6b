"""The Weights & Biases logger of a fit: offline unless asked otherwise, and silent about the machine and its user."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from kitlib.core.errors import KitError

MODES = ("online", "offline", "disabled")


class Tracker(WandbLogger):
    """Lightning's logger, which leaves its run open until the process ends; `fitting.fit` closes this one."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        del self._wandb_init["anonymous"]  # Lightning always gives it, wandb warns whenever it is given

    def close(self, failed: bool) -> None:
        """End the run, if it was begun; what is logged afterwards begins another."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None


def tracker(project: str, run: str, folder: Path) -> Tracker:
    """A logger for `fitting.fit(..., logger=)`, whose files go below `folder`; history.csv is written all the same.

    The environment decides where the run goes: to the server where it has WANDB_API_KEY, otherwise into files only
    (`wandb sync` uploads them later), or as WANDB_MODE says: online, offline, disabled. Each session of a fit is a
    run named `run`, in a group of the same name. What is sent or written has the metrics, times, and the versions of
    Python and of the libraries; nothing of the machine, its user, the repository, the code or the command line.
    Raises KitError where wandb is not installed, and for another WANDB_MODE.
    """
    try:
        from wandb import Settings
    except ImportError:
        raise KitError(
            "Weights & Biases is not installed: in the kit's folder, pip install -e '.[wandb]' (or uv pip install)"
        ) from None
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode not in MODES:
        raise KitError(f"WANDB_MODE is {mode!r}: allowed is {', '.join(MODES)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)  # wandb would take a temporary folder instead
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))  # of its server process; no setting leads there
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports name the machine
    silent = Settings(
        mode=mode,
        x_disable_meta=True,  # host, user, command line, git, hardware
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        host="",
        program="",
        console="off",
        silent=True,
        symlink=False,
    )
    logging.getLogger("wandb").addFilter(_matters)
    return Tracker(name=run, project=project, group=run, save_dir=folder, settings=silent, resume=None)


def _matters(record: logging.LogRecord) -> bool:
    """Keeps the full paths out of debug.log that wandb notes there, whatever its level is set to."""
    return record.levelno >= logging.WARNING
