"""The settings of a retrieval run, and of each kind of embedder; without torch, so that they are checked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from kitlib.core.checks import numbers
from kitlib.core.errors import KitError
from kitlib.core.settings import Names, mapping
from kitlib.models.retrieval import gallery as galleries
from kitlib.training.options import TrainingOptions

METHODS = ("knn", "metric", "gps")
BY = ("mean", "heading", "rotation")
LOSSES = ("cosent", "infonce", "both")
METHOD_SETTINGS = {"knn": ("by",), "metric": ("loss", "near_km"), "gps": ("gallery", "hidden", "sigmas", "geoclip")}
KNN_SETTINGS = (
    "encoder",
    "image_size",
    "by",
    "mirror",
    "crops",
    "gallery_size",
    "rerank",
    "smoothing",
    "refit",
    "seed",
)  # all that knn reads


@dataclass(frozen=True)
class MetricOptions(TrainingOptions):
    """How a projection is trained: its losses and their settings."""

    loss: str = "both"  # cosent, infonce, or both: their sum
    scale: float = 5.0  # of similarities in CoSENT; at 20 only the worst outliers of a batch count
    temperature: float = 0.07  # of similarities in InfoNCE
    near_km: float = 100.0  # km at which an InfoNCE target falls to 1/e
    min_km: float = 0.0  # closer pairs are left out

    CHOICES: ClassVar = {"loss": LOSSES}
    POSITIVE: ClassVar[Names] = ("scale", "temperature", "near_km")


@dataclass(frozen=True)
class MatchOptions(TrainingOptions):
    """How a `GpsMatch` is trained."""

    queue: int = 4096  # earlier places that are negatives too; more than there are places only repeat them
    noise_m: float = 150.0  # standard deviation of the noise on places, in metres to the east and to the north
    queue_noise_m: float = 1000.0  # the same for the queue
    same_km: float = 1.0  # places closer to the image's own are no negatives; 0: all are, even the same place


@dataclass(frozen=True)
class EmbedderOptions(TrainingOptions):
    """The method of a retriever, and how its embedder is trained."""

    method: str = "knn"  # knn, metric or gps
    loss: str = "infonce"  # of metric: cosent, infonce or both
    near_km: float = 100.0  # km at which the target of infonce falls to 1/e
    dim: int = 512  # of the learned embeddings; metric has no more than the features
    hidden: int = 512  # units of gps between features and embedding, and in its location encoder
    sigmas: str = "2,4,8"  # scales of the location encoder of gps, commas between; finer ones take more places
    geoclip: str = ""  # GeoCLIP's published location_encoder_weights.pth to start from; sets its sizes and scales
    dropout: float = 0.3  # share of features left out in training
    epochs: int = 60  # passes over the cached features
    batch: int = 128  # places a step and device; more are more pairs, which several devices are not
    rate: float = 3e-4  # learning rate
    finetune_epochs: int = 0  # passes over the pictures, the encoder learning too
    finetune_batch: int = 32  # places a step and device

    CHOICES: ClassVar = {"method": METHODS, "loss": LOSSES}
    LIMITS: ClassVar = {"dim": 2**14, "hidden": 2**14}
    PARSERS: ClassVar = {"sigmas": partial(numbers, "sigmas")}
    POSITIVE: ClassVar[Names] = ("near_km", "dim", "hidden", "epochs", "batch", "rate", "finetune_batch")
    SHARES: ClassVar[Names] = ("dropout",)


@dataclass(frozen=True)
class Config(EmbedderOptions):
    """The settings that decide the result, saved in params.json. Defaults are for tens of thousands of places."""

    mirror: bool = False  # as for an encoder that learns; features of a frozen one gain nothing, and take twice as long
    by: str = "mean"  # how knn compares views: their mean, each by its heading, or the best rotation
    gallery: str = "train"  # or places:DATA, joined by another data set; of gps also grid:KM, world:KM, a CSV
    gallery_size: int = 0  # training places in the gallery, chosen by gallery.choose; 0: all
    rerank: bool = False  # score the most similar places again, by where they lie and how they agree
    smoothing: float = 0.02  # share of the state probabilities that goes by how common states are
    val_share: float = 0.2  # of training places, on which metric and gps choose k and temperature

    CHOICES: ClassVar = {"by": BY}
    PARSERS: ClassVar = {"gallery": galleries.spacing_km}
    POSITIVE: ClassVar[Names] = ("smoothing", "val_share")
    SHARES: ClassVar[Names] = ("smoothing", "val_share")
    PRESETS: ClassVar = {
        "sample": {"encoder": "tiny", "dim": 256, "hidden": 128, "epochs": 20, "rate": 4e-3, "mirror": True}
    }

    def __post_init__(self) -> None:
        """Check each field and their combination. Raises KitError."""
        super().__post_init__()
        if self.by != "mean" and self.method != "knn":
            raise KitError(f"by: expected mean with method {self.method!r}, only knn compares views; got {self.by!r}")
        if not (self.gallery == "train" or self.bank) and (self.method != "gps" or self.gallery_size):
            raise KitError(
                f"gallery: expected train or {galleries.PLACES}DATA with method {self.method!r} and gallery_size "
                f"{self.gallery_size} (only gps takes a grid or a file, as a whole); got {self.gallery!r}"
            )
        if self.method == "knn" and self.finetune_epochs:
            raise KitError(f"finetune_epochs: expected 0 with method 'knn'; got {self.finetune_epochs}")
        if self.geoclip and self.method != "gps":
            raise KitError(f"geoclip: expected '' with method {self.method!r}, as it is for gps; got {self.geoclip!r}")
        if self.lora_rank and not self.finetune_epochs:
            raise KitError(f"lora_rank: expected 0 with finetune_epochs 0; got {self.lora_rank}")
        if self.refit and self.rerank and self.method != "knn":
            raise KitError("refit: expected false with rerank and a trained embedder: all places train it, and none is "
                           "left to fit the second look on; got true")  # fmt: skip
        if self.val_share == 1:
            raise KitError("val_share: expected below 1, which leaves places to train on; got 1")
        if self.dropout == 1:
            raise KitError("dropout: expected below 1, which leaves features to train on; got 1")

    @classmethod
    def for_methods(
        cls, methods: Sequence[str], parameters: Mapping[str, Any], more: str = "", preset: str = ""
    ) -> dict[str, Config]:
        """A Config for each method from the same parameters of a notebook, without the settings of other methods.

        parameters, more, preset: as for `from_parameters`. Raises KitError for a setting that no method reads.

        >>> Config.for_methods(["knn", "gps"], {"EPOCHS": 10, "BY": "heading"})["knn"].epochs
        60
        """
        everything = cls.defaults() | {"method": ""}
        given = cls.given(parameters, everything) | mapping(more)
        given.pop("method", None)
        configs, unused = {}, {name for name in set(given) & set(everything) if given[name] != everything[name]}
        for method in methods:
            ignored = {name for other, own in METHOD_SETTINGS.items() if other != method for name in own}
            if method == "knn":
                ignored |= set(everything) - set(KNN_SETTINGS)
            if given.get("gallery", "train") != "train" and method == "gps":
                ignored.add("gallery_size")
            if str(given.get("gallery", "")).startswith(galleries.PLACES):
                ignored.discard("gallery")
            unused &= ignored
            settings = {name: value for name, value in given.items() if name not in ignored}
            configs[method] = cls.from_dict(settings | {"method": method}, preset)
        if unused:
            raise KitError(f"{', '.join(sorted(unused))}: expected the default, {', '.join(methods)} do not read it")
        return configs

    @property
    def bank(self) -> str:
        """The data set whose places join the training places in the gallery, "" for none."""
        return self.gallery.removeprefix(galleries.PLACES) if self.gallery.startswith(galleries.PLACES) else ""

    def points(self) -> np.ndarray | None:
        """The gallery's points (M, 2), None for places. Raises KitError for an unreadable gallery."""
        return None if self.gallery == "train" or self.bank else galleries.named(self.gallery)
