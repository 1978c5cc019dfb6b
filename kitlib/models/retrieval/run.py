"""Retrieval: a place is located by the most similar entries of a gallery of places or coordinates.

    run = train(Config(encoder="tiny"), places, "neighbours")               # a run that was cut short is resumed
    run = train(Config(encoder="tiny", method="metric"), places, "metric")

There are three methods. knn: standardised frozen features. metric: a projection of them in which places near on the
globe are similar. gps: pictures and coordinates share one embedding, as in GeoCLIP, and a gallery of coordinates is
searched. In all of them the most similar entries vote: their points are the guess's points, their states its states.

Each fold's checkpoints/fold_<k>/ holds the embedder, gallery.npz (embeddings, points and states of the entries),
vote.json with the chosen k and temperature, choice.csv with the scores of all that were tried, and the histories of the
fits. k and temperature are chosen on training places alone: with knn each is matched with those outside its own fold,
otherwise a calibration split that the embedder was not trained on is matched with the rest. A fine-tuned encoder is in
encoder.safetensors, its features in embeddings/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from kitlib.models.retrieval.embedders import Embedder, EmbedderOptions, Frozen
from kitlib.models.retrieval.geoclip import load_geoclip
from kitlib.models.retrieval.retriever import Retriever, RetrieverBuilder
from kitlib.training.session import EncoderSession
from kitlib.vision import weights

METHOD_SETTINGS = {"knn": ("by",), "metric": ("loss", "near_km"), "gps": ("gallery", "hidden", "sigmas", "geoclip")}
KNN_SETTINGS = ("encoder", "image_size", "by", "mirror", "gallery_size", "smoothing", "seed")  # all that knn reads


@dataclass(frozen=True)
class Config(EmbedderOptions):
    """The settings that decide the result, saved in params.json. Defaults are for tens of thousands of places."""

    by: str = "mean"  # how knn compares views: their mean, each by its heading, or the best rotation
    gallery: str = "train"  # of gps also grid:KM (the states' land), world:KM, or a CSV with latitude and longitude
    gallery_size: int = 0  # training places in the gallery, chosen by gallery.choose; 0: all
    smoothing: float = 0.02  # share of the state probabilities that goes by how common states are
    val_share: float = 0.2  # of training places, on which metric and gps choose k and temperature

    CHOICES: ClassVar = {"by": search.BY}
    PARSERS: ClassVar = {"gallery": galleries.spacing_km}
    POSITIVE: ClassVar[Names] = ("smoothing", "val_share")
    SHARES: ClassVar[Names] = ("smoothing", "val_share")
    PRESETS: ClassVar = {"sample": {"encoder": "tiny", "dim": 256, "hidden": 128, "epochs": 20, "rate": 4e-3}}

    def __post_init__(self) -> None:
        """Check each field and their combination. Raises KitError."""
        super().__post_init__()
        if self.by != "mean" and self.method != "knn":
            raise KitError(f"by: expected mean with method {self.method!r}, only knn compares views; got {self.by!r}")
        if self.gallery != "train" and (self.method != "gps" or self.gallery_size):
            raise KitError(
                f"gallery: expected train with method {self.method!r} and gallery_size {self.gallery_size} (only "
                f"gps takes a grid or a file, as a whole); got {self.gallery!r}"
            )
        if self.method == "knn" and self.finetune_epochs:
            raise KitError(f"finetune_epochs: expected 0 with method 'knn'; got {self.finetune_epochs}")
        if self.geoclip and self.method != "gps":
            raise KitError(f"geoclip: expected '' with method {self.method!r}, as it is for gps; got {self.geoclip!r}")
        if self.lora_rank and not self.finetune_epochs:
            raise KitError(f"lora_rank: expected 0 with finetune_epochs 0; got {self.lora_rank}")
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
        named = {name: parameters[name.upper()] for name in everything if name.upper() in parameters}
        given = {name: value for name, value in named.items() if value != everything[name] and name != "method"}
        given |= mapping(more)
        configs, unused = {}, set(given) & set(everything)
        for method in methods:
            ignored = {name for other, own in METHOD_SETTINGS.items() if other != method for name in own}
            if method == "knn":
                ignored |= set(everything) - set(KNN_SETTINGS)
            if given.get("gallery", "train") != "train" and method == "gps":
                ignored.add("gallery_size")
            unused &= ignored
            settings = {name: value for name, value in given.items() if name not in ignored}
            configs[method] = cls.from_dict(settings | {"method": method}, preset)
        if unused:
            raise KitError(f"{', '.join(sorted(unused))}: expected the default, {', '.join(methods)} do not read it")
        return configs

    def points(self) -> np.ndarray | None:
        """The gallery's points (M, 2), None for the training places. Raises KitError for an unreadable gallery."""
        return None if self.gallery == "train" else galleries.named(self.gallery)


