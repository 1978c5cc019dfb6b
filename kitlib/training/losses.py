"""Losses that know the globe: distance-smoothed cross-entropy and the haversine distance, in torch and float32.

Places are unit vectors (..., 3) as `geo.unit_vectors` makes them, and distances come from chords: float32 then errs
by about a metre, where the arc cosine of a dot product errs by kilometres at short range.

A smoothed target pays a near miss for being near. PIGEON (Haas et al. 2024, arXiv:2307.05845, equation 3) weighs class
i of a place x in class j by exp(-(d(c_i, x) - d(c_j, x)) / temperature), c being the classes' centres. The weights here
are capped at 1, the true class's own: a place at the edge of a large state can lie closer to the centre of its
neighbour, and would otherwise be taught the wrong state. The form from the distance matrix takes d(c_i, c_j) instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kitlib.training.sphere import haversine_km


def matrix_targets(distance_km: torch.Tensor, temperature_km: float) -> torch.Tensor:
    """Targets (C, C) from distances (C, C) between classes: row j is P(i | j) ~ exp(-d(i, j) / temperature).

    >>> matrix_targets(torch.tensor([[0.0, 75.0], [75.0, 0.0]]), 75.0)[0].tolist()
    [0.7310585975646973, 0.2689414322376251]
    """
    return torch.softmax(-distance_km / temperature_km, dim=-1)


def place_targets(
    points: torch.Tensor, centres: torch.Tensor, true: torch.Tensor, temperature_km: float
) -> torch.Tensor:
    """Targets (B, C) from where the places lie: unit vectors points (B, 3) and centres (C, 3), true classes (B,)."""
    km = haversine_km(points[:, None], centres)
    beyond_km = (km - km.gather(1, true[:, None])).clamp(min=0)
    return torch.softmax(-beyond_km / temperature_km, dim=1)


def hard_targets(true: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Targets (B, C) float without any smoothing."""
    return F.one_hot(true, n_classes).float()


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the cross-entropy of logits (B, C) against targets (B, C) that sum to 1; in float32."""
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def true_mass(targets: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """(B,) the share of the targets (B, C) that the true classes (B,) keep: 1 means no smoothing at all."""
    return targets.gather(1, true[:, None])[:, 0]
