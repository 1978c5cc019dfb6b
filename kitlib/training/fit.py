"""The Lightning Trainer as the kit uses it: precision, devices, checkpoints, exact resume, a time budget.

A fit has one folder: `fit.json` (its settings, then its result), `step-*.ckpt` (the last two checkpoints), `best.ckpt`
(the best weights so far, if a metric is monitored), `history.csv`, and `finished.ckpt` (the final weights, in place of
the others). Calling `fit` again continues from the newest readable checkpoint, at any optimizer step of an epoch, and
ends with the very weights of a fit that was never stopped. The random generators need no saving for that: the order of
an epoch depends on (seed, epoch) alone, and what a batch draws on (seed, rank, epoch, batch); a validation draws as one
more batch would.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from kitlib.core import processes, storage
from kitlib.core.errors import Damaged, Interrupted, KitError
from kitlib.data.loader import Batches
from kitlib.training import checkpoints
from kitlib.training.averaging import Averaging
from kitlib.training.resume_callback import ResumeCallback, Stopped
from kitlib.training.tracking import Tracker
from kitlib.vision.device import best_device, best_dtype, precision_of

log = logging.getLogger(__name__)

OWN_NAMES = ("epoch", "step", "lr", "seconds", "loss")  # columns that every history has
LIGHTNING = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}  # its names of number types


def _saved_history(folder: Path) -> pd.DataFrame:
    """The history of a finished fit; it decides nothing, so that an unreadable one is only reported."""
    try:
        with storage.reading(folder / "history.csv"):
            return pd.read_csv(folder / "history.csv")
    except (Damaged, FileNotFoundError):
        log.warning("%s: the training history cannot be read", storage.place(folder / "history.csv"))
        return pd.DataFrame(columns=OWN_NAMES)


def total_steps(n_rows: int, batch_size: int, accumulate: int, epochs: int, devices: int = 1) -> int:
    """Optimizer steps of a whole fit; batch_size rows a device, the last group of an epoch may be smaller.

    >>> total_steps(n_rows=10, batch_size=4, accumulate=2, epochs=3)
    6
    """
    return epochs * math.ceil(math.ceil(n_rows / (batch_size * devices)) / accumulate)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that rises linearly over the first share of the steps and falls to zero along a cosine.

    Give it to Lightning with interval "step". The first step already has a rate above zero.
    """
    warmup = round(total_steps * warmup_share)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def may_fuse(module: pl.LightningModule) -> bool:
    """Whether a module that `fit` trains may use a fused optimizer, which is faster.

    Lightning refuses to clip gradients for one under mixed precision, bfloat16 included, and MPS has none.
    """
    trainer = module._trainer
    return module.device.type != "mps" and not (trainer and str(trainer.precision).endswith("-mixed"))


@dataclass(frozen=True)
class Fitted:
    """Result of a fit: history has a line every checkpoint_steps and at each epoch's end (see `fit`)."""

    finished: bool  # False: max_hours are over, call again to continue
    steps: int  # optimizer steps made
    seconds: float  # over all sessions
    history: pd.DataFrame
    best_epoch: int = 0  # the epoch, from 1, with the lowest monitored metric, whose weights these are; 0 without one


