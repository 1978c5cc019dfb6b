"""Retrieval: a place is where the places are that look like it, or where the coordinates of a gallery fit it best.

    run = train(Config(encoder="tiny"), places, "neighbours")               # resumes when it was cut short
    run = train(Config(encoder="tiny", method="metric"), places, "metric")

Three methods. knn: frozen features, standardised. metric: a projection of them learns that what is near on the globe
is alike. gps: GeoCLIP's way, pictures and coordinates are embedded alike, and a gallery of coordinates is searched. In
all of them the most similar entries vote: their points are the guess's points, their states its states.

Each fold's checkpoints/fold_<k>/ holds the embedder, gallery.npz (embeddings, points and states of the entries),
vote.json with the k and temperature that were chosen, choice.csv with what was tried, and the histories of the fits.
They are chosen on training places alone: with knn each meets those outside its own fold, else a part that the fit has
not seen meets the rest. An encoder that learned is in encoder.safetensors, and its features in embeddings/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.settings import Names, mapping
from kitlib.data.places import Places
from kitlib.evaluation import guesses
from kitlib.evaluation.crossval import Unfinished, is_first_process
from kitlib.evaluation.guesses import Guesses
from kitlib.models.retrieval import embedders, search
from kitlib.models.retrieval import gallery as galleries
from kitlib.models.retrieval.embedders import METHODS, Embedder, Frozen
from kitlib.models.retrieval.geoclip import load_geoclip
from kitlib.models.retrieval.metric_learning import LOSSES
from kitlib.models.retrieval.retriever import Known, Lookup
from kitlib.training.learner import TrainingOptions
from kitlib.training.session import EncoderSession
from kitlib.vision import weights

OWN = {"knn": ("by",), "metric": ("loss", "near_km"), "gps": ("gallery", "hidden", "sigmas", "geoclip")}
NOT_LEARNED = ("encoder", "image_size", "by", "mirror", "gallery_size", "smoothing", "seed")  # all that knn reads


@dataclass(frozen=True)
class Config(TrainingOptions):
    """What decides the result; travels with the run in params.json. Defaults are for tens of thousands of places."""

    method: str = "knn"  # knn, metric or gps
    by: str = "mean"  # how knn compares views: their mean, each by its heading, or the best rotation
    gallery: str = "train"  # of gps also grid:KM (the states' land), world:KM, or a CSV with latitude and longitude
    gallery_size: int = 0  # training places in the gallery, chosen by gallery.choose; 0: all
    smoothing: float = 0.02  # share of the state probabilities that goes by how common states are
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
    val_share: float = 0.2  # of training places, on which metric and gps choose k and temperature

    CHOICES: ClassVar = {"method": METHODS, "by": search.BY, "loss": LOSSES}
    POSITIVE: ClassVar[Names] = ("smoothing", "near_km", "dim", "hidden", "epochs", "batch", "rate", "finetune_batch",
                                 "val_share")  # fmt: skip
    SHARES: ClassVar[Names] = ("smoothing", "dropout", "val_share")
    PRESETS: ClassVar = {"sample": {"encoder": "tiny", "dim": 256, "hidden": 128}}

    def __post_init__(self) -> None:
        """Check every field, and that they go together. Raises KitError."""
        super().__post_init__()
        if self.by != "mean" and self.method != "knn":
            raise KitError(f"by: expected mean with method {self.method!r}, anything else is for knn; got {self.by!r}")
        if self.gallery != "train" and (self.method != "gps" or self.gallery_size):
            raise KitError(
                f"gallery: expected train with method {self.method!r} and gallery_size {self.gallery_size} (a grid or "
                f"a file is for gps, and is used as a whole); got {self.gallery!r}"
            )
        if self.method == "knn" and self.finetune_epochs:
            raise KitError(f"finetune_epochs: expected 0 with method 'knn'; got {self.finetune_epochs}")
        if self.geoclip and self.method != "gps":
            raise KitError(f"geoclip: expected '' with method {self.method!r}, it is for gps; got {self.geoclip!r}")
        if self.lora_rank and not self.finetune_epochs:
            raise KitError(f"lora_rank: expected 0 with finetune_epochs 0; got {self.lora_rank}")
        if self.val_share == 1:
            raise KitError("val_share: expected below 1, or nothing is left to learn from; got 1")
        embedders.scales(self.sigmas)

    @classmethod
    def for_methods(
        cls, methods: Sequence[str], parameters: Mapping[str, Any], more: str = "", preset: str = ""
    ) -> dict[str, Config]:
        """A Config for each method from the same parameters of a notebook; what is for other methods is left out.

        parameters, more, preset: as for `from_parameters`. Raises KitError for a setting that no method takes.

        >>> Config.for_methods(["knn", "gps"], {"EPOCHS": 10, "BY": "heading"})["knn"].epochs
        60
        """
        everything = cls.defaults() | {"method": ""}
        named = {name: parameters[name.upper()] for name in everything if name.upper() in parameters}
        given = {name: value for name, value in named.items() if value != everything[name] and name != "method"}
        given |= mapping(more)
        configs, unused = {}, set(given) & set(everything)
        for method in methods:
            ignored = {name for other, own in OWN.items() if other != method for name in own}
            if method == "knn":
                ignored |= set(everything) - set(NOT_LEARNED)
            if given.get("gallery", "train") != "train" and method == "gps":
                ignored.add("gallery_size")
            unused &= ignored
            settings = {name: value for name, value in given.items() if name not in ignored}
            configs[method] = cls.from_dict(settings | {"method": method}, preset)
        if unused:
            raise KitError(f"{', '.join(sorted(unused))}: not read by {', '.join(methods)}; expected: the default")
        return configs

    def points(self) -> np.ndarray | None:
        """The gallery's points (M, 2), None for the training places. Raises KitError for a gallery that is none."""
        return None if self.gallery == "train" else galleries.named(self.gallery)


