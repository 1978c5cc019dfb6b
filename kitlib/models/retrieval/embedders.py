"""The embedders of retrieval: standardised frozen features, a metric-learning projection, or image-to-GPS matching.

Each embeds features (N, M, V, D) of places, M being plain and mirrored, as queries for `search`. Its gallery holds the
same embeddings of other places or, with image-to-GPS matching, embeddings of coordinates.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from kitlib.core import storage
from kitlib.core.checks import numbers
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.data.places import Places
from kitlib.models.retrieval import metric_learning, search
from kitlib.models.retrieval.config import EmbedderOptions, MatchOptions, MetricOptions
from kitlib.models.retrieval.geoclip import embed_points
from kitlib.models.retrieval.gps_network import GpsMatch, embed_images
from kitlib.models.retrieval.gps_training import MatchTraining
from kitlib.models.retrieval.metric_learning import MetricTraining, Projection
from kitlib.training import fit
from kitlib.training.learner import Batch, Learner
from kitlib.training.sphere import unit_vectors
from kitlib.vision import weights
from kitlib.vision.device import precision_of
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs

ROWS = 4096  # places that are converted to float32 at once


class Frozen:
    """Features standardised by the training places; `by` is how views are compared (`search.features_for`)."""

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor, by: str) -> None:
        self.mean, self.scale, self.by = mean, scale, by

    @classmethod
    def fit(cls, features: torch.Tensor, by: str) -> Frozen:
        """Take mean and spread of each of the D features (N, M, V, D) of the training places."""
        flat, n = features.flatten(0, 2), features[..., 0].numel()
        mean = sum(part.double().sum(0) for part in flat.split(ROWS)) / n
        spread = (sum(((part - mean) ** 2).sum(0) for part in flat.split(ROWS)) / n).sqrt()
        return cls(mean.float(), (1 / (spread + 1e-3 * spread.mean() + 1e-12)).float(), by)

    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, E), or (N, V, E) of which the best counts when views are compared by rotation."""
        return search.features_for(self._standard(features), self.by)

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, E) of places with features."""
        return search.features_for(self._standard(features), "heading" if self.by == "rotation" else self.by)

    def save(self, folder: Path) -> None:
        """Write mean and spread."""
        weights.write(folder / "frozen.safetensors", {"mean": self.mean, "scale": self.scale}, {"by": self.by})

    def _standard(self, features: torch.Tensor) -> np.ndarray:
        """(N, V, D) float32, the mean over sides."""
        check(features, len(self.mean))
        out = np.empty((len(features), *features.shape[2:]), np.float32)
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            out[rows] = ((features[rows].float().mean(1) - self.mean) * self.scale).numpy()
        return out


class Projected:
    """Features through a `Projection`, in which places near on the globe are similar."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection.eval().cpu()

    @torch.inference_mode()
    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, dim), the mean over sides."""
        check(features, self.projection.settings["n_features"])
        sides = [
            torch.stack([self.projection(metric_learning.pool(side)) for side in part.unbind(1)]).mean(0)
            for part in features.split(ROWS)
        ]
        return torch.cat(sides).numpy()

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, dim) of places with features."""
        return self.queries(features)

    def save(self, folder: Path) -> None:
        """Write the projection."""
        self.projection.save(folder / "projection.safetensors")


