"""The mean of a fit's weights over its last steps instead of the last ones (Izmailov et al. 2018, arXiv:1803.05407)."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch


class Averaging(pl.Callback):
    """Averages the weights that learn over the last `share` of the optimizer steps; Lightning saves and restores it."""

    def __init__(self, share: float) -> None:
        self.share, self.count = share, 0
        self.means: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Lightning puts this into each checkpoint."""
        return {"count": self.count, "means": self.means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.count, self.means = state_dict["count"], state_dict["means"]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Add the weights of a step, once for all batches of its group."""
        first = round((1 - self.share) * int(trainer.estimated_stepping_batches))
        if trainer.global_step != first + self.count + 1:
            return
        now = [parameter.detach().float() for parameter in _learning(module)]
        self.count += 1
        if self.count == 1:
            self.means = [weights.clone() for weights in now]
        else:
            self.means = [mean.to(weights.device) for mean, weights in zip(self.means, now, strict=True)]
            torch._foreach_lerp_(self.means, now, 1 / self.count)

    @torch.no_grad()
    def apply(self, module: pl.LightningModule) -> None:
        """Give the module the mean weights."""
        for parameter, mean in zip(_learning(module), self.means, strict=True):
            parameter.copy_(mean)


def _learning(module: pl.LightningModule) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
