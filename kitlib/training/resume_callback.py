"""The callback that makes Lightning's loop exact: random numbers, weights, checkpoints, stopping, history, the best."""

from __future__ import annotations

import logging
import math
import random
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
from tqdm import tqdm

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.training import checkpoints

log = logging.getLogger(__name__)

LOG_EVERY = 30.0  # seconds between two lines of log; history.csv has them all
LOOK_EVERY = 16  # batches between two looks at the losses: each look makes a GPU wait


class Stopped(Exception):
    """Leaves Lightning's loop at once, everything being saved; Lightning's should_stop would first validate."""


class Keeper(pl.Callback):
    """Watches over one fit; `every`: steps between checkpoints. `deadline` may be set, on time.monotonic()'s clock.

    monitor, patience: see `fitting.fit`. What is best follows from the history alone, so a resumed fit agrees.
    """

    def __init__(
        self,
        folder: Path,
        batches: Batches,
        accumulate: int,
        every: int,
        seed: int,
        monitor: str = "",
        patience: int = 0,
    ):
        self.folder, self.batches, self.accumulate, self.every, self.seed = folder, batches, accumulate, every, seed
        self.monitor, self.patience = monitor, patience
        self.began, self.deadline = time.monotonic(), math.inf
        self.seconds_before = self.seconds_to_save = 0.0
        self.lines: list[dict[str, float]] = []  # the history
        self.sums: dict[str, float] = {}  # metric x rows, and rows, since its last line
        self.recent: list[tuple[int, int, dict[str, Tensor]]] = []  # step, rows, metrics: still on the device
        self.training_names: set[str] = set()
        self.validation_names: set[str] = set()
        self.owes_validation = False  # the epoch's last batch is done, its validation is not
        self.gradients: dict[str, Tensor] = {}  # of a group of batches that a stop has cut in two
        self.weight = self.rate = 0.0  # of the batch at work
        self.heard = 0  # the signal that asked to stop
        self.bar = tqdm(disable=True)
        self.logged = time.monotonic()

    def seconds(self) -> float:
        """Time spent, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.began

    def best_epoch(self) -> int:
        """Epochs made when the monitored metric was lowest for the first time; 0 while it never was finite."""
        values = [(line.get(self.monitor, math.nan), round(line["epoch"])) for line in self.lines]
        return min((pair for pair in values if math.isfinite(pair[0])), default=(math.inf, 0))[1]

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `on_save_checkpoint` was."""
        self.lines, self.sums, self.gradients = state["lines"], state["sums"], state["gradients"]
        self.owes_validation, self.seconds_before = state["owes_validation"], state["seconds"]
        self.batches.load_state_dict(state["batches"])

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save, and mend its counters."""
        checkpoint.pop("hyper_parameters", None)  # may hold more than plain values; fit.json has the config
        cut = self.batches.batch % self.accumulate
        checkpoint["fitting"] = {
            "lines": self.lines,
            "sums": self.sums,
            "gradients": {n: p.grad for n, p in module.named_parameters() if cut and p.grad is not None},
            "owes_validation": self.owes_validation,
            "seconds": self.seconds(),
            "batches": self.batches.state_dict(),
        }
        # Lightning counts this batch, and this epoch, as not quite done yet, and miscounts when it resumes from that
        # twice; where all counts agree it has nothing to guess (a validation that is owed is seen to in `fit`)
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step  # what loggers count with
        for part in ("total", "current"):
            count = loop["epoch_loop.batch_progress"][part]
            count["completed"] = count["ready"]
            if self.batches.batch == 0:
                loop["epoch_progress"][part] = dict.fromkeys(loop["epoch_progress"][part], self.batches.epoch)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Put back the gradients of a group that was cut in two, and show the progress."""
        self._listen()
        for name, parameter in module.named_parameters():
            if name in self.gradients:
                parameter.grad = self.gradients[name].to(parameter.device)
        self.bar = tqdm(
            desc=self.folder.name,
            total=math.ceil(len(self.batches) / self.accumulate) * (trainer.max_epochs or 0),
            initial=trainer.global_step,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 10,  # notebooks and log files keep every update
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this batch, and find its weight: its rows' share of the group's rows."""
        self._seed(trainer, module, trainer.current_epoch, batch_idx)
        first = batch_idx - batch_idx % self.accumulate
        group = sum(map(self.batches.count, range(first, min(first + self.accumulate, len(self.batches)))))
        # Lightning has divided the loss by `accumulate`, and DDP will average over the processes
        self.weight = self.batches.own_count(batch_idx) * self.accumulate * self.batches.world / group
        self.rate = max(parameters["lr"] for parameters in trainer.optimizers[0].param_groups)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Weigh the gradient; the loss that is logged stays as it is."""
        weight = self.weight
        if weight != 1:
            loss.register_hook(lambda gradient: gradient * weight)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the metrics; write a line of history, save and stop where it is time."""
        last = batch_idx + 1 == len(self.batches)
        stepped = last or (batch_idx + 1) % self.accumulate == 0
        metrics = {n: v for n, v in trainer.callback_metrics.items() if n not in self.validation_names}
        self.training_names |= metrics.keys()
        metrics["loss"] = outputs["loss"] * self.accumulate
        self.recent.append((trainer.global_step + (not stepped), self.batches.own_count(batch_idx), metrics))
        self.bar.update(stepped)
        due = last or (stepped and trainer.global_step % self.every == 0)
        # processes agree at steps only: between them each has gradients of its own, which are not saved
        stop = (stepped or self.batches.world == 1) and self._has_to_stop(trainer)
        if due or stop or len(self.recent) == LOOK_EVERY:
            self._look(trainer)
        if due:
            self.owes_validation = last and trainer.enable_validation
            self._write_line(trainer, trainer.current_epoch + (batch_idx + 1) / len(self.batches))
        if due or stop:
            self._save(trainer, module)
        if stop:
            raise Stopped

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Listen here too: `fit` may begin with a validation that is owed; which draws what it would have drawn."""
        self._listen()
        self._seed(trainer, module, self.batches.epoch - 1, len(self.batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop where it is time; the epoch's end is saved, and validation begins anew next time."""
        if self._has_to_stop(trainer):
            raise Stopped

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Add what validation logged to the epoch's line; keep the best weights, and end early where it is time."""
        metrics = {n: v.item() for n, v in trainer.callback_metrics.items() if n not in self.training_names}
        metrics = trainer.strategy.broadcast(metrics)  # the processes agree, whatever each of them has logged
        if self.monitor and self.monitor not in metrics:
            logged = ", ".join(sorted(metrics)) or "nothing"
            raise KitError(f"monitor {self.monitor!r} is not what validation logs: allowed is one of {logged}")
        self.validation_names, self.owes_validation = set(metrics), False
        self.lines[-1] |= metrics
        if self.monitor:
            made, best = self.batches.epoch, self.best_epoch()
            if best == made and trainer.is_global_zero:
                checkpoints.keep_best(self.folder, module.state_dict())
            if self.patience and made - best >= self.patience:
                # unlike should_stop this holds for the fit that follows a validation that was owed, and resumes alike
                trainer.fit_loop.max_epochs = made
        self._write_history(trainer)

    def _seed(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int, batch: int) -> None:
        number = int(np.random.SeedSequence([self.seed, trainer.global_rank, epoch, batch]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (a module may draw on any of these)
        torch.default_generator.manual_seed(number)  # torch.manual_seed() sees to every kind of device, and takes 1 ms
        if module.device.type != "cpu":
            torch.get_device_module(module.device.type).manual_seed(number)

    def _listen(self) -> None:
        """Take the signals over from Lightning, which would stop without saving; its teardown gives them back."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self.heard = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    def _has_to_stop(self, trainer: pl.Trainer) -> bool:
        has_to = bool(self.heard) or time.monotonic() + self.seconds_to_save >= self.deadline
        return trainer.strategy.reduce_boolean_decision(has_to, all=False)

    def _look(self, trainer: pl.Trainer) -> None:
        """Add the recent batches of all processes to the sums; a loss that is not finite ends the fit."""
        if not self.recent:
            return
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

    def _refuse(self, what: str) -> None:
        good = next(iter(checkpoints.listed(self.folder)), "none yet")
        raise KitError(f"{what}; the last good checkpoint: {good}; try a smaller learning rate")

    def _write_line(self, trainer: pl.Trainer, epoch: float) -> None:
        rows = self.sums.pop("rows")
        line = {"epoch": round(epoch, 4), "step": trainer.global_step, "lr": self.rate}
        line |= {"seconds": round(self.seconds(), 3)} | {name: total / rows for name, total in self.sums.items()}
        self.lines.append(line)
        for logger in trainer.loggers:  # Lightning counts steps from zero here
            logger.log_metrics({"loss": line["loss"], "lr": line["lr"]}, step=trainer.global_step - 1)
        self.sums = {}
        self._write_history(trainer)

    def _write_history(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            with storage.atomic_write(self.folder / "history.csv") as beside:
                pd.DataFrame(self.lines).to_csv(beside, index=False)
            self.bar.set_postfix_str(f"loss {self.lines[-1]['loss']:.4g}", refresh=False)
            if not self.owes_validation and time.monotonic() - self.logged > LOG_EVERY:
                log.info("%s: %s", self.folder.name, self.latest())
                self.logged = time.monotonic()

    def latest(self) -> str:
        """The last line of the history, as text."""
        return ", ".join(f"{name} {value:.5g}" for name, value in self.lines[-1].items())

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        began = time.monotonic()
        weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not torch.nn.utils.get_total_norm(weights).isfinite():
            self._refuse(f"the weights are not finite after step {trainer.global_step}")
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        try:
            trainer.save_checkpoint(path)
        except (OSError, RuntimeError) as error:
            raise KitError(f"{path} could not be written ({error}); those before it are kept") from error
        self.seconds_to_save = time.monotonic() - began