class Matched:
    """Features through the image side of a `GpsMatch`, and coordinates through its location encoder."""

    def __init__(self, match: GpsMatch) -> None:
        self.match = match.eval().cpu()

    def queries(self, features: torch.Tensor) -> np.ndarray:
        """(N, dim), the mean over sides."""
        return embed_images(self.match, features.numpy())

    def entries(self, features: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """(M, dim) of points (M, 2); features are ignored."""
        return embed_points(self.match.location, points)

    def save(self, folder: Path) -> None:
        """Write the network."""
        self.match.save(folder / "match.safetensors")


Embedder = Frozen | Projected | Matched


def load(folder: Path, method: str, by: str) -> Embedder:
    """Read what an embedder's `save` wrote to `folder`."""
    if method == "knn":
        with storage.reading(folder / "frozen.safetensors"):
            return Frozen(**weights.read(folder / "frozen.safetensors")[0], by=by)
    if method == "metric":
        return Projected(Projection.load(folder / "projection.safetensors"))
    return Matched(GpsMatch.load(folder / "match.safetensors"))


def frozen_embedding(places: Places, encoder: str, image_size: int = 0) -> np.ndarray:
    """Embeddings (N, E) of the training places by a frozen encoder: standardised, the mean of the views."""
    features = Inputs(places, encoder, image_size).features["train"]
    return Frozen.fit(features, "mean").queries(features)


def check(features: torch.Tensor, n_features: int) -> None:
    """Raises KitError unless features are (N, M, V, n_features)."""
    if features.ndim != 4 or features.shape[-1] != n_features:
        raise KitError(
            f"features: expected shape (N, M, V, {n_features}), as the gallery's, from the same encoder; "
            f"got {tuple(features.shape)}"
        )


T = TypeVar("T", MetricOptions, MatchOptions)


def train(
    options: EmbedderOptions,
    inputs: Inputs,
    group: np.ndarray,
    rows: np.ndarray,
    val: np.ndarray,
    folder: Path,
    devices: int = 1,
    max_hours: float | None = None,
) -> tuple[Projected | Matched, Encoder | None] | None:
    """Train the embedder of the method metric or gps; returns it with its fine-tuned encoder, if there is one.

    group (N,): the groups of near-duplicates. rows: the training places. val: places on which the fit is monitored,
    without influence on it; there may be none. folder: of the fits, which resume there. Returns None when max_hours are
    over.
    """
    began, features, points = time.monotonic(), inputs.features["train"], inputs.places.points("train")
    torch.manual_seed(options.seed)
    labels = {"place": unit_vectors(points), "group": torch.tensor(group), "point": torch.tensor(points)}
    network = _network(options, features, rows)

    def phase(name: str, encoder: Encoder | None, batch: int, epochs: int, **rates: Any) -> bool:
        def load_batch(r: np.ndarray) -> Batch:
            return inputs.inputs_for("train", encoder, r) | {name: label[r] for name, label in labels.items()}

        size, prefetch = min(batch, math.ceil(len(rows) / devices)), encoder is not None
        if options.method == "metric":
            batches = metric_learning.near_batches(points, size, options.seed, load_batch, rows=rows, prefetch=prefetch)
        else:
            batches = Batches(rows, size, options.seed, load_batch, prefetch=prefetch)
        steps = fit.total_steps(len(rows), size, 1, epochs, devices)
        return fit.fit(
            _training(network, encoder, options, steps, points[rows], **rates),
            batches,
            folder / name,
            epochs=epochs,
            config=asdict(options),
            val_batches=Batches(val, size, 0, load_batch, shuffle=False, prefetch=prefetch) if len(val) else None,
            devices=devices,
            max_hours=max_hours and max_hours - (time.monotonic() - began) / 3600,
            precision=precision_of(inputs.dtype),
            seed=options.seed,
        ).finished

    if not phase(options.method, None, options.batch, options.epochs, rate=options.rate):
        return None
    encoder = inputs.encoder() if options.finetune_epochs else None
    if encoder:
        if options.gradient_checkpointing:
            encoder.enable_checkpointing()
        rates = {"rate": options.rate, "encoder_rate": options.finetune_rate}
        rates |= {"n_blocks": options.finetune_blocks, "lora_rank": options.lora_rank}
        if not phase("finetune", encoder, options.finetune_batch, options.finetune_epochs, **rates):
            return None
    return (Projected(network) if isinstance(network, Projection) else Matched(network)), encoder


def _network(options: EmbedderOptions, features: torch.Tensor, rows: np.ndarray) -> Projection | GpsMatch:
    """The untrained network, scaled by the features (N, M, V, D) in `rows`."""
    n_features = features.shape[-1]
    if options.method == "metric":
        projection = Projection(n_features, min(options.dim, n_features), dropout=options.dropout)
        projection.fit_scale(metric_learning.pool(features[rows].flatten(0, 1)))
        return projection
    if options.geoclip:
        match = GpsMatch(n_features, hidden=options.hidden, dropout=options.dropout)
        match.load_published(options.geoclip)
    else:
        dim, hidden, sigmas = options.dim, options.hidden, tuple(numbers("sigmas", options.sigmas))
        match = GpsMatch(
            n_features, dim=dim, hidden=hidden, location_hidden=hidden, dropout=options.dropout, sigmas=sigmas
        )
    match.fit_scale(features[rows].float().mean(2))
    return match


def _training(
    network: Projection | GpsMatch,
    encoder: Encoder | None,
    options: EmbedderOptions,
    steps: int,
    points: np.ndarray,
    **rates: Any,
) -> Learner:
    """The network with its losses and optimizer; points (R, 2) are those of the places that it is trained on."""
    if isinstance(network, Projection):
        return MetricTraining(network, encoder, _part(MetricOptions, options), steps, **rates)
    part = _part(MatchOptions, options)
    part = replace(part, queue=min(part.queue, len(points)))  # places that come twice teach nothing more
    return MatchTraining(network, encoder, part, steps, gallery_points=points, **rates)


def _part(kind: type[T], options: EmbedderOptions) -> T:
    """The settings of a training among all."""
    return kind(**{name: value for name, value in asdict(options).items() if name in kind.defaults()})