def fit(
    module: pl.LightningModule,
    batches: Batches,
    folder: Path,
    *,
    epochs: int,
    config: dict[str, Any],
    val_batches: Batches | None = None,
    accumulate: int = 1,
    checkpoint_steps: int = 200,
    max_hours: float | None = None,
    devices: int = 1,
    precision: str = "auto",
    seed: int = 0,
    gradient_clip: float = 1.0,
    monitor: str = "",
    patience: int = 0,
    average: float = 0.0,
) -> Fitted:
    """Train `module`, or continue training it from the checkpoints in `folder`; a finished fit just loads its weights.

    module: training_step returns the mean loss over the rows of its batch (so that a smaller batch is weighted right)
    and may log with self.log; validation_step logs under other names (with sync_dist=True for several devices).
    Seed before building it. config: whatever else decides the result, as plain values; saved in fit.json.
    The gradient of a step is the mean over all rows of its group of `accumulate` batches on all devices.
    A checkpoint is written every `checkpoint_steps` steps and after each epoch's validation. SIGTERM, Ctrl-C and the
    end of `max_hours` stop the fit at the next step, with a checkpoint. A validation they cut short: the next session
    repeats the steps since the last checkpoint; but a session that has saved nothing yet first ends the validation.
    `precision`: float32, bfloat16, float16, another name of Lightning's, or auto for `device.best_dtype`; weights are
    float32 in any case. More than one device: start with `python -m torch.distributed.run --nproc_per_node DEVICES`,
    on several machines with --nnodes too; devices is the number of all processes.
    What the module logs, loss and lr also go where KITLIB_TRACKER says (`tracking`), with the final weights.

    monitor: a metric that validation logs, lower is better. The fit then ends with the weights of the epoch with the
    lowest finite value, and stops after `patience` epochs in a row without a lower one (0: never early). These weights
    are the module's state_dict after validation: what on_validation_epoch_end changes in the module's parameters and
    buffers is part of them, and of every checkpoint.

    average: the fit ends with the mean of the weights over this last share of its steps (`averaging`), not with the
    last ones; with a monitor there are no last ones.

    history: epoch (passes made), step, lr (the largest of the groups), seconds, loss and what training logged (means
    over the rows since the line before), and at an epoch's end what validation logged.
    Raises KitError if the folder began with other settings, none of its checkpoints can be read, a loss or weight is
    not finite, or the monitored metric is not logged by validation or was never finite.
    """
    if devices > 1 and not (processes.launched() and processes.count() == devices):
        raise KitError(f"{devices} devices: start with `python -m torch.distributed.run --nproc_per_node {devices}`")
    nodes = devices // int(os.environ["LOCAL_WORLD_SIZE"]) if devices > 1 else 1
    validates = getattr(module.validation_step, "__func__", None) is not pl.LightningModule.validation_step
    if monitor and not (val_batches and validates):
        raise KitError(f"monitor: expected val_batches and a module that validates; got only {monitor!r}")
    if monitor in OWN_NAMES:
        raise KitError(f"monitor: expected a metric of validation, none of {', '.join(OWN_NAMES)}; got {monitor!r}")
    if patience < 0 or (patience and not monitor):
        raise KitError(f"patience: expected a whole number from 0, and a monitor; got {patience}, monitor {monitor!r}")
    if monitor and average:
        raise KitError(f"average: expected 0 with a monitor, whose best weights are taken; got {average}")
    folder, device = Path(folder), best_device()
    precision = precision_of(best_dtype(device)) if precision == "auto" else precision
    precision = LIGHTNING.get(precision, precision)
    settings: dict[str, Any] = {"config": config, "rows": storage.digest(batches.rows)}
    settings |= {"batch_size": batches.batch_size}
    settings |= {"epochs": epochs, "accumulate": accumulate, "gradient_clip": gradient_clip, "seed": seed}
    settings |= {"order_seed": batches.seed, "precision": precision, "devices": devices}
    settings |= {"average": average} if average else {}
    if monitor and val_batches:  # only then does validation decide the result
        settings |= {"monitor": monitor, "patience": patience, "val_rows": storage.digest(val_batches.rows)}
    record = checkpoints.begin(folder, settings)
    if "finished" in record:
        module.load_state_dict(checkpoints.final_weights(folder), strict=module.strict_loading)
        checkpoints.clear(folder)  # where the fit was killed at its very end
        with storage.reading(folder / "fit.json", mend=checkpoints.mend(folder)):
            return Fitted(True, **record["finished"], history=_saved_history(folder))

    deadline = math.inf if max_hours is None else time.monotonic() + max_hours * 3600
    callback = ResumeCallback(folder, batches, checkpoint_steps, seed, deadline, monitor, patience)
    averaging, tracker = Averaging(average), Tracker(folder)
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        trainer = pl.Trainer(
            accelerator=device.type,
            devices=devices // nodes,
            num_nodes=nodes,
            strategy="ddp" if devices > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=gradient_clip,
            callbacks=[averaging, callback] if average else [callback],  # the latter writes checkpoints
            plugins=[checkpoints.AtomicCheckpointIO()],
            logger=tracker.loggers or False,
            log_every_n_steps=min(50, total_steps(len(batches.rows), batches.batch_size, accumulate, 1, devices)),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        for loader in filter(None, (batches, val_batches)):
            loader.shard(trainer.global_rank, trainer.world_size)
        newest = next(iter(checkpoints.listed(folder)), None)
        if trainer.is_global_zero:
            checkpoints.write(folder, record)
        try:
            trainer.fit(module, batches, val_batches, ckpt_path=newest)
        except Stopped:
            if callback.signal == signal.SIGINT:
                where = f"stopped {callback.label} at step {trainer.global_step} of {callback.steps}"
                raise Interrupted(f"{where}, which is saved: the same call, or cell, run again goes on") from None
            if callback.signal:
                raise SystemExit(128 + callback.signal) from None
        finally:
            callback.bar.close()
            if trainer.state.status != "finished":
                tracker.close(failed=True)
    finished = trainer.state.status == "finished"
    end: dict[str, Any] = {"steps": trainer.global_step, "seconds": round(callback.seconds(), 3)}
    _, end["best_epoch"] = callback.epochs_and_best()
    if finished and monitor:
        if not end["best_epoch"]:
            tracker.close(failed=True)
            raise KitError(f"{monitor} was finite after no epoch in {folder}: try a smaller learning rate")
        trainer.strategy.barrier()  # the first process may still be writing them
        module.load_state_dict(checkpoints.best_weights(folder), strict=module.strict_loading)
        trainer.strategy.barrier()  # all have read it before it goes
    if finished and average:
        averaging.apply(module)
    if finished and trainer.is_global_zero:
        checkpoints.finish(folder, record | {"finished": end}, module.state_dict())
        tracker.weights(folder / "finished.ckpt")
        log.info("%s done: %s", callback.label, callback.latest())
    tracker.close()
    trainer.strategy.barrier()
    return Fitted(finished, **end, history=pd.DataFrame(callback.lines))
