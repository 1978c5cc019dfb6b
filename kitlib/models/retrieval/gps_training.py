"""Image to GPS, GeoCLIP's way: images and places embedded alike, so that the nearest place of a gallery is the guess.

    match = GpsMatch(n_features, sigmas=(2, 4, 8))
    match.fit_scale(features)                                  # (N, V, D) of the training places
    module = MatchTraining(match, None, Teaching(), steps, gallery_points=points, rate=3e-4)
    fit(module, batches, folder, epochs=60, config=..., val_batches=..., monitor="val_km")
    index, similarity = guess(match, features, gallery_points, k=16)

Vivanco Cepeda et al. 2023, arXiv:2309.16020. As there, an image is told apart from the places of its batch and from a
queue of earlier ones, which is kept as coordinates and encoded anew each step, with its gradient. Not as there: noise
on coordinates is in metres, not in degrees; the queue starts empty; and a place that is all but the image's own is no
negative. The finer the scales of the location encoder, the more places it takes before it learns more than a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.retrieval import search
from kitlib.models.retrieval.geoclip import embed_points
from kitlib.models.retrieval.gps_network import GpsMatch, embed_images
from kitlib.models.retrieval.gps_queue import GpsQueue, contrast, jitter, too_near, unit_vectors
from kitlib.training import learner, sphere
from kitlib.training.learner import Batch, Learner, encode
from kitlib.vision.encoders import Encoder


@dataclass(frozen=True)
class Teaching(learner.Teaching):
    """What a `GpsMatch` is taught, and how."""

    queue: int = 4096  # earlier places that are negatives too; more than there are places only repeat them
    noise_m: float = 150.0  # metres by which a place is moved to the east and to the north, standard deviation
    queue_noise_m: float = 1000.0  # the same for the queue
    same_km: float = 1.0  # places closer to the image's own are no negatives; 0: all are, the same place again too
    symmetric: bool = False  # tell the batch's images apart by place as well, as CLIP does; GeoCLIP does not
    freeze: float = 0.0  # share of the steps in which the location encoder does not learn yet

    SHARES: ClassVar = (*learner.Teaching.SHARES, "freeze")


class MatchTraining(Learner):
    """A `GpsMatch`, and the encoder below it when it learns too, with loss and queue.

    Batches hold `point` (B, 2), each place in degrees. gallery_points: (M, 2), the training places say, among which
    validation looks for the held-out ones. rate: of the image side and the logit scale; location_rate: of the location
    encoder, the same when None. options: those of `Learner`, as everything else.
    """

    gallery_points: torch.Tensor
    teaching: Teaching

    def __init__(
        self,
        match: GpsMatch,
        encoder: Encoder | None,
        teaching: Teaching,
        total_steps: int,
        *,
        rate: float,
        gallery_points: ArrayLike | None = None,
        location_rate: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, teaching, total_steps, rate=rate, **options)
        self.match, self.queue = match, GpsQueue(teaching.queue)
        self.location_rate = rate if location_rate is None else location_rate
        self.freeze_steps = round(teaching.freeze * total_steps)
        gallery = geo.check_points(np.empty((0, 2)) if gallery_points is None else gallery_points, "the gallery")
        if gallery.ndim != 2:
            raise KitError(f"the gallery has shape {gallery.shape}, wanted is (M, 2), [lat, lon]")
        self.register_buffer("gallery_points", torch.from_numpy(gallery).float(), persistent=False)
        self.gallery_places = torch.empty(0)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; the logit scale and the share that find their place in it are logged."""
        teaching, points = self.teaching, batch["point"].float()
        features, keep = self.seen(batch)
        queued = self.queue()
        moved = torch.cat([jitter(points, teaching.noise_m), jitter(queued, teaching.queue_noise_m)])
        logits = self.match.logits(self.match.images(features, keep), self.match.places(moved))
        left_out = too_near(points, torch.cat([points, queued]), teaching.same_km)
        loss, top1 = contrast(logits, left_out, teaching.symmetric)
        self.queue.push(points)
        self.log_dict({"logit_scale": self.match.log_scale.detach().exp(), "top1": top1})
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the location encoder as it is in the first steps; here, as DDP wants a gradient for every weight."""
        if self.trainer.global_step < self.freeze_steps:
            for parameter in self.match.location.parameters():
                parameter.grad = None

    @torch.no_grad()
    def on_validation_epoch_start(self) -> None:
        """Embed the gallery."""
        if not len(self.gallery_points):
            raise KitError("validation looks for held-out places in a gallery: give gallery_points")
        self.gallery_places = torch.cat([self.match.places(some) for some in self.gallery_points.split(8192)])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log how far the gallery's best place lies from a held-out place, on average: val_km."""
        images = self.match.images(encode(batch, self.encoder))
        best = self.gallery_points[self.match.logits(images, self.gallery_places).argmax(1)]
        km = sphere.haversine_km(unit_vectors(best), unit_vectors(batch["point"].float()))
        self.log("val_km", km.mean(), batch_size=len(km), sync_dist=True)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """The location encoder by a rate of its own."""
        own = [p for name, p in self.match.named_parameters() if not name.startswith("location.")]
        return [(own, self.rate), (list(self.match.location.parameters()), self.location_rate)]


def guess(
    match: GpsMatch,
    features: np.ndarray,
    gallery_points: ArrayLike,
    k: int,
    *,
    query_group: ArrayLike | None = None,
    gallery_group: ArrayLike | None = None,
    batch: int = 4096,
    device: torch.device | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The gallery's entries that go best with each image: rows (N, k) int64 and similarities (N, k), best first.

    features: as for `embed_images`. gallery_points: (M, 2), any places at all: training places, a grid; each is
    embedded once. The groups are those of `search`. The softmax of the similarities times the logit scale
    weighs the entries: training learns how much likelier a place is for this image than for any, so that training
    places bring the density of places along, and a grid does not.
    """
    places = embed_points(match.location, gallery_points, batch, device)
    images = embed_images(match, features, batch, device)
    similarity, index = search.search(
        images, places, k, query_group=query_group, gallery_group=gallery_group, device=match.log_scale.device
    )
    return index, similarity