class Session(EncoderSession[Config]):
    """The retriever of each fold: embedder, gallery and voting rule."""

    family = "retrieval"
    config_type = Config

    @classmethod
    def check(
        cls,
        config: Config,
        places: Places,
        folds_column: str,
        todo: Sequence[int],
        recorded: Mapping[str, Any] | None,
        **options: Any,
    ) -> dict[str, str]:
        """Refuse an encoder, a gallery or weights that cannot be read; checksums of the latter two."""
        checksums = super().check(config, places, folds_column, todo, recorded)
        if (points := config.points()) is not None:
            checksums["gallery"] = storage.digest(points)
        if config.geoclip:
            load_geoclip(config.geoclip)
            checksums["geoclip"] = storage.digest(Path(config.geoclip))
        return checksums

    @property
    def spawns(self) -> bool:
        """Not for knn, which trains nothing."""
        return super().spawns and self.config.method != "knn"

    def fit_fold(self, fold: int) -> None:
        """Train the embedder, choose gallery, k and temperature, and save the retriever."""
        config, folder = self.config, self.folder(fold)
        known, _ = self.known(fold)
        if config.method == "knn":
            embedder: Embedder = Frozen.fit(self.features["train"][known.rows], config.by)
        else:
            learns = np.setdiff1d(known.rows, known.asking)
            trained = embedders.learn(
                asdict(config), self, known.apart[0], learns, known.asking, folder, self.devices, self.hours_left
            )
            if trained is None:
                raise Unfinished
            if not is_first_process():
                return
            embedder, encoder = trained
            if encoder:
                weights.save_encoder(encoder, folder / "encoder.safetensors")
                known = replace(known, features=self.features_of(fold)["train"])
        retriever, choices = known.lookup(embedder, self.gallery_points, config.gallery_size)
        retriever.save(folder)
        with storage.atomic_write(folder / "choice.csv") as beside:
            choices.to_csv(beside, index=False)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's retriever guesses of the places in `rows` (of all when None)."""
        pack, retriever = self.packs[split], self.lookup(fold)
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts, usable = [retriever.entries.commonest(pack.sample_id[rows[blind]])], rows[~blind]
        if len(usable):
            features = self.features_of(fold)[split][usable]
            parts.append(retriever.guess(pack.sample_id[usable], features, self.device))
        return guesses.stack(parts).at(pack.sample_id[rows])

    def lookup(self, fold: int) -> Lookup:
        """The retriever of a fold that is done."""
        return Lookup.load(self.folder(fold), self.config.method, self.config.by)

    def features_of(self, fold: int) -> dict[str, torch.Tensor]:
        """Features as `features`, by the encoder that a fold trained where it did; computed once and cached."""
        if not self.config.finetune_epochs:
            return self.features
        encoder = self.encoder()
        weights.load_encoder(encoder, self.folder(fold) / "encoder.safetensors")
        return self.embed(encoder, self.folder(fold) / "embeddings")

    def asked(self, fold: int) -> tuple[Known, np.ndarray]:
        """`known` with the fold's own features, and those of the rows it holds out that have a usable picture."""
        known, held_out = self.known(fold)
        usable = ~self.packs["train"].unusable_places[held_out]
        return replace(known, features=self.features_of(fold)["train"]), held_out[usable]

    def known(self, fold: int) -> tuple[Known, np.ndarray]:
        """The training places of a fold with the features of the frozen encoder; and the rows (H,) it holds out."""
        config, places, table = self.config, self.places, self.fold_table
        of_fold, group = table[self.run.settings["folds_column"]].to_numpy(), table["group"].to_numpy()
        rows = np.flatnonzero((of_fold != fold) & ~self.packs["train"].unusable_places)
        if not len(rows):
            raise KitError(f"fold {fold}: the gallery is empty, no training place outside it has a usable picture")
        asking, apart = rows, [group]
        if config.method != "knn":
            groups = np.random.default_rng(config.seed).permutation(np.unique(group[rows]))
            asking = rows[np.isin(group[rows], groups[: math.ceil(config.val_share * len(groups))])]
            if len(asking) == len(rows):
                raise KitError(f"fold {fold}: val_share {config.val_share} leaves no group of places to learn from")
        elif len(np.unique(of_fold[rows])) > 1:
            apart.append(of_fold)
        known = Known(
            self.features["train"],
            places.points("train"),
            places.state_position("train"),
            places.states["state_idx"].to_numpy(),
            rows,
            asking,
            apart,
            learned=config.method != "knn",
            smoothing=config.smoothing,
            seed=config.seed,
            device=self.device,
        )
        return known, np.flatnonzero(of_fold == fold)

    @cached_property
    def gallery_points(self) -> np.ndarray | None:
        """The points of a gallery that is not of training places."""
        return self.config.points()


train, train_fold, predict = Session.train, Session.train_fold, Session.predict
