"""Retrieval: a place is where the places are that look like it, or where the coordinates of a gallery fit it best.

    run = train(Config(encoder="tiny"), places, "neighbours")               # resumes when it was cut short
    run = train(Config(encoder="tiny", method="metric"), places, "metric")

Three methods. knn: frozen features, standardised. metric: a projection of them learns that what is near on the globe
is alike. gps: GeoCLIP's way, pictures and coordinates are embedded alike, and a gallery of coordinates is searched. In
all of them the most similar entries vote (`vote`): their points are the guess's points, their states its states. An
entry that is a training place has its own state; one of a grid or a file has those of the training places around it,
as its point is all that is known of it.

Each fold's checkpoints/fold_<k>/ holds the embedder, gallery.npz (embeddings, points and states of the entries),
vote.json with the k and temperature that were chosen, choice.csv with what was tried, and the history of the fit. They
are chosen on training places alone: with knn each meets those outside its own fold, else a part that the fit has not
seen meets the rest.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from kitlib import accuracy, crossfit, embedders, encoders, geo, guesses, neighbours, paths, runs
from kitlib import folds as saved_folds
from kitlib import gallery as galleries
from kitlib.embedders import METHODS, Embedder, Frozen, Matched
from kitlib.guesses import Guesses
from kitlib.inputs import Inputs
from kitlib.metric import LOSSES
from kitlib.paths import KitError
from kitlib.runs import Run
from kitlib.settings import Settings
from kitlib.tables import Places
from kitlib.vote import KS, Entries, Vote, choose, commonness, states_nearby

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(Settings):
    """What decides the result; travels with the run in params.json."""

    encoder: str = encoders.STREETCLIP  # see encoders.py
    image_size: int = 0  # px of the square that the encoder sees; 0: its own
    method: str = "knn"  # knn, metric or gps
    by: str = "mean"  # how knn compares views: their mean, each by its heading, or the best rotation
    mirror: bool = True  # a place is the mean of itself and its mirror image, and is learned from as both
    gallery: str = "train"  # of gps also grid:KM (land of the United States) or a CSV with latitude and longitude
    gallery_size: int = 0  # training places in the gallery, chosen by gallery.choose; 0: all
    smoothing: float = 0.02  # share of the state probabilities that goes by how common states are
    loss: str = "infonce"  # of metric: cosent, infonce or both
    near_km: float = 100.0  # km at which the target of infonce falls to 1/e
    dim: int = 512  # of the learned embeddings; metric has no more than the features
    hidden: int = 512  # units of gps between features and embedding
    sigmas: str = "2,4,8"  # scales of the location encoder of gps, commas between; finer ones take more places
    dropout: float = 0.3  # share of features left out in training
    view_dropout: float = 0.3  # share of views left out in training
    weight_decay: float = 0.05  # of matrices; biases and norms have none
    warmup: float = 0.1  # share of the steps in which the rate rises; then it falls along a cosine
    epochs: int = 30  # passes over the cached features
    batch: int = 128  # places a step and device; more are more pairs, which several devices are not
    rate: float = 3e-4  # learning rate
    val_share: float = 0.2  # of training places, on which metric and gps choose k and temperature
    seed: int = 0  # of weights, order, dropout and choices

    CHOICES: ClassVar = {"method": METHODS, "by": neighbours.BY, "loss": LOSSES}
    POSITIVE: ClassVar = ("smoothing", "near_km", "dim", "hidden", "epochs", "batch", "rate", "val_share")
    SHARES: ClassVar = ("smoothing", "dropout", "view_dropout", "warmup", "val_share")

    def __post_init__(self) -> None:
        """Check every field, and that they go together. Raises KitError."""
        super().__post_init__()
        if self.by != "mean" and self.method != "knn":
            raise KitError(f"by={self.by!r} with method {self.method!r}: allowed is mean, anything else is for knn")
        if self.gallery != "train" and (self.method != "gps" or self.gallery_size):
            raise KitError(
                f"gallery={self.gallery!r} with method {self.method!r}, gallery_size {self.gallery_size}: allowed is "
                "train; a grid or a file is for gps, and is used as a whole"
            )
        if self.val_share == 1:
            raise KitError("val_share=1: allowed is below 1, or nothing is left to learn from")
        embedders.scales(self.sigmas)

    def points(self) -> np.ndarray | None:
        """The gallery's points (M, 2), None for the training places. Raises KitError for a gallery that is none."""
        if self.gallery == "train":
            return None
        kind, _, km = self.gallery.partition(":")
        if kind != "grid":
            return galleries.read_csv(self.gallery)[0]
        try:
            return galleries.land_grid(float(km))
        except ValueError:
            raise KitError(f"gallery={self.gallery!r}: allowed is a grid:KM such as grid:50") from None


