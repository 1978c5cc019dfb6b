"""Train image-to-GPS matching as in GeoCLIP: images and places share one embedding, the nearest place is the guess.

    match = GpsMatch(n_features, sigmas=(2, 4, 8))
    match.fit_scale(features)                                  # (N, V, D) of the training places
    module = MatchTraining(match, None, MatchOptions(), steps, gallery_points=points, rate=3e-4)
    fit(module, batches, folder, epochs=60, config=..., val_batches=..., monitor="val_km")

The method is that of Vivanco Cepeda et al. 2023, arXiv:2309.16020: an image's negatives are the places of its batch and
a queue of earlier ones, which holds coordinates and is encoded anew in each step, with its gradient. Three things
differ: noise on coordinates is in metres, not in degrees; the queue starts empty; and places close to the image's own
are no negatives. The finer the scales of the location encoder, the more places it needs to learn more than a list.

Points are tensors (..., 2) [lat, lon] in degrees. In float32, the type on a GPU, longitudes are exact to a metre; noise
and distances are in the points' own precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval.config import MatchOptions
from kitlib.models.retrieval.gps_network import GpsMatch
from kitlib.training import sphere
from kitlib.training.learner import Batch, Learner, encode
from kitlib.vision.encoders import Encoder


def jitter(points: torch.Tensor, noise_m: float) -> torch.Tensor:
    """Points (..., 2) with normal noise of standard deviation `noise_m` metres to the east and to the north.

    >>> jitter(torch.tensor([[10.0, 20.0]]), 0.0).tolist()
    [[10.0, 20.0]]
    """
    return sphere.moved(points, torch.randn_like(points) * (noise_m / 1000)) if noise_m > 0 else points


class GpsQueue(nn.Module):
    """The last `size` points (n, 2) that were pushed, saved in the state_dict so that a fit resumes exactly.

    It starts empty. With several processes each pushes its own points, and DDP broadcasts those of the first.
    """

    points: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.zeros(size, 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # points ever pushed

    def forward(self) -> torch.Tensor:
        """A copy of the points (n, 2) in the queue, in no particular order."""
        return self.points[: int(self.count)].clone()

    @torch.no_grad()
    def push(self, points: torch.Tensor) -> None:
        """Add points (B, 2), which replace the oldest ones when the queue is full."""
        size = len(self.points)
        if size:
            newest = points[-size:]
            skipped = len(points) - len(newest)
            slots = (self.count + skipped + torch.arange(len(newest), device=points.device)) % size
            self.points[slots] = newest.to(self.points)
        self.count += len(points)


def too_near(points: torch.Tensor, others: torch.Tensor, same_km: float) -> torch.Tensor:
    """Mask (B, M) of others (M, 2) that are closer than `same_km` to points (B, 2)."""
    return sphere.haversine_km(sphere.unit_vectors(points)[:, None], sphere.unit_vectors(others)) < same_km


def contrast(logits: torch.Tensor, left_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of images against places, and the share of images whose own place ranks first.

    logits (B, B + Q) of images and places: image i belongs to place i, the last Q are from the queue. left_out
    (B, B + Q) bool: places that are no negatives of an image; its own place always counts.

    >>> contrast(torch.zeros(1, 2), torch.tensor([[True, False]]))[0].exp().round().item()
    2.0
    """
    n = len(logits)
    own = torch.arange(n, device=logits.device)
    left_out = left_out & (own[:, None] != torch.arange(logits.shape[1], device=logits.device))
    logits = logits.float().masked_fill(left_out, -torch.inf)
    return F.cross_entropy(logits, own), (logits[:, :n].argmax(1) == own).float().mean()


class MatchTraining(Learner):
    """Trains a `GpsMatch`, and the encoder below it if there is one.

    Batches hold `point` (B, 2) in degrees. gallery_points: (M, 2), the gallery of the validation, such as the training
    places. rates: the keyword arguments of `Learner`.
    """

    gallery_points: torch.Tensor
    options: MatchOptions

    def __init__(
        self,
        match: GpsMatch,
        encoder: Encoder | None,
        options: MatchOptions,
        total_steps: int,
        *,
        gallery_points: ArrayLike | None = None,
        **rates: Any,
    ) -> None:
        super().__init__(encoder, options, total_steps, **rates)
        self.match, self.queue = match, GpsQueue(options.queue)
        gallery = geo.check_points(np.empty((0, 2)) if gallery_points is None else gallery_points, "gallery_points")
        if gallery.ndim != 2:
            raise KitError(f"gallery_points: expected shape (M, 2), [lat, lon]; got {gallery.shape}")
        self.register_buffer("gallery_points", torch.from_numpy(gallery).float(), persistent=False)
        self.gallery_places = torch.empty(0)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; logs the logit scale and the share of images whose own place ranks first."""
        options, points = self.options, batch["point"].float()
        features, keep = self.seen(batch)
        queued = self.queue()
        moved = torch.cat([jitter(points, options.noise_m), jitter(queued, options.queue_noise_m)])
        logits = self.match.logits(self.match.images(features, keep), self.match.places(moved))
        left_out = too_near(points, torch.cat([points, queued]), options.same_km)
        loss, top1 = contrast(logits, left_out)
        self.queue.push(points)
        self.log_dict({"logit_scale": self.match.log_scale.detach().exp(), "top1": top1})
        return loss

    @torch.no_grad()
    def on_validation_epoch_start(self) -> None:
        """Embed the gallery."""
        if not len(self.gallery_points):
            raise KitError("gallery_points: expected the gallery of the validation; got none")
        self.gallery_places = torch.cat([self.match.places(part) for part in self.gallery_points.split(8192)])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val_km, the mean distance from a held-out place to the gallery point of its best match."""
        images = self.match.images(encode(batch, self.encoder))
        best = self.gallery_points[self.match.logits(images, self.gallery_places).argmax(1)]
        km = sphere.haversine_km(sphere.unit_vectors(best), sphere.unit_vectors(batch["point"].float()))
        self.log("val_km", km.mean(), batch_size=len(km), sync_dist=True)
