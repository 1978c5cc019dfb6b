"""Standardise features, and fuse the views of a place to one vector."""

from __future__ import annotations

import torch
from torch import nn

from kitlib.core.errors import KitError
from kitlib.vision.weights import Saved

FUSIONS = ("average", "concat", "attention", "learned")


class Standardised(Saved):
    """A saved network that standardises features by the mean and spread of the training places."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def fit_scale(self, features: torch.Tensor) -> None:
        """Set the mean and spread from the features (..., D) of the training places."""
        flat, shape = features.float().reshape(-1, features.shape[-1]), tuple(features.shape)
        if flat.shape[1] != len(self.mean) or len(flat) < 2 or not flat.isfinite().all():
            raise KitError(f"features: expected at least 2 rows of {len(self.mean)} finite numbers; got shape {shape}")
        self.mean.copy_(flat.mean(0))
        self.scale.copy_(1 / (flat.std(0) + 1e-3 * flat.std() + 1e-12))

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise features (..., D) to mean 0 and spread 1 of the training places."""
        return (features - self.mean) * self.scale


class Fusion(nn.Module):
    """Fuse V views (B, V, D), those that are not dropped, to one vector (B, `dim`).

    average: their mean. learned: their mean with a learned weight per view. attention: weights that depend on the
    content of a view (Ilse et al. 2018, arXiv:1802.04712). concat: side by side, (B, V * D), zeros for dropped views.
    """

    def __init__(self, kind: str, n_views: int, n_features: int) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise KitError(f"fusion: expected one of {', '.join(FUSIONS)}; got {kind!r}")
        self.kind, self.dim = kind, n_features * (n_views if kind == "concat" else 1)
        if kind == "learned":
            self.score = nn.Parameter(torch.zeros(n_views))
        if kind == "attention":
            self.hidden, self.out = nn.Linear(n_features, 64), nn.Linear(64, 1)
            nn.init.zeros_(self.out.weight)  # begins as the average

    def forward(self, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Fuse views (B, V, D) where keep (B, V) bool is true; at least one is in each row."""
        if self.kind == "concat":
            scale = keep.shape[1] / keep.sum(1, keepdim=True)
            return (views * (keep * scale)[..., None]).flatten(1)
        score = torch.zeros(keep.shape, device=views.device)
        if self.kind == "learned":
            score = self.score.expand(keep.shape)
        if self.kind == "attention":
            score = self.out(torch.tanh(self.hidden(views)))[..., 0].float()
        share = score.masked_fill(~keep, -torch.inf).softmax(1)
        with torch.autocast(views.device.type, enabled=False):  # unscaled features overflow in half precision
            return torch.einsum("bv,bvd->bd", share.float(), views.float())
