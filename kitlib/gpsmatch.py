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

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import ArrayLike
from torch import nn

from kitlib import fitting, geo, losses, neighbours, views
from kitlib.encoders import Encoder
from kitlib.geolocator import Batch, encode
from kitlib.gpsnet import GpsMatch, embed_images
from kitlib.gpsqueue import GpsQueue, contrast, jitter, too_near, unit_vectors
from kitlib.location import embed_points
from kitlib.paths import KitError

__all__ = ["GpsMatch", "MatchTraining", "Teaching", "embed_images", "guess"]


@dataclass(frozen=True)
class Teaching:
    """What a `GpsMatch` is taught, and how."""

    queue: int = 4096  # earlier places that are negatives too; more than there are places only repeat them
    noise_m: float = 150.0  # metres by which a place is moved to the east and to the north, standard deviation
    queue_noise_m: float = 1000.0  # the same for the queue
    same_km: float = 1.0  # places closer to the image's own are no negatives; 0: all are, the same place again too
    symmetric: bool = False  # tell the batch's images apart by place as well, as CLIP does; GeoCLIP does not
    freeze: float = 0.0  # share of the steps in which the location encoder does not learn yet
    view_dropout: float = 0.3  # share of views left out
    mirror: bool = True  # learn from mirrored places too
    vary: float = 1.0  # how far light and zoom of pictures vary; 0: not at all
    weight_decay: float = 0.05  # of matrices; biases, norms and the logit scale have none
    warmup: float = 0.1  # share of the steps in which the rates rise; then they fall along a cosine
    layer_decay: float = 0.9  # factor from each layer's rate of the encoder to the one below it

    def __post_init__(self) -> None:
        """Raises KitError for a value out of range."""
        for name in ("queue", "noise_m", "queue_noise_m", "same_km", "vary", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise KitError(f"{name} {getattr(self, name)}: allowed are numbers from 0")
        for name in ("freeze", "view_dropout", "warmup", "layer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise KitError(f"{name} {getattr(self, name)}: allowed is a share from 0 to 1")


class MatchTraining(pl.LightningModule):
    """A `GpsMatch`, and the encoder below it when it learns too, with loss, queue and optimizer.

    Batches hold `features` or `views`, as for `geolocator.encode`, and `point` (B, 2), each place in degrees.
    gallery_points: (M, 2), the training places say, among which validation looks for the held-out ones.
    rate: of the image side and the logit scale; location_rate: of the location encoder, the same when None;
    encoder_rate: of the image encoder's top layer. n_blocks: last blocks of it that learn, -1 for all of it.
    """

    gallery_points: torch.Tensor

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
        encoder_rate: float = 0.0,
        n_blocks: int = -1,
    ) -> None:
        super().__init__()
        self.match, self.encoder, self.teaching, self.total_steps = match, encoder, teaching, total_steps
        self.rate, self.encoder_rate = rate, encoder_rate
        self.location_rate = rate if location_rate is None else location_rate
        self.queue = GpsQueue(teaching.queue)
        self.freeze_steps = round(teaching.freeze * total_steps)
        self.strict_loading = False  # see state_dict
        self.layers = [] if encoder is None else encoder.train_last(None if n_blocks < 0 else n_blocks)
        gallery = geo.check_points(np.empty((0, 2)) if gallery_points is None else gallery_points, "the gallery")
        if gallery.ndim != 2:
            raise KitError(f"the gallery has shape {gallery.shape}, wanted is (M, 2), [lat, lon]")
        self.register_buffer("gallery_points", torch.from_numpy(gallery).float(), persistent=False)
        self.gallery_places = torch.empty(0)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss over the batch; the logit scale and the share that find their place in it are logged."""
        teaching, points = self.teaching, batch["point"].float()
        features = encode(self._varied(batch), self.encoder)
        keep = torch.rand(features.shape[:2], device=self.device) >= teaching.view_dropout
        keep |= ~keep.any(1, keepdim=True)  # a place that would lose every view keeps them all
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
        km = losses.haversine_km(unit_vectors(best), unit_vectors(batch["point"].float()))
        self.log("val_km", km.mean(), batch_size=len(km), sync_dist=True)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the encoder's frozen weights, which are on the disk already: checkpoints stay small."""
        frozen = {f"encoder.{n}" for n, p in (self.encoder or nn.Module()).named_parameters() if not p.requires_grad}
        return {name: t for name, t in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up and cosine; the further down a layer of the encoder, the lower its rate."""
        location = list(self.match.location.parameters())
        own = [p for name, p in self.match.named_parameters() if not name.startswith("location.")]
        groups = self._groups(own, self.rate) + self._groups(location, self.location_rate)
        for depth, layer in enumerate(reversed(self.layers)):
            groups += self._groups(layer, self.encoder_rate * self.teaching.layer_decay**depth)
        optimizer = torch.optim.AdamW(groups, fused=fitting.may_fuse(self))
        schedule = fitting.warmup_cosine(optimizer, self.total_steps, self.teaching.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _varied(self, batch: Batch) -> Batch:
        """The batch as it is learned from: places mirrored at random, pictures varied in light and zoom too."""
        if self.encoder is None:
            features = batch["features"]
            sides = features.shape[1] if self.teaching.mirror else 1
            which = torch.randint(sides, (len(features),), device=features.device)
            return {"features": features[torch.arange(len(features), device=features.device), which][:, None]}
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        mirrored, light, zoom = 0.5 * self.teaching.mirror, 0.15 * self.teaching.vary, 0.1 * self.teaching.vary
        smaller = self.encoder.preprocess.shrink(batch["views"])
        return {"views": views.augment(smaller, generator, mirrored, light, zoom)}

    def _groups(self, parameters: list[nn.Parameter], rate: float) -> list[dict[str, Any]]:
        """Weight decay for matrices, none for biases, norms and other vectors."""
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.teaching.weight_decay}]
        groups.append({"params": vectors, "weight_decay": 0.0})
        return [group | {"lr": rate} for group in groups if group["params"]]


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
    embedded once. The groups are those of `neighbours.search`. The softmax of the similarities times the logit scale
    weighs the entries: training learns how much likelier a place is for this image than for any, so that training
    places bring the density of places along, and a grid does not.
    """
    places = embed_points(match.location, gallery_points, batch, device)
    images = embed_images(match, features, batch, device)
    similarity, index = neighbours.search(
        images, places, k, query_group=query_group, gallery_group=gallery_group, device=match.log_scale.device
    )
    return index, similarity
