"""Pairs of a batch to learn a metric from: places near on the globe should be more alike than places far apart.

Two pairs of places, one of them clearly nearer on the globe, should be in that order by similarity too; where they are
not, they violate it. Distances fall into buckets, and pairs compare when `gap` buckets lie between their numbers: with
edges that double, a gap of 2 makes the far pair's distance more than twice the near one's.

Most pairs of a batch are far apart and already in order, so `mine` looks where there is something to learn: at pairs
below the mean curve (less alike than is usual at their distance), set against farther pairs above it. That and the
round-robin over buckets are ideas of the project Geosolver; the losses are CoSENT (Su 2022, kexue.fm/archives/8847) and
InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with targets that fade with the distance.

Everywhere similarity, km and mask are (B, B) and symmetric, and mask says which pairs may be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from kitlib.core.errors import KitError

KM_EDGES = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0)  # 11 buckets
SIMILARITY_EDGES = tuple(level / 10 for level in range(-9, 10))  # 20 levels
GAP = 2  # from a pair's bucket to that of a clearly farther one
REACH = 3.0  # in near_km, where a target's weight is 5 % of the highest: a place farther off is not near


def pair_mask(km: torch.Tensor, group: torch.Tensor | None = None, min_km: float = 0.0) -> torch.Tensor:
    """Which pairs (B, B) may be used: no place with itself, none of one group (B,), none closer than min_km.

    >>> pair_mask(torch.tensor([[0.0, 3.0], [3.0, 0.0]]), min_km=5.0).any().item()
    False
    """
    mask = (km >= min_km) & ~torch.eye(len(km), dtype=torch.bool, device=km.device)
    return mask if group is None else mask & (group[:, None] != group)


class MeanCurve(nn.Module):
    """The mean similarity in each bucket of distance, over recent batches; part of the state_dict, so it resumes.

    edges: km between K buckets, ascending (K - 1,). momentum: what older pairs still weigh in a bucket after a batch
    that has pairs there; a bucket that a batch leaves empty stays as it is.
    """

    edges: torch.Tensor
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, edges: Sequence[float] = KM_EDGES, momentum: float = 0.9) -> None:
        super().__init__()
        if not edges or sorted(set(edges)) != list(edges) or not edges[0] > 0:
            raise KitError(f"edges {list(edges)}: allowed are ascending distances in km, above 0")
        if not 0 <= momentum < 1:
            raise KitError(f"momentum {momentum}: allowed is from 0 to below 1")
        self.momentum = momentum
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32))
        self.register_buffer("total", torch.zeros(len(edges) + 1))
        self.register_buffer("count", torch.zeros(len(edges) + 1))

    def bucket(self, km: torch.Tensor) -> torch.Tensor:
        """The bucket (...) 0…K-1 of distances (...); an edge belongs to the bucket above it."""
        return torch.bucketize(km.float().contiguous(), self.edges, right=True)

    @torch.no_grad()
    def update(self, similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor) -> None:
        """Take in the pairs of a batch."""
        _, similarity, bucket = _pairs(similarity, km, mask, self)
        inside = torch.nn.functional.one_hot(bucket, len(self.count)).float()  # index_add_ has no fixed order on CUDA
        count, total = inside.sum(0), similarity @ inside
        kept = torch.where(count > 0, self.momentum, 1.0)
        self.count.mul_(kept).add_(count)
        self.total.mul_(kept).add_(total)

    def means(self) -> torch.Tensor:
        """The mean similarity (K,) in each bucket, NaN where no pair was seen yet."""
        return self.total / self.count

    def value(self, km: torch.Tensor) -> torch.Tensor:
        """The mean similarity (...) at distances (...), constant within a bucket, NaN where none was seen yet."""
        return self.means()[self.bucket(km)]


@torch.no_grad()
def mine(
    similarity: torch.Tensor,
    km: torch.Tensor,
    mask: torch.Tensor,
    curve: MeanCurve,
    budget: int,
    *,
    similarity_edges: Sequence[float] = SIMILARITY_EDGES,
    gap: int = GAP,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs to be brought together and pairs to be pushed apart: near (P, 2) and far (P, 2) rows, P `budget` or 0.

    near[p] lies below the mean curve, far[p] above it, and at least `gap` buckets of distance farther. A cell is a
    bucket of distance with a level of similarity. Half of the budget goes round the cells below the curve, one pair at
    a time, each with a random partner from a random cell that is far enough; the other half goes round the cells
    above the curve in the same way. So every cell with a partner is taken as often as the others of its side (once at
    least, for a budget of twice their number), and a cell of few pairs uses them several times.
    Random numbers come from `generator`, or from torch's own for the device of `similarity`.
    """
    if budget < 1 or gap < 1:
        raise KitError(f"budget {budget}, gap {gap}: allowed are whole numbers from 1")
    device = similarity.device
    rows, similarity, bucket = _pairs(similarity, km, mask, curve)
    level = torch.bucketize(similarity, torch.tensor(similarity_edges, device=device), right=True)
    mean, levels = curve.means()[bucket], len(similarity_edges) + 1
    near = _cells((similarity < mean).nonzero()[:, 0], bucket, level, levels, generator)
    far = _cells((similarity > mean).nonzero()[:, 0], bucket, level, levels, generator)
    # cells ascend in distance: those with a partner are the first ones below the curve, the last ones above it
    beyond = torch.searchsorted(far.bucket, near.bucket + gap)  # for each near cell the first far cell
    before = torch.searchsorted(near.bucket, far.bucket - gap, right=True)  # for each far cell how many near cells
    n_near, n_far = int((beyond < len(far.bucket)).sum()), int((before > 0).sum())
    if not n_near:
        none = rows.new_empty(0, 2)
        return none, none
    first_far = len(far.bucket) - n_far

    cell, near_lead = _round(near, 0, n_near, budget - budget // 2, generator)
    from_cell = beyond[cell]
    far_partner = _random(far, from_cell, len(far.bucket) - from_cell, generator)
    cell, far_lead = _round(far, first_far, n_far, budget // 2, generator)
    near_partner = _random(near, torch.zeros_like(cell), before[cell], generator)
    return rows[torch.cat([near_lead, near_partner])], rows[torch.cat([far_partner, far_lead])]


@torch.no_grad()
def violations(
    similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor, curve: MeanCurve, gap: int = GAP
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the clearly ordered pairs of pairs violate their order, and how many there are: two scalars, exact.

    The near pair's similarity is below the far pair's in a violation; equal ones are none.
    """
    _, similarity, bucket = _pairs(similarity, km, mask, curve)
    similarity, order = similarity.sort()
    bucket = bucket[order]
    wrong = compared = torch.zeros((), dtype=torch.int64, device=km.device)
    for number in range(len(curve.count) - gap):
        near, far = similarity[bucket == number], similarity[bucket >= number + gap]
        wrong = wrong + (len(far) - torch.searchsorted(far, near, right=True)).sum()
        compared = compared + len(near) * len(far)
    return wrong, compared


def cosent(similarity: torch.Tensor, near: torch.Tensor, far: torch.Tensor, scale: float = 20.0) -> torch.Tensor:
    """log(1 + sum over p of exp(scale * (s_far[p] - s_near[p]))), float32; near and far (P, 2) as `mine` gives them.

    >>> pairs = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])
    >>> round(cosent(torch.tensor([[1.0, 0.5, 0.5]]), *pairs).item(), 4)
    0.6931
    """
    with torch.autocast(similarity.device.type, enabled=False):
        similarity = similarity.float()
        terms = scale * (similarity[far[:, 0], far[:, 1]] - similarity[near[:, 0], near[:, 1]])
        return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)


def has_near(km: torch.Tensor, mask: torch.Tensor, near_km: float) -> torch.Tensor:
    """Which rows (B,) have a near place among the batch: one that may be used, within REACH times near_km."""
    return (mask & (km <= REACH * near_km)).any(1)


def info_nce(
    similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor, temperature: float = 0.07, near_km: float = 100.0
) -> torch.Tensor:
    """Mean cross-entropy, float32, of softmax(similarity / temperature) over the other places against soft targets.

    A row's targets are proportional to exp(-km / near_km); what the mask leaves out is no other place. Rows without a
    near place (see `has_near`) have nothing to be drawn to and do not count; without any row the loss is 0.
    """
    if not (temperature > 0 and near_km > 0):
        raise KitError(f"temperature {temperature}, near_km {near_km}: allowed are numbers above 0")
    rows = has_near(km, mask, near_km)
    with torch.autocast(similarity.device.type, enabled=False):
        others, mask = similarity.float()[rows] / temperature, mask[rows]
        targets = (-km[rows].float() / near_km).masked_fill(~mask, -torch.inf).softmax(1)
        log_share = others.masked_fill(~mask, -torch.inf).log_softmax(1).masked_fill(~mask, 0.0)
        return -(targets * log_share).sum() / max(1, len(mask))


class _Cells(NamedTuple):
    """Pairs by cell, in random order within each; cells ascend in distance, then in similarity."""

    pairs: torch.Tensor  # (n,)
    bucket: torch.Tensor  # (C,) of distance
    start: torch.Tensor  # (C,) where a cell's pairs begin
    size: torch.Tensor  # (C,)


def _pairs(
    similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor, curve: MeanCurve
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The usable pairs i < j: their rows (n, 2), similarities (n,) float32 and buckets (n,)."""
    if not similarity.shape == km.shape == mask.shape or similarity.ndim != 2 or len(km) != km.shape[1]:
        raise KitError(
            f"similarity {tuple(similarity.shape)}, km {tuple(km.shape)}, mask {tuple(mask.shape)}: "
            "allowed are three of shape (B, B)"
        )
    rows = mask.triu(1).nonzero()
    i, j = rows.T
    return rows, similarity.detach()[i, j].float(), curve.bucket(km[i, j])


def _cells(
    pairs: torch.Tensor, bucket: torch.Tensor, level: torch.Tensor, levels: int, generator: torch.Generator | None
) -> _Cells:
    pairs = pairs[torch.randperm(len(pairs), generator=generator, device=pairs.device)]
    cell, order = (bucket[pairs] * levels + level[pairs]).sort(stable=True)
    cell, size = cell.unique_consecutive(return_counts=True)
    return _Cells(pairs[order], cell // levels, size.cumsum(0) - size, size)


def _round(
    cells: _Cells, first: int, n_cells: int, n: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """n times the next of the `n_cells` cells from `first`, in random order, and the next pair of each: both (n,)."""
    device = cells.pairs.device
    turn = torch.arange(n, device=device)
    cell = first + torch.randperm(n_cells, generator=generator, device=device)[turn % n_cells]
    return cell, cells.pairs[cells.start[cell] + (turn // n_cells) % cells.size[cell]]


def _random(
    cells: _Cells, first: torch.Tensor, n_cells: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """A random pair from a random one of the `n_cells` (n,) cells from `first` (n,)."""

    def below(limit: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(len(limit), generator=generator, device=limit.device)
        return torch.minimum((uniform * limit).long(), limit - 1)  # float32 may round up to the limit

    cell = first + below(n_cells)
    return cells.pairs[cells.start[cell] + below(cells.size[cell])]
