"""Small regressors, one a region, that are computed together: features to scaled coordinates in each region's frame.

The heads of all regions are one batched matrix product. They begin by saying the region's median point.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kitlib.geo import EARTH_RADIUS_KM, projection
from kitlib.models.regional.scalers import RegionScaler
from kitlib.training import sphere
from kitlib.training.learner import Batch
from kitlib.vision.weights import Saved

LOSSES = ("mse", "haversine")


class Frames(nn.Module):
    """The frames of R regions in torch: from scaled coordinates to unit vectors, in float32."""

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
        """Unit vectors (B, 3) of scaled coordinates (B, 2) in regions (B,); `projection.from_local_km`."""
        flat = (scaled.float() * self.unit[region, None] + self.offset[region]) / EARTH_RADIUS_KM
        angle_rad = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        along = torch.cat([flat * torch.sinc(angle_rad / torch.pi), angle_rad.cos()], 1)
        return F.normalize(torch.einsum("ba,bad->bd", along, self.axes[region]), dim=1)

    def loss(self, kind: str, scaled: Tensor, batch: Batch) -> Tensor:
        """Loss (B,) of scaled coordinates (B, 2) for places with `region`, `scaled` and `place` in the batch.

        mse: the mean of both squared differences. haversine: the distance, in units of the region's scale.
        """
        if kind == "mse":
            return (scaled.float() - batch["scaled"]).square().mean(1)
        km = sphere.haversine_km(self.vectors(scaled, batch["region"]), batch["place"])
        return km / self.unit[batch["region"]]


class Bank(nn.Module):
    """K heads side by side, linear or (hidden > 0) with one hidden layer: features (K, B, D) to (K, B, 2)."""

    def __init__(self, n_heads: int, n_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        widths = [n_features, hidden, 2] if hidden else [n_features, 2]
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(torch.randn(n_heads, i, o) / i**0.5 for i, o in pairs)
        self.biases = nn.ParameterList(torch.zeros(n_heads, 1, o) for _, o in pairs)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.weights[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Every head's own features (K, B, D), or the same (1, B, D) for all, to (K, B, 2)."""
        x = features
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(self.dropout(F.gelu(x) if i else x), weight) + bias
        return x


class RegionHeads(Saved):
    """Features (B, V, D) to scaled coordinates in R regions; regions without a head of their own share a pooled one.

    has_own: (R,) which regions have one. Before it learns, `begin` gives it a start.
    """

    mean: Tensor
    scale: Tensor
    slot: Tensor

    def __init__(self, has_own: Sequence[bool], n_features: int, hidden: int = 0, dropout: float = 0.5) -> None:
        super().__init__()
        own = np.array(has_own, bool)
        self.settings = {"has_own": own.tolist(), "n_features": n_features, "hidden": hidden, "dropout": dropout}
        self.n_own = int(own.sum())
        self.own = Bank(self.n_own, n_features, hidden, dropout)
        self.pooled = None if own.all() else Bank(1, n_features, hidden, dropout)
        slot = np.where(own, np.cumsum(own) - 1, self.n_own)  # the pooled head comes last
        self.register_buffer("slot", torch.from_numpy(slot), persistent=False)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @property
    def n_heads(self) -> int:
        """Own heads, and the pooled one where there is one."""
        return self.n_own + (self.pooled is not None)

    def begin(self, features: Tensor, medians: np.ndarray) -> None:
        """Take over mean and spread of the training places' features (..., D), and each region's median (R, 2).

        The medians, in scaled coordinates, are what the heads say before they have learned anything.
        """
        flat = features.float().flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.scale.copy_(1 / (flat.std(0) + 1e-3 * flat.std()))
        own, start = self.slot < self.n_own, torch.from_numpy(medians).float()
        with torch.no_grad():
            self.own.biases[-1][:, 0] = start[own]
            if self.pooled is not None:
                self.pooled.biases[-1][0, 0] = start[~own].mean(0)

    def fuse(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """The mean of the views (B, V, D) that are kept (B, V), standardised: (B, D)."""
        keep = torch.ones(features.shape[:2], device=features.device) if keep is None else keep.float()
        mean = torch.einsum("bv,bvd->bd", keep / keep.sum(1, keepdim=True), features.float())
        return (mean - self.mean) * self.scale

    def forward(self, fused: Tensor) -> Tensor:
        """Scaled coordinates (B, R, 2) of fused features (B, D) in every region."""
        banks = [self.own] if self.pooled is None else [self.own, self.pooled]
        return torch.cat([bank(fused[None]) for bank in banks])[self.slot].transpose(0, 1)

    def by_head(self, fused: Tensor, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each place by the head of its region (B,), and by the pooled head too, which learns from all of them.

        Returns rows (P,) of the fused features (B, D), heads (P,) and scaled coordinates (P, 2).
        """
        slot = self.slot[region]
        rows = slot.argsort(stable=True)
        rows = rows[slot[rows] < self.n_own]
        slot = slot[rows]
        count = torch.bincount(slot, minlength=self.n_own)
        position = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[slot]
        padded = fused.new_zeros(self.n_own, int(count.max()) if len(rows) else 0, fused.shape[1])
        padded[slot, position] = fused[rows]
        scaled = self.own(padded)[slot, position]
        if self.pooled is None:
            return rows, slot, scaled
        everyone = torch.arange(len(fused), device=rows.device)
        parts = (rows, everyone), (slot, torch.full_like(everyone, self.n_own)), (scaled, self.pooled(fused[None])[0])
        return tuple(torch.cat(pair) for pair in parts)  # type: ignore[return-value]


def _tensor(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.array(values)).float()
