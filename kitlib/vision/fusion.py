"""Fuse the views of a place into one vector."""

from __future__ import annotations

import torch
from torch import nn

from kitlib.core.errors import KitError

FUSIONS = ("average", "concat", "attention", "learned")


class Fusion(nn.Module):
    """V views (B, V, D) as one vector (B, `dim`), from the kept ones only.

    average: their mean. learned: their mean with a learned weight for each view. attention: weights that depend on
    what a view shows (Ilse et al. 2018, arXiv:1802.04712). concat: side by side, (B, V * D), zeros for those left out.
    """

    def __init__(self, kind: str, n_views: int, n_features: int) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise KitError(f"fusion {kind!r}: allowed are {', '.join(FUSIONS)}")
        self.kind, self.dim = kind, n_features * (n_views if kind == "concat" else 1)
        if kind == "learned":
            self.score = nn.Parameter(torch.zeros(n_views))
        if kind == "attention":
            self.hidden, self.out = nn.Linear(n_features, 64), nn.Linear(64, 1)
            nn.init.zeros_(self.out.weight)  # begins as the average

    def forward(self, views: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Fuse views (B, V, D); keep (B, V) bool, at least one true in each row, says which."""
        if self.kind == "concat":
            scale = keep.shape[1] / keep.sum(1, keepdim=True)
            return (views * (keep * scale)[..., None]).flatten(1)
        score = torch.zeros(keep.shape, device=views.device)
        if self.kind == "learned":
            score = self.score.expand(keep.shape)
        if self.kind == "attention":
            score = self.out(torch.tanh(self.hidden(views)))[..., 0].float()
        share = score.masked_fill(~keep, -torch.inf).softmax(1)
        with torch.autocast(views.device.type, enabled=False):  # unscaled features do not bear half precision
            return torch.einsum("bv,bvd->bd", share.float(), views.float())
