"""Where the metrics of a training go besides its history.csv: to Weights & Biases, to TensorBoard, or nowhere else.

KITLIB_TRACKER says so for every training, by Lightning, by TRL and at Tinker. Files go below a training's folder, into
wandb/ and tensorboard/ (`tensorboard --logdir data/runs` finds them). What is sent or written has metrics, rollouts,
weights, times, and the versions of Python and of the libraries; nothing of the machine, its user, the repository, the
code or the command line.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitlib.core import paths
from kitlib.core.errors import KitError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
ROWS = 200  # of a table at most
LARGEST = 2**30  # bytes of weights that become an artifact; whole vision-language models are larger


class Tracker:
    """The trackers of one session of a training; without any, all methods do nothing.

        with Tracker(folder) as tracker:
            tracker.log({"loss": 0.5}, step=1)

    loggers: Lightning's, for its Trainer. Where several processes train, only the first one's loggers log.
    """

    def __init__(self, folder: Path) -> None:
        """folder: of the training; its place below the runs is the name in Weights & Biases. Raises as `check`."""
        check()
        names, self.name = paths.trackers(), name_of(folder)
        self.wandb = _wandb(self.name, folder / "wandb") if "wandb" in names else None
        self.board = _tensorboard(folder) if "tensorboard" in names else None
        self.loggers: list[Any] = [logger for logger in (self.wandb, self.board) if logger is not None]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(failed=kind is not None)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log the numbers among the values of an optimizer step."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        for logger in self.loggers:
            logger.log_metrics(numbers, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log the first `ROWS` rows, which have the same columns, as a table of Weights & Biases."""
        if self.wandb is not None and rows:
            self.wandb.log_table(name, list(rows[0]), [list(row.values()) for row in rows[:ROWS]], step=step)

    def weights(self, saved: Path | None) -> None:
        """Log a file or folder of weights as a model artifact of Weights & Biases, unless it is too large.

        The files are not copied: an offline run is to be synchronised in the folder where the process began. They are
        named relative to that folder; where this would tell where home is, they are left out.
        """
        if self.wandb is None or saved is None:
            return
        files = [path for path in (sorted(saved.rglob("*")) if saved.is_dir() else [saved]) if path.is_file()]
        size, down = sum(path.stat().st_size for path in files), os.path.relpath(saved).replace("../", "")
        if size > LARGEST or not f"/{paths.relative(saved)}".endswith(f"/{down}"):
            log.info("%s is no artifact: larger than 1 GiB, or outside the folders of the kit", saved.name)
            return
        import wandb

        artifact = wandb.Artifact(self.name, "model")
        for path in files:
            inside = path.relative_to(saved.parent).as_posix()
            artifact.add_file(os.path.relpath(path), inside, policy="immutable", skip_cache=True)
        self.wandb.experiment.log_artifact(artifact)

    def close(self, failed: bool = False) -> None:
        """End the session; what is logged afterwards to Weights & Biases begins another."""
        if self.board is not None:
            self.board.finalize("failed" if failed else "success")
        if self.wandb is not None and self.wandb._experiment is not None:
            self.wandb._experiment.finish(exit_code=int(failed))
            self.wandb._experiment = None


def check() -> None:
    """Raise KitError for a tracker that is not installed, and for an unknown WANDB_MODE."""
    for name in paths.trackers():
        if not importlib.util.find_spec(name):
            raise KitError(
                f"KITLIB_TRACKER={name}: {name} is not installed: in the kit's folder, pip install -e '.[{name}]' "
                "(or uv pip install)"
            )
    if "wandb" in paths.trackers():
        _mode()


def name_of(folder: Path) -> str:
    """The name of a training: the parts of its folder's path below the runs, with dashes between.

    >>> name_of(paths.runs_dir() / "mine" / "checkpoints" / "fold_0" / "head")
    'mine-fold_0-head'
    """
    folder = folder.resolve()
    inside = folder.is_relative_to(paths.runs_dir())
    parts = folder.relative_to(paths.runs_dir()).parts if inside else (folder.name,)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(part for part in parts if part != "checkpoints"))


def _mode() -> Any:
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode not in MODES:
        raise KitError(f"WANDB_MODE is {mode!r}: allowed is {', '.join(MODES)}")
    return mode


def _wandb(name: str, folder: Path) -> WandbLogger:
    """A logger whose files go below `folder`.

    The environment decides where the run goes: to the server where it has WANDB_API_KEY, otherwise into files only
    (`wandb sync` uploads them later), or as WANDB_MODE says: online, offline, disabled. The project is WANDB_PROJECT,
    or kitlib. Each session of a training is a run `name`, in a group of the same name.
    """
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Settings

    folder.mkdir(parents=True, exist_ok=True)  # wandb would take a temporary folder instead
    if "WANDB_DATA_DIR" not in os.environ:  # it would be in the user's home, and tables note its full path
        os.environ["WANDB_DATA_DIR"] = tempfile.mkdtemp(prefix="wandb-")
    os.environ.setdefault("WANDB_CACHE_DIR", os.environ["WANDB_DATA_DIR"])  # of its server process; logs link to it
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports name the machine
    silent = Settings(
        mode=_mode(),
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
    project = os.environ.get("WANDB_PROJECT") or "kitlib"
    logger = WandbLogger(name=name, project=project, group=name, save_dir=folder, settings=silent, resume=None)
    del logger._wandb_init["anonymous"]  # Lightning always gives it, wandb warns whenever it is given
    return logger


def _tensorboard(folder: Path) -> TensorBoardLogger:
    from pytorch_lightning.loggers import TensorBoardLogger

    logger = TensorBoardLogger(folder, name="tensorboard", version="")
    with _nameless_host():
        logger.experiment  # noqa: B018 - opens the file
    return logger


@contextmanager
def _nameless_host() -> Iterator[None]:
    """TensorBoard puts the host into the names of its files."""
    known, socket.gethostname = socket.gethostname, lambda: "kitlib"
    try:
        yield
    finally:
        socket.gethostname = known


def _matters(record: logging.LogRecord) -> bool:
    """Keeps the full paths out of debug.log that wandb notes there, whatever its level is set to."""
    return record.levelno >= logging.WARNING
