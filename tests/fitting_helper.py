"""A tiny fit that test_fit.py also starts as processes: python fitting_helper.py FOLDER [name=value ...]."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import nn

from kitlib.data import loader as data_loader
from kitlib.training import checkpoints
from kitlib.training import fit as fitting

N, D = 22, 6
FEATURES = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
TARGETS = FEATURES[:, :1] * 2 - FEATURES[:, 1:2]


class Module(pl.LightningModule):
    """A regression with everything that could break an exact resume: dropout, noise, batch statistics, momentum."""

    def __init__(
        self, steps: int, dropout: float = 0.5, rate: float = 0.05, pause: float = 0, own_values: bool = False
    ):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))
        if dropout == 0:  # nothing that depends on how rows fall into batches
            self.net = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 1))
        self.noise, self.rate, self.steps, self.pause = dropout > 0, rate, steps, pause
        self.own_values = own_values  # each process logs what validation gives it alone
        self.before_batch = self.before_validation = lambda epoch, batch: None
        self.train_calls = 0

    def training_step(self, batch, batch_idx):
        self.train_calls += 1
        self.before_batch(self.current_epoch, batch_idx)
        time.sleep(self.pause)
        x = batch["x"]
        if self.noise:
            x = x + torch.randn_like(x) * 0.1 + np.random.normal() * 0.01  # noqa: NPY002
        loss = (self.net(x) - batch["y"]).square().mean()
        self.log("root", loss.sqrt())
        return loss

    def validation_step(self, batch, batch_idx):
        self.before_validation(self.current_epoch, batch_idx)
        loss = (self.net(batch["x"]) - batch["y"]).square().mean()
        self.log("val_loss", loss, batch_size=len(batch["x"]), sync_dist=not self.own_values)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        return [optimizer], [{"scheduler": fitting.warmup_cosine(optimizer, self.steps, 0.1), "interval": "step"}]


def make(folder, epochs=3, batch_size=4, accumulate=1, devices=1, rows=N, double=False, **options):
    """A module and the arguments of `fit`; what is not an option of the module is one of fit's."""
    mine = {name: options.pop(name) for name in ("dropout", "rate", "pause", "own_values") if name in options}
    module = Module(fitting.total_steps(rows, batch_size, accumulate, epochs, devices), **mine)
    kind = torch.float64 if double else torch.float32

    def load(rows):
        rows = torch.from_numpy(rows)
        return {"x": FEATURES[rows].to(kind), "y": TARGETS[rows].to(kind), "row": rows}

    # One number type on every processor, as the values in the tests are of float32.
    defaults = {"config": {"rate": module.rate}, "val_batches": data_loader.Batches(7, 3, 0, load, shuffle=False)}
    options = defaults | {"precision": "float32"} | options
    options |= {"epochs": epochs, "accumulate": accumulate, "devices": devices}
    loader = data_loader.Batches(rows, batch_size, 5, load, prefetch=True)
    return module, loader, Path(folder), options


def fit(folder, **options):
    """The module and what `fit` gives."""
    module, batches, folder, options = make(folder, **options)
    return module, fitting.fit(module, batches, folder, **options)


def weights(module) -> bytes:
    """All parameters and buffers, as bytes."""
    return b"".join(value.numpy().tobytes() for value in module.state_dict().values())


def error(module) -> float:
    """Mean squared error over all rows."""
    return (module.eval().net(FEATURES) - TARGETS).square().mean().item()


@cache
def whole(accumulate: int = 1, precision: str = "float32") -> tuple[bytes, pd.DataFrame]:
    """Weights and history of a fit that was never stopped."""
    with TemporaryDirectory() as folder:
        module, fitted = fit(folder, accumulate=accumulate, checkpoint_steps=4, precision=precision)
    assert fitted.finished and fitted.steps == module.steps
    return weights(module), fitted.history


def same_history(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """The same to the last bit, but for the clock."""
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_exact=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "SLOW_DISK" in os.environ:
        write = checkpoints.save_best
        checkpoints.save_best = lambda *given: (time.sleep(0.5), write(*given))
    options = {name: json.loads(value) for name, value in (word.split("=") for word in sys.argv[2:])}
    for name, hours in {"at once": None, "in pieces": 0}.items() if "devices" in options else [("", None)]:
        sessions, finished = 0, False
        while not finished:
            module, fitted = fit(Path(sys.argv[1]) / name, max_hours=hours, **options)
            sessions, finished = sessions + 1, fitted.finished
        answer = {"sessions": sessions, "steps": fitted.steps, "best_epoch": fitted.best_epoch}
        answer |= {"loss": error(module), "weights": weights(module).hex()}
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            print(json.dumps(answer | {"history": fitted.history["loss"].tolist()}), flush=True)
