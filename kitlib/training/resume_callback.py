"""The callback behind `fit.fit`: seeds, checkpoints at optimizer steps, stopping, history, and the best weights."""

from __future__ import annotations

import logging
import math
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.progress import Bar
from kitlib.data.loader import Batches
from kitlib.training import checkpoints

log = logging.getLogger(__name__)

LOG_EVERY = 30.0  # seconds between two lines of log; history.csv has them all
LOOK_EVERY = 16  # batches between two checks of the losses: each makes a GPU wait


class Stopped(Exception):
    """Leaves Lightning's loop at once; Lightning's should_stop would first validate."""


class ResumeCallback(pl.Callback):
    """Lets a fit stop at any step and resume exactly; `every`: steps between checkpoints.

    deadline: on time.monotonic()'s clock. monitor, patience: see `fit.fit`. Lightning itself saves and restores the
    weights, the optimizer, its counters and the place of `batches`; this callback adds the history. The checkpoint of
    an epoch's last step is written after validation, so whoever stops in between repeats the steps since the last one.
    """

    def __init__(
        self, folder: Path, batches: Batches, every: int, seed: int, deadline: float, monitor: str, patience: int
    ):
        self.folder, self.batches, self.every, self.seed = folder, batches, every, seed
        self.deadline, self.monitor, self.patience = deadline, monitor, patience
        self.began = time.monotonic()
        self.seconds_before = self.seconds_to_save = 0.0
        self.lines: list[dict[str, float]] = []  # the history
        self.sums: dict[str, float] = {}  # metric x rows, and rows, since its last line
        self.recent: list[tuple[int, int, dict[str, Tensor]]] = []  # step, rows, metrics: still on the device
        self.validation_names: set[str] = set()
        self.ended = False  # the last epoch was told to be the last
        self.saved = False  # this session has made progress
        self.weight = self.rate = 0.0  # of the current batch
        self.signal = 0  # the signal that asked to stop
        self.bar = Bar(disable=True)
        self.steps = 0  # of the whole fit
        self.logged = time.monotonic()

    @property
    def label(self) -> str:
        """The fit's name for people, such as "fold 0 heads": the folder's, from that of its fold on."""
        parts = self.folder.parts
        first = next((k for k, part in enumerate(parts) if re.fullmatch(r"fold_\d+", part)), len(parts) - 1)
        return " ".join(parts[first:]).replace("fold_", "fold ")

    def seconds(self) -> float:
        """Time spent, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.began

    def epochs_and_best(self) -> tuple[int, int]:
        """Epochs validated, and the one with the lowest finite value of `monitor` (the first of equals; 0: none)."""
        values = [line[self.monitor] for line in self.lines if self.monitor in line]
        lowest = min(filter(math.isfinite, values), default=None)
        return len(values), 0 if lowest is None else values.index(lowest) + 1

    def state_dict(self) -> dict[str, Any]:
        """Lightning puts this into each checkpoint."""
        return {"lines": self.lines, "sums": self.sums, "ended": self.ended, "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.lines, self.sums, self.ended = state_dict["lines"], state_dict["sums"], state_dict["ended"]
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Handle the signals, as Lightning would stop without saving; its teardown restores the handlers before."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
        trainer.should_stop = self.ended
        self.steps = int(trainer.estimated_stepping_batches)
        if trainer.global_step:
            log.info("resuming %s at step %d of %d", self.label, trainer.global_step, self.steps)
        self.bar = Bar(
            desc=self.label,
            total=self.steps,
            initial=trainer.global_step,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 10,  # log files keep every update
            disable=not trainer.is_global_zero,
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Tell the loader its epoch: Lightning restores a loader's place only within an epoch."""
        self.batches.load_state_dict({"epoch": trainer.current_epoch, "batch": 0})

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this batch, and find its weight: its rows' share of the group's rows."""
        self._seed(trainer, module, batch_idx)
        accumulate = trainer.accumulate_grad_batches
        first = batch_idx - batch_idx % accumulate
        group = sum(map(self.batches.count, range(first, min(first + accumulate, len(self.batches)))))
        # Lightning has divided the loss by `accumulate`, and DDP will average over the processes
        self.weight = self.batches.own_count(batch_idx) * accumulate * self.batches.world / group
        self.rate = max(parameters["lr"] for parameters in trainer.optimizers[0].param_groups)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Weight the gradient; the logged loss stays as it is."""
        weight = self.weight
        if weight != 1:
            loss.register_hook(lambda gradient: gradient * weight)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the metrics; after a step, write a line of history, save and stop when it is time."""
        last = batch_idx + 1 == len(self.batches)
        stepped = last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        metrics = {n: v for n, v in trainer.callback_metrics.items() if n not in self.validation_names}
        metrics["loss"] = outputs["loss"] * trainer.accumulate_grad_batches
        self.recent.append((trainer.global_step + (not stepped), self.batches.own_count(batch_idx), metrics))
        self.bar.update(stepped)
        due = last or (stepped and trainer.global_step % self.every == 0)
        stop = stepped and not last and self._must_stop(trainer)
        if due or stop or len(self.recent) == LOOK_EVERY:
            self._sum_up(trainer)
        if due:
            self._add_line(trainer, trainer.current_epoch + (batch_idx + 1) / len(self.batches))
        if (due or stop) and not last:
            self._save(trainer, module)
        if stop:
            raise Stopped

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Seed as for one more batch."""
        self._seed(trainer, module, len(self.batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop when it is time; but a session that has saved nothing yet first finishes its epoch, to get ahead."""
        if self.saved and self._must_stop(trainer):
            raise Stopped

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Add the validation metrics to the epoch's line; save the best weights, and end early when it is time."""
        metrics = {n: v.item() for n, v in trainer.callback_metrics.items() if n not in self.lines[-1]}
        metrics = trainer.strategy.broadcast(metrics)  # each process may have logged values of its own
        if self.monitor and self.monitor not in metrics:
            logged = ", ".join(sorted(metrics)) or "nothing"
            raise KitError(f"monitor: expected a metric that validation logs ({logged}); got {self.monitor!r}")
        self.validation_names = set(metrics)
        self.lines[-1] |= metrics
        epochs, best = self.epochs_and_best()
        if self.monitor and best == epochs and trainer.is_global_zero:
            checkpoints.save_best(self.folder, module.state_dict())
        trainer.should_stop |= 0 < self.patience <= epochs - best

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the epoch, its validation included."""
        self.ended = trainer.should_stop
        self._save(trainer, module)
        if self._must_stop(trainer):
            raise Stopped

    def latest(self) -> str:
        """The last line of the history, as text."""
        return ", ".join(f"{name} {value:.5g}" for name, value in self.lines[-1].items())

    def _seed(self, trainer: pl.Trainer, module: pl.LightningModule, batch: int) -> None:
        entropy = [self.seed, trainer.global_rank, trainer.current_epoch, batch]
        number = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (a module may draw on any of these)
        torch.default_generator.manual_seed(number)  # torch.manual_seed() sees to every kind of device, and takes 1 ms
        if module.device.type != "cpu":
            torch.get_device_module(module.device.type).manual_seed(number)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    def _must_stop(self, trainer: pl.Trainer) -> bool:
        stop = bool(self.signal) or time.monotonic() + self.seconds_to_save >= self.deadline
        return trainer.strategy.reduce_boolean_decision(stop, all=False)

    def _sum_up(self, trainer: pl.Trainer) -> None:
        """Add the recent batches of all processes to the sums; a loss that is not finite ends the fit."""
        names = list(self.recent[0][2])
        values = torch.stack([torch.stack([m[n].detach().float() for n in names]) for _, _, m in self.recent])
        rows = torch.tensor([[float(rows)] for _, rows, _ in self.recent], device=values.device)
        summed = trainer.strategy.reduce(torch.cat([values * rows, rows], 1), reduce_op="sum").tolist()
        for (step, _, _), row in zip(self.recent, summed, strict=True):
            batch = dict(zip([*names, "rows"], row, strict=True))
            if not math.isfinite(batch["loss"]):
                self._refuse(f"the loss is {batch['loss'] / batch['rows']} at step {step}")
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in batch.items()}
        self.recent.clear()

    def _refuse(self, reason: str) -> None:
        good = next(iter(checkpoints.listed(self.folder)), "none yet")
        raise KitError(f"{reason}; the last good checkpoint: {good}; try a smaller learning rate")

    def _add_line(self, trainer: pl.Trainer, epoch: float) -> None:
        rows = self.sums.pop("rows")
        line = {"epoch": round(epoch, 4), "step": trainer.global_step, "lr": self.rate}
        line |= {"seconds": round(self.seconds(), 3)} | {name: total / rows for name, total in self.sums.items()}
        self.lines.append(line)
        self.sums = {}
        for logger in trainer.loggers:  # Lightning counts steps from zero here
            logger.log_metrics({"loss": line["loss"], "lr": line["lr"]}, step=trainer.global_step - 1)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write history.csv, then a checkpoint; weights that are not finite end the fit."""
        began = time.monotonic()
        if trainer.is_global_zero and self.lines:
            with storage.atomic_write(self.folder / "history.csv") as beside:
                pd.DataFrame(self.lines).to_csv(beside, index=False)
            self.bar.set_postfix_str(f"loss {self.lines[-1]['loss']:.4g}", refresh=False)
            if began - self.logged > LOG_EVERY:
                log.info("%s: %s", self.label, self.latest())
                self.logged = began
        weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not torch.nn.utils.get_total_norm(weights).isfinite():
            self._refuse(f"the weights are not finite after step {trainer.global_step}")
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}.ckpt")
        self.saved, self.seconds_to_save = True, time.monotonic() - began
