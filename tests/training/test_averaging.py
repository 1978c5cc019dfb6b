"""Averaging: the mean of the last steps' weights, the same after a stop at any step."""

from __future__ import annotations

import signal

import fitting_helper as helper
import numpy as np
import pytest
import torch

from kitlib.core.errors import KitError
from kitlib.training import fit


def vector(module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 18), (4, 6)])
def test_the_weights_are_the_mean_over_the_last_half_of_the_steps(tmp_path, accumulate, steps):
    module, batches, folder, options = helper.make(tmp_path, accumulate=accumulate)
    seen = {}
    module.before_batch = lambda epoch, batch: seen.update({module.trainer.global_step: vector(module)})
    plain, last = fit.fit(module, batches, folder / "plain", **options), vector(module)
    seen[plain.steps] = last
    assert sorted(seen) == list(range(steps + 1))
    module, batches, folder, options = helper.make(tmp_path, accumulate=accumulate)
    fit.fit(module, batches, folder / "mean", average=0.5, **options)
    expected = torch.stack([seen[step] for step in range(steps // 2 + 1, steps + 1)]).mean(0)
    np.testing.assert_allclose(vector(module), expected, atol=1e-6)
    assert (vector(module) - last).abs().max() > 1e-4


def test_a_stop_changes_nothing(tmp_path):
    module, batches, folder, options = helper.make(tmp_path)
    fit.fit(module, batches, folder / "whole", average=0.5, **options)
    whole = helper.weights(module)
    for stops in ((1, 5), (2, 1)):
        module, batches, folder, options = helper.make(tmp_path)
        module.before_batch = lambda epoch, batch, stops=stops: (
            (epoch, batch) == stops and signal.raise_signal(signal.SIGTERM)
        )
        with pytest.raises(SystemExit):
            fit.fit(module, batches, folder / "parts", average=0.5, **options)
    module, batches, folder, options = helper.make(tmp_path)
    fit.fit(module, batches, folder / "parts", average=0.5, **options)
    assert helper.weights(module) == whole


def test_best_weights_have_no_mean(tmp_path):
    module, batches, folder, options = helper.make(tmp_path)
    with pytest.raises(KitError, match="average: expected 0 with a monitor"):
        fit.fit(module, batches, folder, monitor="val_loss", average=0.5, **options)
