"""fitting with a monitor: the best epoch's weights, an early end, and both exact wherever a fit is killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import fitting_helper as helper
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import Damaged, KitError
from kitlib.data.loader import Batches
from kitlib.training import checkpoints
from kitlib.training import fit as fitting
from kitlib.training.resume_callback import ResumeCallback

# the metric: 2.04 1.96 2.54 2.39 1.41 1.44, so patience 2 ends after four epochs of six with the second
OPTIONS = {"epochs": 6, "rate": 0.3, "checkpoint_steps": 4}
MONITOR = OPTIONS | {"monitor": "val_loss", "patience": 2}
LEFT = ["finished.ckpt", "fit.json", "history.csv"]


class Killed(BaseException):
    """Nothing in the kit catches it, as nothing catches a kill."""


def kill(*_) -> None:
    raise Killed


@cache
def every_epoch() -> tuple[list[bytes], pd.DataFrame]:
    """Weights after each epoch, and the history, of a fit without a monitor."""
    kept = []
    with TemporaryDirectory() as folder:
        module, batches, folder, options = helper.make(folder, **OPTIONS)
        module.on_validation_end = lambda: kept.append(helper.weights(module))
        return kept, fitting.fit(module, batches, folder, **options).history


def assert_best(module, fitted, epoch=2, made=4) -> None:
    """The weights of that epoch, and the history of the epochs made, of the fit without a monitor."""
    kept, history = every_epoch()
    assert fitted.finished and fitted.best_epoch == epoch and fitted.steps == 6 * made
    assert helper.weights(module) == kept[epoch - 1]
    helper.same_history(fitted.history, history[history["epoch"] <= made])


@pytest.mark.parametrize(("patience", "epoch", "made"), [(0, 5, 6), (1, 2, 3), (2, 2, 4), (3, 5, 6)])
def test_the_best_weights_and_the_early_end(tmp_path, patience, epoch, made):
    module, fitted = helper.fit(tmp_path, **MONITOR | {"patience": patience})
    assert_best(module, fitted, epoch, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == LEFT
    helper.same_history(pd.read_csv(tmp_path / "history.csv"), fitted.history)
    module, again = helper.fit(tmp_path, **MONITOR | {"patience": patience})
    assert module.train_calls == 0
    assert_best(module, again, epoch, made)


def test_the_best_weights_are_in_the_folder_meanwhile(tmp_path):
    module, batches, folder, options = helper.make(tmp_path, **MONITOR)
    seen = []
    module.before_batch = lambda epoch, batch: (
        batch == 5 and epoch and seen.append(checkpoints.best_weights(tmp_path)["net.0.weight"].numpy().tobytes())
    )
    fitting.fit(module, batches, folder, **options)
    size = len(seen[0])
    assert seen == [kept[:size] for kept in (every_epoch()[0][i] for i in (0, 1, 1))]


def test_stopped_at_every_step(tmp_path):
    for _ in range(24):
        module, batches, folder, options = helper.make(tmp_path, **MONITOR)
        module.before_batch = lambda epoch, batch: signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            fitting.fit(module, batches, folder, **options)
    module, fitted = helper.fit(tmp_path, **MONITOR)
    assert module.train_calls == 0
    assert_best(module, fitted)


@pytest.mark.parametrize(
    ("hook", "times", "repeated"),
    [("on_validation_epoch_end", 2, 4), ("on_validation_end", 2, 4), ("on_train_epoch_end", 1, 0)],
)
def test_killed_around_every_validation(tmp_path, hook, times, repeated):
    """Before the metrics are read, after the best weights are saved, and when the epoch is saved."""
    for epoch in range(4):
        for _ in range(times):
            module, batches, folder, options = helper.make(tmp_path, **MONITOR)
            setattr(module, hook, lambda epoch=epoch, module=module: module.current_epoch == epoch and kill())
            with pytest.raises(Killed):
                fitting.fit(module, batches, folder, **options)
    module, fitted = helper.fit(tmp_path, **MONITOR)
    assert module.train_calls == repeated
    assert_best(module, fitted)


def test_terminated_in_every_validation(tmp_path):
    for epoch in range(4):
        for _ in range(2):
            module, batches, folder, options = helper.make(tmp_path, **MONITOR)
            module.before_validation = lambda e, b, epoch=epoch: (e, b) == (epoch, 1) and signal.raise_signal(15)
            with pytest.raises(SystemExit):
                fitting.fit(module, batches, folder, **options)
    assert_best(*helper.fit(tmp_path, **MONITOR))


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_a_write(tmp_path, monkeypatch, write, moment):
    """Before and after each rename at the end of a fit, from the best weights of its only epoch on."""
    options = OPTIONS | {"epochs": 1, "monitor": "val_loss", "patience": 1}
    whole, _ = helper.fit(tmp_path / "whole", **options)
    replace, names = Path.replace, []

    def replace_or_die(path, target):
        names.append(target.name)
        fatal = "best.ckpt" in names and len(names) - names.index("best.ckpt") == write
        if fatal and moment == "before":
            kill()
        replace(path, target)
        if fatal:
            kill()

    module, batches, folder, given = helper.make(tmp_path / "killed", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        try:
            fitting.fit(module, batches, folder, **given)
            killed = False
        except Killed:
            killed = True
    assert killed == (write <= 5)  # best.ckpt, history.csv, step-00000006.ckpt, finished.ckpt, fit.json
    module, fitted = helper.fit(folder, **options)
    assert helper.weights(module) == helper.weights(whole) and fitted.best_epoch == 1
    assert module.train_calls == (2 if write < 3 or (write, moment) == (3, "before") else 0)
    assert sorted(path.name for path in folder.iterdir()) == LEFT


def test_max_hours(tmp_path):
    fitted, sessions = None, 0
    while not (fitted and fitted.finished):
        module, fitted = helper.fit(tmp_path, max_hours=0, **MONITOR)
        sessions += 1
        assert fitted.steps == min(sessions, 24) and fitted.best_epoch == min(fitted.steps // 6, 2)
    assert sessions == 25
    assert_best(module, fitted)


def test_an_older_checkpoint_meets_newer_best_weights(tmp_path):
    """The second epoch's best weights are kept, then its checkpoint turns out to be damaged."""
    module, batches, folder, options = helper.make(tmp_path, **MONITOR)
    module.on_validation_end = lambda: module.current_epoch == 1 and kill()
    with pytest.raises(Killed):
        fitting.fit(module, batches, folder, **options)
    checkpoints.listed(tmp_path)[0].write_bytes(b"")
    assert_best(*helper.fit(tmp_path, **MONITOR))


