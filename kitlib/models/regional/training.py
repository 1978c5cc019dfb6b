"""How regressors of regions learn: the heads of all regions at once, or a region's own encoder.

Each head keeps the weights of its own best epoch, as if it had learned alone; one that breaks does not stop the others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kitlib.models.regional.heads import Frames, RegionHeads
from kitlib.training import fit
from kitlib.training.learner import Batch, encode, kept_views, varied
from kitlib.vision.encoders import Encoder


@dataclass(frozen=True)
class Teaching:
    """How regressors learn; `regional.Config` explains the fields of the same names."""

    loss: str
    view_dropout: float
    mirror: bool
    vary: float
    weight_decay: float
    t_0: int
    t_mult: int


class HeadsTraining(pl.LightningModule):
    """All heads of `heads` at once; `best` holds each head's weights after its own best epoch.

    Batches hold `features` (B, M, V, D), `region` (B,), `scaled` (B, 2) and `place` (B, 3). A head stops to improve
    after `patience` epochs in a row without a lower validation loss (0: never), one without validation places follows
    the mean of all. The weights at the beginning, which say the median point, count as an epoch.
    """

    best_loss: Tensor
    best_epoch: Tensor
    waited: Tensor
    epochs: Tensor
    broken: Tensor

    def __init__(
        self,
        heads: RegionHeads,
        frames: Frames,
        teaching: Teaching,
        rate: float,
        epoch_steps: int,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.frames, self.teaching, self.rate, self.patience = heads, frames, teaching, rate, patience
        self.epoch_steps = epoch_steps
        self.best = copy.deepcopy(heads).requires_grad_(False)
        self.register_buffer("best_loss", torch.full((heads.n_heads,), torch.inf))
        for name in ("best_epoch", "waited"):
            self.register_buffer(name, torch.zeros(heads.n_heads, dtype=torch.long))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.long))
        self.register_buffer("broken", torch.zeros(heads.n_heads, dtype=torch.bool))

    def start(self, batch: Batch) -> None:
        """Measure the heads as they are on all validation places, as epoch 0."""
        with torch.no_grad():
            total, count = self._losses(self.heads.fuse(batch["features"][:, 0]), batch)
            self.best_loss.copy_(_means(total, count))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum over heads of their mean losses: no head's gradient depends on another."""
        features = encode(varied(batch, None, self.teaching.mirror, self.teaching.vary), None)
        keep = kept_views(features, self.teaching.view_dropout)
        total, count = self._losses(self.heads.fuse(features, keep), batch)
        each = total / count.clamp(min=1)
        each = torch.where(each.isfinite(), each, 0.0)
        self.log("train_loss", each.sum() / (count > 0).sum())
        return each.sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """A head whose gradient is not finite stays as it is, and is remembered as broken."""
        for bank, first in ((self.heads.own, 0), (self.heads.pooled, self.heads.n_own)):
            for parameter in [] if bank is None else bank.parameters():
                if parameter.grad is not None and not parameter.grad.sum().isfinite():  # a sum is quickly had
                    bad = ~parameter.grad.flatten(1).isfinite().all(1)
                    parameter.grad[bad] = 0
                    self.broken[first : first + len(bad)] |= bad

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._total = torch.zeros_like(self.best_loss)
        self._count = torch.zeros_like(self.best_loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add to each head's loss; log the mean over the places, each by the head that will guess it."""
        each, rows, head = self._each(self.heads.fuse(batch["features"][:, 0]), batch)
        self._total.index_add_(0, head, each)
        self._count.index_add_(0, head, torch.ones_like(each))
        guessing = head == self.heads.slot[batch["region"][rows]]  # the pooled head learns from all, guesses for some
        self.log("val_loss", each[guessing].mean(), batch_size=len(batch["region"]))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights of the heads that are better than ever, and stop when all have waited long enough."""
        self.epochs += 1
        loss = _means(self._total, self._count)
        learning = (self.waited < self.patience) | (self.patience == 0)
        better = (loss < self.best_loss) & learning
        for kept, bank, first in (
            (self.best.own, self.heads.own, 0),
            (self.best.pooled, self.heads.pooled, self.heads.n_own),
        ):
            if kept is not None and bank is not None:
                for old, new in zip(kept.parameters(), bank.parameters(), strict=True):
                    improved = better[first : first + len(new)]
                    old[improved] = new.detach()[improved]
        self.best_loss[better] = loss[better]
        self.best_epoch[better] = self.epochs
        self.waited.copy_(torch.where(better, 0, self.waited + learning))
        if self.patience and bool((self.waited >= self.patience).all()):
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        """AdamW with warm restarts."""
        return _optimizer(self, list(self.heads.parameters()))

    def _each(self, fused: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, row of the batch and head (P,) of each pair of a place and a head that learns from it."""
        rows, head, scaled = self.heads.by_head(fused, batch["region"])
        own = {name: batch[name][rows] for name in ("region", "scaled", "place")}
        return self.frames.loss(self.teaching.loss, scaled, own), rows, head

    def _losses(self, fused: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each head's summed loss (H,) and number of places (H,)."""
        each, _, head = self._each(fused, batch)
        zeros = each.new_zeros(self.heads.n_heads)
        return zeros.index_add(0, head, each), zeros.index_add(0, head, torch.ones_like(each))


class EncoderTraining(pl.LightningModule):
    """One region's own encoder with a linear head on the mean of its views; batches hold `views`, not `features`.

    start: (2,) what it says before it has learned anything, in scaled coordinates.
    """

    def __init__(
        self, encoder: Encoder, frames: Frames, teaching: Teaching, rate: float, epoch_steps: int, start: np.ndarray
    ) -> None:
        super().__init__()
        self.encoder, self.frames, self.teaching, self.rate = encoder, frames, teaching, rate
        self.epoch_steps = epoch_steps
        encoder.train_last(None)
        self.head = nn.Linear(encoder.dim, 2)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.from_numpy(start))

    def forward(self, pictures: Tensor) -> Tensor:
        """Scaled coordinates (B, 2) of uint8 places (B, V, 3, H, W)."""
        features = encode({"views": pictures}, self.encoder)
        with torch.autocast(self.device.type, enabled=False):  # half precision would cost a hundredth of a unit
            return self.head(features.float().mean(1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss over the batch."""
        seen = varied(batch, self.encoder, self.teaching.mirror, self.teaching.vary)["views"]
        loss = self.frames.loss(self.teaching.loss, self(seen), batch).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on held-out places."""
        each = self.frames.loss(self.teaching.loss, self(batch["views"]), batch)
        self.log("val_loss", each.mean(), batch_size=len(each), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm restarts."""
        return _optimizer(self, [parameter for parameter in self.parameters() if parameter.requires_grad])


def _optimizer(module: HeadsTraining | EncoderTraining, learning: list[nn.Parameter]) -> Any:
    """AdamW; the rate falls along a cosine and starts again after t_0 epochs, then after t_mult times as many."""
    teaching, fused = module.teaching, fit.may_fuse(module)
    optimizer = torch.optim.AdamW(learning, lr=module.rate, weight_decay=teaching.weight_decay, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=teaching.t_0 * module.epoch_steps, T_mult=teaching.t_mult
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _means(total: Tensor, count: Tensor) -> Tensor:
    """Each head's mean loss (H,); the mean of all for one without places."""
    return torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum())
