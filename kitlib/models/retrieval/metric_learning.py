"""Metric learning on embeddings of places: places near on the globe become similar in the embedding.

    projection = Projection(n_features, dim=512)
    projection.fit_scale(pool(features))                      # (N, V, D) of the training places
    module = MetricTraining(projection, None, options, steps, rate=1e-4)
    fit(module, near_batches(points, 128, seed, load), folder, epochs=30, config=...)
    projection(pool(features))                                # (N, dim), whose dot products are similarities

The losses compare all places of a batch, so a larger batch has more pairs; accumulating gradients over several batches,
or several devices, adds none.

Of two pairs of places, the clearly nearer one on the globe should be the more similar one; otherwise they are a
violation. Distances fall into buckets, and two pairs are compared when their buckets are at least `GAP` apart: as edges
double, the far pair's distance is more than twice the near pair's. The losses are CoSENT (Su 2022,
kexue.fm/archives/8847) over such pairs, and InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with targets that
decay with the distance. Throughout, similarity, km and mask are (B, B) and symmetric; mask selects the usable pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import nn

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.models.retrieval.config import MetricOptions
from kitlib.training import sphere
from kitlib.training.learner import Batch, Learner, encode
from kitlib.vision.encoders import Encoder
from kitlib.vision.fusion import Standardised

KM_EDGES = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0)  # between 11 buckets
GAP = 2  # buckets from a pair to a clearly farther one
REACH = 3.0  # in near_km, where a target's weight is 5 % of the highest; places within it are near
MOST_ROWS = 4096  # places that give the principal directions where features are more than that


class Projection(Standardised):
    """Pooled features (B, D) to embeddings (B, dim) of length 1; call `fit_scale` with the training features first.

    It starts from the standardised features along their `dim` principal directions, so that similarities begin as
    those of the frozen features as far as `dim` allows, and learns a linear change. hidden: units of an additional
    hidden layer, 0 for none.
    """

    start: torch.Tensor

    def __init__(self, n_features: int, dim: int = 512, hidden: int = 0, dropout: float = 0.3) -> None:
        super().__init__(n_features)
        if not 1 <= dim <= n_features or hidden < 0 or not 0 <= dropout < 1:
            raise KitError(
                f"dim, hidden, dropout: expected dim 1..{n_features} for {n_features} features, hidden from 0, dropout "
                f"from 0 to below 1; got {dim}, {hidden}, {dropout}"
            )
        self.settings: dict[str, Any] = {"n_features": n_features, "dim": dim, "hidden": hidden, "dropout": dropout}
        self.dropout = nn.Dropout(dropout)
        self.change = nn.Linear(n_features, dim)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)
        self.hidden = nn.Linear(n_features, hidden) if hidden else None
        if hidden:
            self.out = nn.Linear(hidden, dim, bias=False)
            nn.init.zeros_(self.out.weight)
        self.register_buffer("start", torch.eye(dim, n_features))

    @torch.no_grad()
    def fit_scale(self, features: torch.Tensor) -> None:
        """Take mean, spread and principal directions from the training places' pooled features (..., D)."""
        super().fit_scale(features)
        features = features.reshape(-1, features.shape[-1])
        if features.shape[1] > MOST_ROWS < len(features):
            features = features[torch.linspace(0, len(features) - 1, MOST_ROWS).long()]
        self.start.copy_(principal_directions(self.standardise(features.float()), len(self.start)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) float32 of pooled features (B, D)."""
        standard = self.dropout(self.standardise(features.float()))
        out = F.linear(standard, self.start + self.change.weight, self.change.bias)
        if self.hidden is not None:
            out = out + self.out(F.gelu(self.hidden(standard)))
        return F.normalize(out.float(), dim=1)


def principal_directions(centred: torch.Tensor, dim: int) -> torch.Tensor:
    """Orthonormal directions (dim, D) float64, dim at most D, of centred features (N, D), largest variance first.

    The smaller of the Gram matrices is decomposed, (N, N) or (D, D). Directions beyond the rank are arbitrary.

    >>> principal_directions(torch.tensor([[0.0, 3.0, 0.0], [0.0, -3.0, 0.0]]), 1).abs().tolist()
    [[0.0, 1.0, 0.0]]
    """
    n, d = centred.shape
    if n >= d:
        return torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.flip(1)[:, :dim].T
    among_rows = torch.linalg.eigh((centred @ centred.T).double()).eigenvectors.flip(1)[:, :dim]
    columns = torch.eye(d, dim, dtype=torch.float64)  # QR completes what the rows do not span
    columns[:, : among_rows.shape[1]] = (centred.T @ among_rows.float()).double()
    return torch.linalg.qr(columns).Q.T


def pool(features: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """The mean (B, D) float32 of views (B, V, D), or of those in keep (B, V) bool, at least one a place."""
    if keep is None:
        return features.float().mean(1)
    return (features.float() * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


def pair_mask(km: torch.Tensor, group: torch.Tensor | None = None, min_km: float = 0.0) -> torch.Tensor:
    """Mask (B, B) of usable pairs: two places of different groups (B,), not closer than min_km.

    >>> pair_mask(torch.tensor([[0.0, 3.0], [3.0, 0.0]]), min_km=5.0).any().item()
    False
    """
    mask = (km >= min_km) & ~torch.eye(len(km), dtype=torch.bool, device=km.device)
    return mask if group is None else mask & (group[:, None] != group)


def _pairs(similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities (P,) float32 and buckets of distance (P,) of the usable pairs i < j."""
    i, j = mask.triu(1).nonzero().T
    edges = torch.tensor(KM_EDGES, device=km.device)
    return similarity[i, j].float(), torch.bucketize(km[i, j].float().contiguous(), edges, right=True)


@torch.no_grad()
def violations(similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of violations, and of compared pairs of pairs: two scalars, exact.

    In a violation the near pair's similarity is below the far pair's.
    """
    similarity, bucket = _pairs(similarity, km, mask)
    similarity, order = similarity.sort()
    bucket = bucket[order]
    wrong = compared = torch.zeros((), dtype=torch.int64, device=km.device)
    for number in range(len(KM_EDGES) + 1 - GAP):
        near, far = similarity[bucket == number], similarity[bucket >= number + GAP]
        wrong = wrong + (len(far) - torch.searchsorted(far, near, right=True)).sum()
        compared = compared + len(near) * len(far)
    return wrong, compared


def cosent(similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor, scale: float = 5.0) -> torch.Tensor:
    """log(1 + sum over buckets of mean exp(scale * (s_far - s_near))), float32; each near bucket has the same weight.

    The mean is over all pairs of the bucket with all clearly farther ones, each farther bucket with the same weight. It
    is a product of means, so that no pairs of pairs have to be sampled. Without two such buckets the loss is 0.

    >>> km = torch.tensor([[0.0, 5.0, 900.0], [5.0, 0.0, 900.0], [900.0, 900.0, 0.0]])
    >>> round(cosent(torch.zeros(3, 3), km, km > 0).item(), 4)
    0.6931
    """
    with torch.autocast(similarity.device.type, enabled=False):
        similarity, bucket = _pairs(similarity, km, mask)
        inside = F.one_hot(bucket, len(KM_EDGES) + 1).float()
        inside = inside / inside.sum(0).clamp(min=1)
        near, far = (-scale * similarity).exp() @ inside, (scale * similarity).exp() @ inside
        return (near @ torch.ones(len(near), len(far), device=near.device).triu(GAP) @ far).log1p()


def has_near(km: torch.Tensor, mask: torch.Tensor, near_km: float) -> torch.Tensor:
    """Mask (B,) of places with a usable near place in the batch, within REACH times near_km."""
    return (mask & (km <= REACH * near_km)).any(1)


def info_nce(
    similarity: torch.Tensor, km: torch.Tensor, mask: torch.Tensor, temperature: float = 0.07, near_km: float = 100.0
) -> torch.Tensor:
    """Mean cross-entropy, float32, of softmax(similarity / temperature) over the other places against soft targets.

    A row's targets are proportional to exp(-km / near_km) over the places in the mask. Rows without a near place (see
    `has_near`) do not count; without any row the loss is 0.
    """
    rows = has_near(km, mask, near_km)
    with torch.autocast(similarity.device.type, enabled=False):
        others, mask = similarity.float()[rows] / temperature, mask[rows]
        targets = (-km[rows].float() / near_km).masked_fill(~mask, -torch.inf).softmax(1)
        log_share = others.masked_fill(~mask, -torch.inf).log_softmax(1).masked_fill(~mask, 0.0)
        return -(targets * log_share).sum() / max(1, len(mask))


class MetricTraining(Learner):
    """Trains a projection, and the encoder below it if there is one.

    Batches hold `place` (B, 3), unit vectors, and `group` (B,), the groups of near-duplicates. rates: the keyword
    arguments of `Learner`.
    """

    options: MetricOptions

    def __init__(
        self, projection: Projection, encoder: Encoder | None, options: MetricOptions, total_steps: int, **rates: Any
    ) -> None:
        super().__init__(encoder, options, total_steps, **rates)
        self.projection = projection

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss; logs its parts, the share of violations, and the share of places without a near one."""
        options = self.options
        similarity, km, mask = self._compare(self.projection(pool(*self.seen(batch))), batch)
        parts = {}
        if options.loss in ("cosent", "both"):
            parts["cosent"] = cosent(similarity, km, mask, options.scale)
        if options.loss in ("infonce", "both"):
            parts["infonce"] = info_nce(similarity, km, mask, options.temperature, options.near_km)
        wrong, compared = violations(similarity, km, mask)
        without_near = 1 - has_near(km, mask, options.near_km).float().mean()
        self.log_dict(parts | {"violations": wrong / compared.clamp(min=1), "without_near": without_near})
        return torch.stack(list(parts.values())).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the share of violations among held-out places of a batch, and the mean km to the most similar one.

        The means over all batches are weighted by pairs of pairs, and by places with a usable other.
        """
        similarity, km, mask = self._compare(self.projection(pool(encode(batch, self.encoder))), batch)
        wrong, compared = (int(number) for number in violations(similarity, km, mask))
        self.log("val_violations", wrong / max(1, compared), batch_size=compared, sync_dist=True)
        usable = mask.any(1)
        nearest = similarity.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
        nearest_km = (km.gather(1, nearest)[:, 0] * usable).sum() / usable.sum().clamp(min=1)
        self.log("val_nearest_km", nearest_km, batch_size=int(usable.sum()), sync_dist=True)

    def _compare(self, embeddings: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Similarity, km and mask (B, B) of a batch's places."""
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = embeddings @ embeddings.T
        km = sphere.haversine_km(batch["place"][:, None], batch["place"])
        return similarity, km, pair_mask(km, batch["group"], self.options.min_km)


class _NearBatches(Batches):
    """Batches in an order in which neighbours on the globe follow each other."""

    together: int
    vectors: np.ndarray  # (N, 3) of the rows

    def order(self, epoch: int) -> np.ndarray:
        """The rows, grouped by the nearest of random seed rows, in random order of the seeds."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        seeds = shuffled[: max(1, len(shuffled) // self.together)]
        cell = cKDTree(self.vectors[seeds]).query(self.vectors[shuffled])[1]
        return self.rows[shuffled[np.argsort(cell, kind="stable")]]


def near_batches(
    points: np.ndarray,
    batch_size: int,
    seed: int,
    load: Callable[[np.ndarray], dict[str, Any]],
    *,
    rows: np.ndarray | None = None,
    together: int = 4,
    prefetch: bool = False,
) -> Batches:
    """`Batches` in which neighbours on the globe come together, in groups of `together` places on average.

    points (N, 2) of all places; rows: those of the batches, all when None. In each epoch one row in `together` is a
    seed, and every row joins the nearest seed; seeds and their groups are in random order. As in `Batches`, each row
    comes once an epoch, in an order that depends on (seed, epoch) alone. Several processes divide the groups among
    them.
    """
    rows = np.arange(len(points)) if rows is None else rows
    batches = _NearBatches(rows, batch_size, seed, load, prefetch=prefetch)
    batches.together = together
    batches.vectors = geo.unit_vectors(points[batches.rows])
    return batches
