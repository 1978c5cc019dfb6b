"""resume_callback: stops at any step and resumes bit for bit, weighs gradients rightly, keeps an honest history."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import fitting_helper as helper
import numpy as np
import pandas as pd
import pytest
import torch

from kitlib.core.errors import Interrupted, KitError
from kitlib.training import fit, resume_callback


def test_history(tmp_path):
    history = helper.whole()[1]
    assert history["step"].tolist() == [4, 6, 8, 12, 16, 18]
    assert history["epoch"].tolist() == pytest.approx([4 / 6, 1, 8 / 6, 2, 16 / 6, 3], abs=1e-4)
    assert history["val_loss"].isna().tolist() == [True, False, True, False, True, False]
    assert history[["loss", "root", "lr"]].notna().all(axis=None)
    assert history["val_loss"].dropna().is_monotonic_decreasing
    helper.fit(tmp_path, checkpoint_steps=4)
    helper.same_history(pd.read_csv(tmp_path / "history.csv"), history)


def test_log_has_a_line_of_history_from_time_to_time(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(resume_callback, "LOG_EVERY", 0.0)
    caplog.set_level("INFO", logger="kitlib.training.resume_callback")
    history = helper.fit(tmp_path, checkpoint_steps=4)[1].history
    lines = [record.getMessage() for record in caplog.records if record.name == "kitlib.training.resume_callback"]
    assert len(lines) == len(history)
    assert ["val_loss" in line for line in lines] == history["val_loss"].notna().tolist()


def test_history_means_are_over_rows(tmp_path):
    seen = []
    module, batches, folder, options = helper.make(tmp_path, epochs=1, accumulate=4, dropout=0, rate=0.0)
    step = module.training_step

    def training_step(batch, batch_idx):
        loss = step(batch, batch_idx)
        seen.append((loss.item(), len(batch["x"])))
        return loss

    module.training_step = training_step
    history = fit.fit(module, batches, folder, **options).history
    losses, rows = np.array(seen).T
    assert rows.tolist() == [4, 4, 4, 4, 4, 2]
    assert history["loss"].item() == pytest.approx(np.average(losses, weights=rows), rel=1e-6)
    assert history["root"].item() == pytest.approx(np.average(np.sqrt(losses), weights=rows), rel=1e-6)


@pytest.mark.parametrize(
    ("batches_of_steps", "options"),
    [([1] * 18, {}), ([1] * 18, {"val_batches": None}), ([4, 2] * 3, {"accumulate": 4})],
)
def test_sigterm_at_every_step_resumes_bit_for_bit(tmp_path, batches_of_steps, options):
    """Stop in each step of three epochs; no batch is done twice, and a group of batches is not cut in two."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    options = options | {"checkpoint_steps": 4}
    for batches_of_step in batches_of_steps:
        module, batches, folder, given = helper.make(tmp_path, **options)
        module.before_batch = lambda epoch, batch: signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as exit:
            fit.fit(module, batches, folder, **given)
        assert exit.value.code == 143 and module.train_calls == batches_of_step
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        assert len(list(tmp_path.glob("step-*.ckpt"))) <= 2
    module, fitted = helper.fit(tmp_path, **options)
    weights, history = helper.whole(options.get("accumulate", 1))
    assert fitted.finished and module.train_calls == 0 and helper.weights(module) == weights
    helper.same_history(fitted.history, history[list(fitted.history)])
    assert ("val_loss" in fitted.history) == ("val_batches" not in options)


@pytest.mark.parametrize("epoch", [0, 2])
def test_stop_during_validation_repeats_the_steps_since_the_checkpoint(tmp_path, epoch):
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_validation = lambda e, b: (e, b) == (epoch, 1) and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit.fit(module, batches, folder, **options)
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_validation = lambda e, b: b == 1 and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):  # once more, where the session has saved nothing: it finishes the epoch first
        fit.fit(module, batches, folder, **options)
    assert module.train_calls == 2
    module, fitted = helper.fit(tmp_path, checkpoint_steps=4)
    assert module.train_calls == 18 - 6 * (epoch + 1)
    assert helper.weights(module) == helper.whole()[0]
    helper.same_history(fitted.history, helper.whole()[1])


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_and_interrupts(tmp_path, caplog):
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.before_batch = lambda epoch, batch: batch == 2 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^stopped .* at step 3 of 18, which is saved: the same call"):
        fit.fit(module, batches, folder, **options)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step-00000003.ckpt"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    caplog.set_level("INFO", logger="kitlib.training.resume_callback")
    module, _ = helper.fit(tmp_path, checkpoint_steps=4)
    assert f"resuming {tmp_path.name} at step 3 of 18" in caplog.text
    assert helper.weights(module) == helper.whole()[0]


@pytest.mark.parametrize(
    ("folder", "label"),
    [("checkpoints/fold_0/heads", "fold 0 heads"), ("fold_3/region_a", "fold 3 region_a"), ("runs/any", "any")],
)
def test_a_fit_is_named_by_its_fold_and_phase(tmp_path, folder, label):
    _, batches, _, _ = helper.make(tmp_path)
    assert resume_callback.ResumeCallback(Path(folder), batches, 1, 0, math.inf, "", 0).label == label


def test_loss_that_is_not_finite_stops(tmp_path):
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    step = module.training_step

    def training_step(batch, batch_idx):
        return step(batch, batch_idx) * (math.nan if (module.current_epoch, batch_idx) == (1, 2) else 1)

    module.training_step = training_step
    with pytest.raises(KitError, match=r"loss is nan at step 9; .*step-00000008.ckpt"):
        fit.fit(module, batches, folder, **options)
    assert helper.fit(tmp_path, checkpoint_steps=4)[1].finished


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    module, batches, folder, options = helper.make(tmp_path, checkpoint_steps=4)
    module.on_before_zero_grad = lambda _: (
        module.train_calls == 4 and next(module.parameters()).data.fill_(float("inf"))
    )
    with pytest.raises(KitError, match=r"step-|none yet"):
        fit.fit(module, batches, folder, **options)
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_accumulated_gradient_is_that_of_one_big_batch(tmp_path, clip):
    """22 rows: as one batch, and as batches of 4 (the last of 2) in one group, or groups of 12 and 10 rows."""
    big, small = (
        helper.fit(
            tmp_path / name, double=True, precision="64-true", dropout=0, gradient_clip=clip, epochs=2, **options
        )[0]
        for name, options in {"big": {"batch_size": 22}, "small": {"batch_size": 4, "accumulate": 6}}.items()
    )
    for a, b in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_partial_group_is_stepped_with_its_own_mean(tmp_path):
    """Groups of batches of 4, 4, 4 and 4, 4, 2 rows give the gradients of batches of 12 and 10 rows."""
    seen = {}
    for name, options in {"big": {"batch_size": 12}, "small": {"batch_size": 4, "accumulate": 3}}.items():
        module, batches, folder, options = helper.make(
            tmp_path / name, double=True, precision="64-true", dropout=0, gradient_clip=0.0, epochs=1, **options
        )
        seen[name] = []
        module.on_before_optimizer_step = lambda _, module=module, name=name: seen[name].append(
            torch.cat([p.grad.flatten() for p in module.parameters()])
        )
        fit.fit(module, batches, folder, **options)
    assert len(seen["big"]) == len(seen["small"]) == 2
    torch.testing.assert_close(torch.stack(seen["big"]), torch.stack(seen["small"]), rtol=1e-12, atol=1e-14)
