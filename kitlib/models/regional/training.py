"""Training of a region's own encoder on scaled coordinates, with early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kitlib.geo import EARTH_RADIUS_KM, projection
from kitlib.models.regional.config import RegressorOptions
from kitlib.models.regional.scalers import RegionScaler
from kitlib.training import fit, sphere
from kitlib.training.learner import Batch, encode, varied
from kitlib.vision.encoders import Encoder


class Frames(nn.Module):
    """The scalers of R regions in torch: scaled coordinates to unit vectors, in float32."""

    axes: Tensor
    offset: Tensor
    unit: Tensor

    def __init__(self, scalers: Sequence[RegionScaler]) -> None:
        super().__init__()
        axes = projection.axes(np.array([scaler.centre for scaler in scalers]))  # (R, 3, 3)
        self.register_buffer("axes", torch.from_numpy(axes).float(), persistent=False)
        self.register_buffer("offset", _tensor([scaler.offset_km for scaler in scalers]), persistent=False)
        self.register_buffer("unit", _tensor([scaler.unit_km for scaler in scalers]), persistent=False)

    def vectors(self, scaled: Tensor, region: Tensor) -> Tensor:
        """Unit vectors (B, 3) of scaled coordinates (B, 2) in regions (B,), as by `projection.from_local_km`."""
        flat = (scaled.float() * self.unit[region, None] + self.offset[region]) / EARTH_RADIUS_KM
        angle_rad = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        along = torch.cat([flat * torch.sinc(angle_rad / torch.pi), angle_rad.cos()], 1)
        return F.normalize(torch.einsum("ba,bad->bd", along, self.axes[region]), dim=1)

    def loss(self, kind: str, scaled: Tensor, batch: Batch) -> Tensor:
        """Losses (B,) of scaled coordinates (B, 2) against `region`, `scaled` and `place` in the batch.

        mse: the mean squared difference. haversine: the distance in the scaled unit of the region.
        """
        if kind == "mse":
            return (scaled.float() - batch["scaled"]).square().mean(1)
        km = sphere.haversine_km(self.vectors(scaled, batch["region"]), batch["place"])
        return km / self.unit[batch["region"]]


class EncoderTraining(pl.LightningModule):
    """Trains the encoder of a region with a linear head on the mean of its views; batches hold `views`.

    start: (2,) the first prediction, in scaled coordinates.
    """

    def __init__(
        self, encoder: Encoder, frames: Frames, config: RegressorOptions, epoch_steps: int, start: np.ndarray
    ) -> None:
        super().__init__()
        self.encoder, self.frames, self.config = encoder, frames, config
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
        views = varied(batch, self.encoder, self.config)["views"]
        loss = self.frames.loss(self.config.loss, self(views), batch).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on held-out places."""
        losses = self.frames.loss(self.config.loss, self(batch["views"]), batch)
        self.log("val_loss", losses.mean(), batch_size=len(losses), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine that restarts after t_0 epochs, and then after t_mult times as many."""
        config, weights = self.config, [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=config.rate, weight_decay=config.weight_decay, fused=fit.may_fuse(self)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=config.t_0 * self.epoch_steps, T_mult=config.t_mult
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _tensor(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.array(values)).float()