def train(
    config: Config,
    places: Places,
    run_name: str,
    *,
    folds_column: str = "stratified",
    n_folds: int = 5,
    only_folds: Sequence[int] | None = None,
    devices: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
) -> Run:
    """Make each fold's gallery, after what there is to train, and write what it guesses; go on where it was cut short.

    only_folds, devices, max_hours, overwrite: as for `multiview.train`. metrics.json also has the `accuracy` of the
    out-of-fold distances. Raises KitError for an unknown fold or column, for a gallery that cannot be read, and for a
    run of that name that was started otherwise.
    """
    began = time.monotonic()
    todo = crossfit.chosen(places, folds_column, n_folds, only_folds)
    settings = asdict(config) | {"family": "retrieval", "folds_column": folds_column, "n_folds": n_folds}
    settings |= crossfit.source(places)
    checksums = {"places": places.checksum, "folds": saved_folds.folds_checksum(places)}
    points = config.points()
    if points is not None:
        checksums["gallery"] = paths.digest(points)
    if overwrite or run_name not in runs.list_runs():
        encoders.load(config.encoder, config.image_size or None)  # what cannot be had is refused before a run begins
    run = runs.start(run_name, settings, data=checksums, overwrite=overwrite)
    session = Session(run, places)
    for fold in todo:
        if crossfit.is_done(run, fold):
            continue
        left = max_hours and max_hours - (time.monotonic() - began) / 3600
        if devices == 1 or config.method == "knn":
            session.train_fold(fold, 1, left)
        else:
            _ = session.features  # computed once, here
            crossfit.train_in_processes(run, fold, places.folder, devices, left)
        if not crossfit.is_done(run, fold):
            log.warning("run %s: %s hours are over in fold %d; the same call goes on", run_name, max_hours, fold)
            return run
    done = guesses.stack([Guesses.load(crossfit.folder(run, fold) / "oof.npz") for fold in crossfit.done(run)])
    truth = places.rows("train").set_index("sample_id").loc[done.sample_id, ["latitude", "longitude"]].to_numpy()
    crossfit.finish(run, places, {"accuracy": accuracy.report(geo.distance_km(truth, done.point())).as_dict()})
    return run


