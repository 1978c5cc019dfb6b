"""Retrieval: a place is located by the most similar entries of a gallery of places or coordinates.

    run = train(Config(encoder="tiny"), places, "neighbours")               # a run that was cut short is resumed
    run = train(Config(encoder="tiny", method="metric"), places, "metric")

There are three methods. knn: standardised frozen features. metric: a projection of them in which places near on the
globe are similar. gps: pictures and coordinates share one embedding, as in GeoCLIP, and a gallery of coordinates is
searched. In all of them the most similar entries vote: their points are the guess's points, their states its states.

Each fold's checkpoints/fold_<k>/ holds the embedder, gallery.npz (embeddings, points and states of the entries),
vote.json with the chosen k and temperature, choice.csv with the scores of all that were tried, and the histories of the
fits. k and temperature are chosen on training places alone: with knn each is matched with those outside its own fold,
otherwise a calibration split that the embedder was not trained on is matched with the rest. The refit of metric and gps
trains on all places and takes the pair with the highest mean score over the folds. A fine-tuned encoder is in
encoder.safetensors, its features in embeddings/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.processes import is_first_process
from kitlib.data import readers
from kitlib.data.places import Places
from kitlib.evaluation import fold_files, guesses
from kitlib.evaluation.crossval import Unfinished
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.retrieval import bank, embedders
from kitlib.models.retrieval.config import Config
from kitlib.models.retrieval.embedders import Embedder, Frozen
from kitlib.models.retrieval.geoclip import load_geoclip
from kitlib.models.retrieval.retriever import Retriever, RetrieverBuilder
from kitlib.training.session import EncoderSession
from kitlib.vision import weights
from kitlib.vision.encoders import Encoder
from kitlib.vision.inputs import Inputs


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
        """Refuse an unreadable gallery or weights file; the places of a gallery decide the result."""
        config.points()
        if config.geoclip:
            load_geoclip(config.geoclip)
        checksums = super().check(config, places, folds_column, todo, recorded)
        if config.bank:
            other = readers.load(config.bank)
            if config.by != "mean" and len(other.views) != len(places.views):
                raise KitError(f"gallery: expected places with {len(places.views)} views, as by is {config.by}; "
                               f"got {len(other.views)}")  # fmt: skip
            checksums["gallery places"] = other.checksum
        return checksums

    @property
    def spawns(self) -> bool:
        """Whether a fold needs several processes: never for knn, which trains nothing."""
        return super().spawns and self.config.method != "knn"

    def fit_fold(self, fold: int) -> None:
        """Train the embedder, choose gallery, k and temperature, and save the retriever."""
        config, folder = self.config, self.folder(fold)
        builder, known = self.builder(fold, self.features["train"]), None
        if config.method == "knn":
            embedder: Embedder = Frozen.fit(builder.features[builder.rows], config.by)
        else:
            group, val = builder.exclusion_groups[0], builder.calibration_rows
            if fold_files.is_refit(self.run.settings, fold):
                by_pair = choices(self.run).drop(columns="fold").groupby(["k", "temperature"])
                known = by_pair.mean()[by_pair.size() == by_pair.size().max()].reset_index()
                val = val[:0]
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
        if config.bank:
            other = Inputs(readers.load(config.bank), config.encoder, config.image_size, config.mirror, self.dtype)
            tuned = self.fold_encoder(fold) if config.finetune_epochs else None
            joining = bank.load(self, other, tuned, folder / "embeddings", builder.rows)
            builder = replace(builder, bank=joining)
        retriever, scores = builder.build(embedder, config.points(), config.gallery_size, scores=known)
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
        return self.embed(self.fold_encoder(fold), self.folder(fold) / "embeddings")

    def fold_encoder(self, fold: int) -> Encoder:
        """The encoder that a fold has fine-tuned."""
        encoder = self.encoder()
        weights.load_encoder(encoder, self.folder(fold) / "encoder.safetensors")
        return encoder

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
            rerank=config.rerank,
            seed=config.seed,
            device=self.device,
        )


train, train_fold, predict = Session.train, Session.train_fold, Session.predict


def choices(run: Run) -> pd.DataFrame:
    """The calibration scores of each finished fold: fold, k, temperature, final, mean_km, median_km."""
    parts = []
    for fold in fold_files.done_folds(run):
        with storage.reading(file := fold_files.folder(run, fold) / "choice.csv"):
            parts.append(pd.read_csv(file).assign(fold=fold))
    return pd.concat(parts, ignore_index=True)