class Session(EncoderSession[Config]):
    """Trains, saves and queries the retriever of each fold."""

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
        """Refuse an unreadable gallery or weights file."""
        config.points()
        if config.geoclip:
            load_geoclip(config.geoclip)
        return super().check(config, places, folds_column, todo, recorded)

    @property
    def spawns(self) -> bool:
        """Whether a fold needs several processes: never for knn, which trains nothing."""
        return super().spawns and self.config.method != "knn"

    def fit_fold(self, fold: int) -> None:
        """Train the embedder, choose gallery, k and temperature, and save the retriever."""
        config, folder = self.config, self.folder(fold)
        builder = self.builder(fold, self.features["train"])
        if config.method == "knn":
            embedder: Embedder = Frozen.fit(builder.features[builder.rows], config.by)
        else:
            group, val = builder.exclusion_groups[0], builder.calibration_rows
            rows = np.setdiff1d(builder.rows, val)
            trained = embedders.train(config, self, group, rows, val, folder, self.devices, self.hours_left)
            if trained is None:
                raise Unfinished
            if not is_first_process():
                return
            embedder, encoder = trained
            if encoder:
                weights.save_encoder(encoder, folder / "encoder.safetensors")
                builder = replace(builder, features=self.fold_features(fold)["train"])
        retriever, scores = builder.build(embedder, config.points(), config.gallery_size)
        retriever.save(folder)
        with storage.atomic_write(folder / "choice.csv") as beside:
            scores.to_csv(beside, index=False)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """Guesses of a fold's retriever for the places in `rows`, for all when None."""
        pack, retriever = self.packs[split], self.retriever(fold)
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts, usable = [retriever.entries.fallback(pack.sample_id[rows[blind]])], rows[~blind]
        if len(usable):
            features = self.fold_features(fold)[split][usable]
            parts.append(retriever.guess(pack.sample_id[usable], features, self.device))
        return guesses.stack(parts).at(pack.sample_id[rows])

    def retriever(self, fold: int) -> Retriever:
        """The retriever of a finished fold."""
        return Retriever.load(self.folder(fold), self.config.method, self.config.by)

    def fold_features(self, fold: int) -> dict[str, torch.Tensor]:
        """`features` by the fold's own encoder if it was fine-tuned, computed once and cached."""
        if not self.config.finetune_epochs:
            return self.features
        encoder = self.encoder()
        weights.load_encoder(encoder, self.folder(fold) / "encoder.safetensors")
        return self.embed(encoder, self.folder(fold) / "embeddings")

    def held_out_rows(self, fold: int) -> np.ndarray:
        """Rows (H,) of the places that a fold holds out and that have a usable picture."""
        return np.flatnonzero(self.held_out(fold) & ~self.packs["train"].unusable_places)

    def builder(self, fold: int, features: torch.Tensor) -> RetrieverBuilder:
        """The builder of a fold's retriever from features (N, M, V, D) of all training places."""
        config, places, table = self.config, self.places, self.fold_table
        of_fold, group = table[self.run.settings["folds_column"]].to_numpy(), table["group"].to_numpy()
        rows = np.flatnonzero((of_fold != fold) & ~self.packs["train"].unusable_places)
        if not len(rows):
            raise KitError(f"fold {fold}: expected training places with a usable picture outside it; got none")
        calibration_rows, exclusion_groups = rows, [group]
        if config.method != "knn":
            groups = np.random.default_rng(config.seed).permutation(np.unique(group[rows]))
            calibration_rows = rows[np.isin(group[rows], groups[: math.ceil(config.val_share * len(groups))])]
            if len(calibration_rows) == len(rows):
                raise KitError(f"val_share: expected one that leaves places to train on in fold {fold}; "
                               f"got {config.val_share}")  # fmt: skip
        elif len(np.unique(of_fold[rows])) > 1:
            exclusion_groups.append(of_fold)
        return RetrieverBuilder(
            features,
            places.points("train"),
            places.state_position("train"),
            places.states["state_idx"].to_numpy(),
            rows,
            calibration_rows,
            exclusion_groups,
            embedder_is_trained=config.method != "knn",
            smoothing=config.smoothing,
            seed=config.seed,
            device=self.device,
        )


train, train_fold, predict = Session.train, Session.train_fold, Session.predict
