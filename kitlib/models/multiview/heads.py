"""The heads of multiview: fused features of a place's V views to states, geocells and a point.

All heads read one fused vector. The state head ranks the states; the GPS head predicts one point on the sphere, as a
normalised vector; the geocell head weights the cells and moves their centres by offsets. All coordinates are computed
in float32 under any autocast: in bfloat16 even a perfect GPS head errs by 19 km.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import baselines
from kitlib.evaluation.guesses import Guesses
from kitlib.geo import EARTH_RADIUS_KM, geocells, projection
from kitlib.models.multiview.config import TIES
from kitlib.training.sphere import unit_vectors
from kitlib.vision.fusion import Fusion, Standardised


@dataclass(frozen=True)
class Classes:
    """The S states that occur among the training places, and C geocells inside them."""

    state_idx: np.ndarray  # (S,) ascending
    state_count: np.ndarray  # (S,) training places
    state_points: np.ndarray  # (S, 2) [lat, lon] geometric median of a state's places
    cell_points: np.ndarray  # (C, 2)
    cell_state: np.ndarray  # (C,) 0…S-1
    cell_radius_km: np.ndarray  # (C,) unit of a cell's offset; 0 for a cell of one place, which never moves

    @classmethod
    def from_places(cls, places: Places, rows: np.ndarray, places_per_cell: int) -> Classes:
        """The classes of the training places in `rows` (row numbers)."""
        points, position = places.points("train")[rows], places.state_position("train")[rows]
        present, state, count = np.unique(position, return_inverse=True, return_counts=True)
        cells = geocells.make(points, state, places_per_cell, min_places=max(1, places_per_cell // 10))
        return cls(
            state_idx=places.states["state_idx"].to_numpy()[present],
            state_count=count,
            state_points=geo.group_medians(points, state, len(present)),
            cell_points=cells[["latitude", "longitude"]].to_numpy(),
            cell_state=cells["state_position"].to_numpy(),
            cell_radius_km=cells["radius_km"].to_numpy(),
        )

    def labels(self, points: np.ndarray, state_idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State 0…S-1 and cell 0…C-1 (N,) of places at points (N, 2) in states (N,); -1 in any other state."""
        state = np.searchsorted(self.state_idx, state_idx).clip(max=len(self.state_idx) - 1)
        state = np.where(self.state_idx[state] == state_idx, state, -1)
        cells = pd.DataFrame(self.cell_points, columns=["latitude", "longitude"]).assign(state_position=self.cell_state)
        known, cell = state >= 0, np.full(len(state), -1)
        cell[known] = geocells.assign(points[known], cells, state[known])
        return state, cell

    def fallback(self, sample_id: np.ndarray) -> Guesses:
        """Guesses for places (N,) without a usable picture: the states' frequencies and one constant point."""
        point = geo.geometric_median(self.state_points, self.state_count)
        return baselines.constant(sample_id, self.state_idx, self.state_count / self.state_count.sum(), point)


class HeadOutputs(NamedTuple):
    """Outputs of the heads for B places, in float32."""

    states: torch.Tensor  # (B, S) logits
    cells: torch.Tensor  # (B, C) logits
    offsets: torch.Tensor  # (B, C, 2) shift of each cell's centre to the east and north, in its radii
    gps: torch.Tensor  # (B, 3) unit vectors