def test_best_weights_that_cannot_be_read_are_told(tmp_path):
    helper.fit(tmp_path, max_hours=0, **MONITOR)
    with pytest.raises(Damaged, match=r"best\.ckpt in .*: expected a checkpoint; there is no such file: delete"):
        checkpoints.best_weights(tmp_path)
    (tmp_path / "best.ckpt").write_bytes(b"PK")
    with pytest.raises(Damaged, match=r"best\.ckpt in .*: expected a whole checkpoint; got BadZipFile"):
        checkpoints.best_weights(tmp_path)


class Regions(helper.Module):
    """Keeps the best weights of two groups of rows in buffers, each of an epoch of its own; validation draws."""

    def __init__(self, steps: int):
        super().__init__(steps, rate=OPTIONS["rate"])
        self.register_buffer("lowest", torch.full((2,), math.inf))
        self.register_buffer("when", torch.full((2, 2), -1))
        self.register_buffer("best", torch.zeros(2, *self.net[0].weight.shape))
        self.sums = torch.zeros(2)

    def on_validation_epoch_start(self):
        self.sums = torch.zeros(2)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        squares = (self.net(batch["x"] + torch.randn_like(batch["x"]) * 0.1) - batch["y"]).square().flatten()
        self.sums += torch.stack([squares[batch["row"] % 2 == region].sum() for region in range(2)])

    def on_validation_epoch_end(self):
        for region in torch.nonzero(self.sums < self.lowest).flatten():
            self.lowest[region], self.best[region] = self.sums[region], self.net[0].weight
            self.when[region] = torch.tensor([self.current_epoch, self.global_step])
        self.log("lowest", self.lowest.mean())


@pytest.mark.parametrize("monitor", [{}, {"monitor": "lowest", "patience": 2}])
def test_what_validation_changes_in_the_module_is_not_lost(tmp_path, monitor):
    def fit(name, kill_at=None):
        _, batches, folder, options = helper.make(tmp_path / name, **OPTIONS | monitor)
        module = Regions(36)
        module.on_validation_end = lambda: module.current_epoch == kill_at and kill()
        return module, fitting.fit(module, batches, folder, **options)

    whole, fitted = fit("whole")
    made = round(fitted.history["epoch"].max())
    for epoch in range(made):
        with pytest.raises(Killed):
            fit("killed", epoch)
    killed, again = fit("killed")
    assert set(whole.when[:, 0].tolist()) != {0} and whole.when[:, 1].equal(6 * (whole.when[:, 0] + 1))
    assert whole.when.equal(killed.when) and helper.weights(whole) == helper.weights(killed)
    assert fitted.best_epoch == again.best_epoch and (fitted.best_epoch > 0) == bool(monitor)
    helper.same_history(fitted.history, again.history)