def train_fold(run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None) -> bool:
    """Train one fold of a run that `train` has started, in this process or as one of several; True when it is done."""
    run = runs.open_run(run_name)
    Session(run, crossfit.reread(run, data)).train_fold(fold, devices, max_hours)
    return crossfit.is_done(run, fold)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's galleries, averaged, guess of the places of `split`; all settings are the run's own."""
    session = Session(runs.open_run(run_name), places)
    return guesses.average([session.guess(fold, split) for fold in crossfit.done(session.run)])


def choices(run: Run) -> pd.DataFrame:
    """What each k and temperature came to in each done fold, on training places: fold, k, temperature, final, km."""
    files = {fold: crossfit.folder(run, fold) / "choice.csv" for fold in crossfit.done(run)}
    return pd.concat([pd.read_csv(file).assign(fold=fold) for fold, file in files.items()], ignore_index=True)


class Session(Inputs):
    """A run with its data at hand: what its folds share."""

    def __init__(self, run: Run, places: Places) -> None:
        self.run, self.config = run, Config.of_run(run.settings)
        super().__init__(places, self.config.encoder, self.config.image_size, self.config.mirror)

    def train_fold(self, fold: int, devices: int = 1, max_hours: float | None = None) -> None:
        """Embedder, gallery, k and temperature of one fold, then its guesses; returns early when the hours are over."""
        config, folder, places = self.config, crossfit.folder(self.run, fold), self.places
        table = saved_folds.load_or_make(places, n_folds=self.run.settings["n_folds"])
        of_fold = table[self.run.settings["folds_column"]].to_numpy()
        usable = ~self.packs["train"].unusable_places
        rows, held_out = np.flatnonzero((of_fold != fold) & usable), np.flatnonzero(of_fold == fold)
        group = table["group"].to_numpy()
        if not len(rows):
            raise KitError(f"fold {fold}: the gallery is empty, no training place outside it has a usable picture")
        if config.method == "knn":
            asking = rows
            embedder: Embedder = Frozen.fit(self.features["train"][rows], config.by)
        else:
            groups = np.random.default_rng(config.seed).permutation(np.unique(group[rows]))
            asks = np.isin(group[rows], groups[: math.ceil(config.val_share * len(groups))])
            asking = rows[asks]
            if asks.all():
                raise KitError(f"fold {fold}: val_share {config.val_share} leaves no group of places to learn from")
            learned = embedders.learn(
                asdict(config),
                self.features["train"],
                places.points("train"),
                group,
                rows[~asks],
                asking,
                folder / config.method,
                devices,
                max_hours,
            )
            if learned is None or (torch.distributed.is_initialized() and torch.distributed.get_rank() > 0):
                return
            embedder = learned
        vote, tried = self._choose(embedder, rows, asking, of_fold, group)
        entries, embeddings, _ = self._gallery(embedder, rows)
        embedder.save(folder)
        entries.save(folder / "gallery.npz", embeddings)
        with paths.atomic_write(folder / "choice.csv") as beside:
            tried.to_csv(beside, index=False)
        with paths.atomic_write(folder / "vote.json") as beside:
            beside.write_text(json.dumps(asdict(vote)))
        test = self.guess(fold, "test") if "test" in self.packs else None
        crossfit.keep(self.run, fold, self.guess(fold, "train", held_out), test)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's gallery says of the places in `rows` (of all when None)."""
        config, folder, pack = self.config, crossfit.folder(self.run, fold), self.packs[split]
        entries, embeddings = Entries.load(folder / "gallery.npz")
        vote = Vote(**json.loads((folder / "vote.json").read_text()))
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts, seen = [entries.commonest(pack.sample_id[rows[blind]])], rows[~blind]
        if len(seen):
            queries = embedders.load(folder, config.method, config.by).queries(self.features[split][seen])
            found = neighbours.search(queries, embeddings, vote.k, device=self.device)
            parts.append(vote.guess(pack.sample_id[seen], *found, entries))
        return guesses.stack(parts).at(pack.sample_id[rows])

    @cached_property
    def gallery_points(self) -> np.ndarray | None:
        """The points of a gallery that is not of training places."""
        return self.config.points()

    def _gallery(
        self, embedder: Embedder, rows: np.ndarray, labelled: np.ndarray | None = None
    ) -> tuple[Entries, np.ndarray, np.ndarray]:
        """Entries, their embeddings, and their rows among the training places, none for a grid or a file.

        rows: the fold's training places; labelled: those whose states a grid's points may know, all of them when None.
        """
        places, config = self.places, self.config
        points, state, n_states = places.points("train"), places.state_position("train"), len(places.states)
        labelled = rows if labelled is None else labelled
        common, middle = commonness(state[rows], n_states), geo.geometric_median(points[rows])
        state_idx = places.states["state_idx"].to_numpy()
        features = self.features["train"]
        if self.gallery_points is not None:
            states = states_nearby(self.gallery_points, points[labelled], state[labelled], n_states)
            entries = Entries(self.gallery_points, states, state_idx, common, middle)
            return entries, embedder.entries(features[:0], entries.points), np.empty(0, np.int64)
        if 0 < config.gallery_size < len(rows):
            matched = isinstance(embedder, Matched)  # its entries tell where they are, not what they look like
            looks = embedder.queries(features[rows]) if matched else embedder.entries(features[rows], points[rows])
            chosen = galleries.choose(
                points[rows], config.gallery_size, embeddings=looks, labels=state[rows], seed=config.seed
            )
            rows = rows[np.sort(chosen)]
        entries = Entries(points[rows], np.eye(n_states, dtype=np.float32)[state[rows]], state_idx, common, middle)
        return entries, embedder.entries(features[rows], points[rows]), rows

    def _choose(
        self, embedder: Embedder, rows: np.ndarray, asking: np.ndarray, of_fold: np.ndarray, group: np.ndarray
    ) -> tuple[Vote, pd.DataFrame]:
        """The vote that serves the places `asking` best, which are among the training places `rows`."""
        config, frozen = self.config, isinstance(embedder, Frozen)
        rest = np.setdiff1d(rows, asking)
        entries, embeddings, members = self._gallery(embedder, rows, rows if frozen else rest)
        apart: list[np.ndarray] = []
        if frozen:  # nothing was learned from single places, so that all of them may ask
            apart = [group] if len(np.unique(of_fold[rows])) == 1 else [group, of_fold]
        elif len(members):
            kept = np.isin(members, rest)
            if not kept.any():
                raise KitError(f"gallery_size {config.gallery_size} leaves no entry to choose k and temperature by")
            entries, embeddings, members = entries.take(kept), embeddings[kept], members[kept]
        similarity, index = neighbours.search(
            embedder.queries(self.features["train"][asking]),
            embeddings,
            min(max(KS), len(embeddings)),
            query_group=[of[asking] for of in apart] or None,
            gallery_group=[of[members] for of in apart] or None,
            device=self.device,
        )
        rows_of = self.places.rows("train").iloc[asking]
        return choose(
            similarity,
            index,
            entries,
            rows_of["state_idx"].to_numpy(),
            rows_of[["latitude", "longitude"]].to_numpy(np.float64),
            smoothing=config.smoothing,
            seed=config.seed,
        )