class Heads(Standardised):
    """Features (B, V, D) to `HeadOutputs`; call `fit_scale` with the training features first.

    tie: the point to which the GPS head adds: the mean of the states weighted by their probabilities (state), that of
    the cells (cell), or a constant point (none).
    """

    state_vectors: torch.Tensor
    cell_vectors: torch.Tensor
    cell_axes: torch.Tensor
    cell_state: torch.Tensor

    def __init__(
        self,
        classes: Classes,
        n_views: int,
        n_features: int,
        fusion: str = "average",
        hidden: int = 256,
        dropout: float = 0.5,
        tie: str = "state",
    ) -> None:
        super().__init__(n_features)
        if tie not in TIES:
            raise KitError(f"tie: expected one of {', '.join(TIES)}; got {tie!r}")
        self.classes, self.tie = classes, tie
        self.settings: dict[str, Any] = {"n_views": n_views, "n_features": n_features, "fusion": fusion}
        self.settings |= {"hidden": hidden, "dropout": dropout, "tie": tie}
        n_states, n_cells = len(classes.state_points), len(classes.cell_points)
        self.fusion = Fusion(fusion, n_views, n_features)
        self.trunk = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.fusion.dim, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.states, self.cells = nn.Linear(hidden, n_states), nn.Linear(hidden, n_cells)
        self.offsets, self.gps = nn.Linear(hidden, 2 * n_cells), nn.Linear(hidden, 3)
        for layer in (self.states, self.cells, self.offsets, self.gps):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.register_buffer("state_vectors", unit_vectors(classes.state_points))
        self.register_buffer("cell_vectors", unit_vectors(classes.cell_points))
        radius_rad = torch.from_numpy(classes.cell_radius_km / EARTH_RADIUS_KM).float()
        axes = torch.from_numpy(projection.axes(classes.cell_points)[:, :2]).float()  # east and north
        self.register_buffer("cell_axes", axes * radius_rad[:, None, None])
        self.register_buffer("cell_state", torch.tensor(classes.cell_state, dtype=torch.long))

    def forward(self, features: torch.Tensor, keep: torch.Tensor | None = None) -> HeadOutputs:
        """Outputs for features (B, V, D), of the views in keep (B, V) bool, of all when None."""
        views = features.float()
        keep = torch.ones(views.shape[:2], dtype=torch.bool, device=views.device) if keep is None else keep
        if self.fusion.kind in ("average", "learned"):  # scaling commutes with a weighted mean, which has fewer numbers
            fused = self.standardise(self.fusion(views, keep))
        else:
            fused = self.fusion(self.standardise(views), keep)
        fused = self.trunk(fused)
        with torch.autocast(fused.device.type, enabled=False):
            fused = fused.float()
            states, cells = self.states(fused), self.cells(fused)
            start = self.state_vectors.mean(0).expand(len(fused), 3)
            if self.tie == "state":
                start = states.softmax(1) @ self.state_vectors
            if self.tie == "cell":
                start = cells.softmax(1) @ self.cell_vectors
            gps = F.normalize(F.normalize(start, dim=1) + self.gps(fused), dim=1)
            return HeadOutputs(states, cells, self.offsets(fused).unflatten(1, (-1, 2)), gps)

    def moved(self, offsets: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, K, 3) of the centres of cells (B, K), moved by offsets (B, C, 2)."""
        radii = offsets.gather(1, cell[..., None].expand(-1, -1, 2))
        return F.normalize(self.cell_vectors[cell] + (radii[..., None] * self.cell_axes[cell]).sum(-2), dim=-1)

    @torch.no_grad()
    def guess(self, sample_id: np.ndarray, outputs: Sequence[HeadOutputs], n_points: int, gps_share: float) -> Guesses:
        """Guesses from the averaged outputs for B places, such as plain and mirrored.

        A state's probability is the mean of that by the state head and the sum over its cells by the geocell head; the
        cells share the probability of their state. The point of the GPS head comes first with the weight `gps_share`,
        and the `n_points` heaviest cells share the rest.
        """
        by_head = torch.stack([o.states.softmax(1) for o in outputs]).mean(0)  # (B, S)
        cells = torch.stack([o.cells.softmax(1) for o in outputs]).mean(0)  # (B, C)
        by_cells = torch.zeros_like(by_head).index_add_(1, self.cell_state, cells)
        states = (by_head + by_cells) / 2
        cells = cells * (states / by_cells.clamp(min=1e-12))[:, self.cell_state]
        weights, top = cells.topk(min(n_points, cells.shape[1]), dim=1)  # (B, K)
        moved = self.moved(torch.stack([o.offsets for o in outputs]).mean(0), top)
        gps = torch.stack([o.gps for o in outputs]).mean(0)[:, None]
        weights = (1 - gps_share) * weights / weights.sum(1, keepdim=True)
        weights = torch.cat([torch.full_like(weights[:, :1], gps_share), weights], 1)
        points = geo.from_unit_vectors(torch.cat([gps, moved], 1).cpu().double().numpy())
        probs, answered = states.cpu().numpy(), np.ones(len(sample_id), bool)
        return Guesses(sample_id, self.classes.state_idx, probs, points, weights.cpu().numpy(), answered)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights and the classes."""
        arrays = {name: torch.from_numpy(np.array(a, order="C")) for name, a in asdict(self.classes).items()}
        return self.state_dict() | {f"classes.{name}": tensor for name, tensor in arrays.items()}

    @classmethod
    def built(cls, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Self:
        """Heads for the classes among `tensors`."""
        classes = Classes(**{field.name: tensors.pop(f"classes.{field.name}").numpy() for field in fields(Classes)})
        return cls(classes, **settings)