def test_an_end_that_the_module_asks_for_is_not_lost(tmp_path):
    for _ in range(2):
        module, batches, folder, options = helper.make(tmp_path, **OPTIONS)
        module.on_validation_epoch_end = lambda module=module: setattr(
            module.trainer, "should_stop", module.current_epoch == 1
        )
        module.on_train_epoch_end = lambda module=module: module.current_epoch == 1 and kill()
        with contextlib.suppress(Killed):
            fitted = fitting.fit(module, batches, folder, **options)
    assert fitted.finished and fitted.steps == 12 and module.train_calls == 0
    assert helper.weights(module) == every_epoch()[0][1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_no_improvement(tmp_path, value):
    def logging(module, bad):
        module.on_validation_epoch_end = lambda: module.log("odd", value if module.current_epoch in bad else 1.0)

    module, batches, folder, options = helper.make(tmp_path / "some", **MONITOR | {"monitor": "odd"})
    logging(module, {0, 2})
    fitted = fitting.fit(module, batches, folder, **options)
    assert (fitted.best_epoch, fitted.steps) == (2, 24) and helper.weights(module) == every_epoch()[0][1]
    for _ in range(2):  # going on does not make it better
        module, batches, folder, options = helper.make(tmp_path / "none", **MONITOR | {"monitor": "odd"})
        logging(module, range(6))
        with pytest.raises(KitError, match="odd was finite after no epoch"):
            fitting.fit(module, batches, folder, **options)
        assert module.train_calls in (12, 0)


def test_what_cannot_be_monitored_is_refused(tmp_path, monkeypatch):
    with pytest.raises(KitError, match=r"expected a metric that validation logs \(val_loss\); got 'val_los'"):
        helper.fit(tmp_path / "a", **MONITOR | {"monitor": "val_los"})
    with pytest.raises(KitError, match="got 'root'"):
        helper.fit(tmp_path / "b", **MONITOR | {"monitor": "root"})
    with pytest.raises(KitError, match="expected val_batches"):
        helper.fit(tmp_path / "c", val_batches=None, **MONITOR)
    with pytest.raises(KitError, match="metric of validation, none of epoch, step, lr, seconds, loss; got 'loss'"):
        helper.fit(tmp_path / "c", **MONITOR | {"monitor": "loss"})
    for options in ({"patience": 1}, {"monitor": "val_loss", "patience": -1}):
        with pytest.raises(KitError, match="patience"):
            helper.fit(tmp_path / "c", **OPTIONS | options)
    module, batches, folder, options = helper.make(tmp_path / "c", **MONITOR)
    monkeypatch.delattr(helper.Module, "validation_step")
    with pytest.raises(KitError, match="a module that validates"):
        fitting.fit(module, batches, folder, **options)
    assert not folder.exists()


def test_settings_of_another_fit_are_refused_and_those_of_an_older_kit_are_not(tmp_path):
    helper.fit(tmp_path / "with", max_hours=0, **MONITOR)
    for change, told in {"patience": "patience was 2, now 3", "monitor": "monitor was 'val_loss', now 'root'"}.items():
        other = {"patience": 3, "monitor": "root"}[change]
        with pytest.raises(KitError, match=told):
            helper.fit(tmp_path / "with", max_hours=0, **MONITOR | {change: other})
    with pytest.raises(KitError, match="val_rows was"):
        rows = Batches(6, 3, 0, lambda rows: {"row": rows}, shuffle=False)
        helper.fit(tmp_path / "with", max_hours=0, **MONITOR, val_batches=rows)
    helper.fit(tmp_path / "without", max_hours=0, **OPTIONS)
    record = json.loads((tmp_path / "without" / "fit.json").read_text())
    assert not {"monitor", "patience", "val_rows"} & record["settings"].keys()
    with pytest.raises(KitError, match="monitor was 'unset', now 'val_loss'"):
        helper.fit(tmp_path / "without", max_hours=0, **MONITOR)
    helper.fit(tmp_path / "without", **OPTIONS)
    record = json.loads((tmp_path / "without" / "fit.json").read_text())
    assert record["finished"].pop("best_epoch") == 0
    (tmp_path / "without" / "fit.json").write_text(json.dumps(record))
    assert helper.fit(tmp_path / "without", **OPTIONS)[1].best_epoch == 0


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.5, math.nan, math.inf, -math.inf]), max_size=8))
def test_best_epoch_is_the_first_that_is_lower_than_all_before(values):
    callback = ResumeCallback(Path(), Batches(1, 1, 0, dict), 1, 0, math.inf, "m", 0)
    for epoch, value in enumerate(values, 1):
        callback.lines += [{"epoch": epoch - 0.5}, {"epoch": float(epoch), "m": value}]
    best, lowest = 0, math.inf
    for epoch, value in enumerate(values, 1):
        if math.isfinite(value) and value < lowest:
            best, lowest = epoch, value
    assert callback.epochs_and_best() == (len(values), best)


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    """Rank zero's value, 9.2 4.1 6.8 9.1, ends the fit, rank one's would not; at once and stopped after each step.

    The best weights, which rank zero writes and both read, take long to write.
    """
    settings = MONITOR | {"rate": 0.5, "dropout": 0, "batch_size": 6, "devices": 2, "own_values": True}
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KITLIB_DEVICE": "cpu", "SLOW_DISK": "1"}
    environment |= {"KITLIB_PRECISION": "float32"}
    done = subprocess.run(
        [*torchrun, helper.__file__, tmp_path, *words], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    at_once, in_pieces = (json.loads(line) for line in done.stdout.splitlines())
    assert (at_once["steps"], at_once["best_epoch"], at_once["sessions"]) == (8, 2, 1)
    assert in_pieces == at_once | {"sessions": 9}
    for name in ("at once", "in pieces"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == LEFT
