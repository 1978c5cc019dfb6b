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
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.data import folds as saved_folds
from kitlib.data.places import Places
from kitlib.evaluation import crossval, guesses, metrics, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.retrieval import embedders, search
from kitlib.models.retrieval import gallery as galleries
from kitlib.models.retrieval.embedders import METHODS, Embedder, Frozen
from kitlib.models.retrieval.geoclip import load_geoclip
from kitlib.models.retrieval.metric_learning import LOSSES
from kitlib.models.retrieval.retriever import Known, Lookup
from kitlib.training.start import start_run
from kitlib.vision import encoders, weights
from kitlib.vision.device import best_device, dtype_of
from kitlib.vision.inputs import Inputs

OWN = {"knn": ("by",), "metric": ("loss", "near_km"), "gps": ("gallery", "hidden", "sigmas", "geoclip")}
NOT_LEARNED = ("encoder", "image_size", "by", "mirror", "gallery_size", "smoothing", "seed")  # all that knn reads


@dataclass(frozen=True)
class Config(Settings):
    """What decides the result; travels with the run in params.json."""

    encoder: str = encoders.STREETCLIP  # see encoders.py
    image_size: int = 0  # px of the square that the encoder sees; 0: its own
    method: str = "knn"  # knn, metric or gps
    by: str = "mean"  # how knn compares views: their mean, each by its heading, or the best rotation
    mirror: bool = True  # a place is the mean of itself and its mirror image, and is learned from as both
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
    view_dropout: float = 0.3  # share of views left out in training
    weight_decay: float = 0.05  # of matrices; biases and norms have none
    warmup: float = 0.1  # share of the steps in which the rate rises; then it falls along a cosine
    epochs: int = 60  # passes over the cached features
    batch: int = 128  # places a step and device; more are more pairs, which several devices are not
    rate: float = 3e-4  # learning rate
    finetune_epochs: int = 0  # passes over the pictures, the encoder learning too
    finetune_batch: int = 32  # places a step and device
    finetune_blocks: int = 6  # last blocks of the encoder that learn; -1: all of it
    lora_rank: int = 0  # rank of LoRA on the attention instead (hf: encoders); 0: without
    finetune_rate: float = 2e-5  # learning rate of the encoder's top layer
    layer_decay: float = 0.9  # factor from each layer's rate to the one below it
    vary: float = 1.0  # how far light and zoom of pictures vary in fine-tuning; 0: not at all
    gradient_checkpointing: bool = False  # a tenth of the activations' memory for 23 % more work
    val_share: float = 0.2  # of training places, on which metric and gps choose k and temperature
    seed: int = 0  # of weights, order, dropout and choices

    CHOICES: ClassVar = {"method": METHODS, "by": search.BY, "loss": LOSSES}
    POSITIVE: ClassVar = ("smoothing", "near_km", "dim", "hidden", "epochs", "batch", "rate",
                          "finetune_batch", "val_share")  # fmt: skip
    SHARES: ClassVar = ("smoothing", "dropout", "view_dropout", "warmup", "layer_decay", "val_share")
    MINUS_ONE: ClassVar = ("finetune_blocks",)

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
        if self.method == "knn" and self.finetune_epochs:
            raise KitError("finetune_epochs with method 'knn': allowed is 0, as nothing is learned; see metric and gps")
        if self.geoclip and self.method != "gps":
            raise KitError(f"geoclip with method {self.method!r}: allowed is '', as only gps embeds coordinates")
        if self.lora_rank and not self.finetune_epochs:
            raise KitError(f"lora_rank={self.lora_rank} with finetune_epochs=0: the encoder would not learn")
        if self.val_share == 1:
            raise KitError("val_share=1: allowed is below 1, or nothing is left to learn from")
        embedders.scales(self.sigmas)

    @classmethod
    def for_method(cls, method: str, settings: Mapping[str, Any]) -> Config:
        """Settings that several methods share; what is for other methods than this one keeps its default.

        >>> Config.for_method("knn", {"encoder": "tiny", "epochs": 10, "by": "heading"}).epochs
        60
        """
        ignored = {name for other, own in OWN.items() if other != method for name in own}
        if method == "knn":
            ignored |= {field.name for field in fields(cls)} - set(NOT_LEARNED)
        if settings.get("gallery", "train") != "train" and method == "gps":
            ignored.add("gallery_size")
        kept = {name: value for name, value in settings.items() if name not in ignored}
        return cls.from_dict(kept | {"method": method})

    def points(self) -> np.ndarray | None:
        """The gallery's points (M, 2), None for the training places. Raises KitError for a gallery that is none."""
        return None if self.gallery == "train" else galleries.named(self.gallery)


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
    todo = crossval.chosen(places, folds_column, n_folds, only_folds)
    points, checksums = config.points(), {}
    if points is not None:
        checksums["gallery"] = storage.digest(points)
    if config.geoclip:
        load_geoclip(config.geoclip)  # a file that is none is refused before a run begins
        checksums["geoclip"] = storage.digest(Path(config.geoclip))
    run = start_run("retrieval", config, places, run_name, folds_column, n_folds, overwrite, checksums)
    session = Session(run, places)

    def train_one(fold: int, left: float | None) -> None:
        if devices == 1 or config.method == "knn":
            session.train_fold(fold, 1, left)
        else:
            _ = session.features  # computed once, here
            crossval.train_in_processes(run, fold, places.folder, devices, left)

    if not crossval.train_folds(run, todo, train_one, max_hours):
        return run
    done = guesses.stack([Guesses.load(crossval.folder(run, fold) / "oof.npz") for fold in crossval.done(run)])
    truth = places.rows("train").set_index("sample_id").loc[done.sample_id, ["latitude", "longitude"]].to_numpy()
    crossval.finish(run, places, {"accuracy": metrics.report(geo.distance_km(truth, done.point())).as_dict()})
    return run


def train_fold(run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None) -> bool:
    """Train one fold of a run that `train` has started, in this process or as one of several; True when it is done."""
    run = runs.open_run(run_name)
    Session(run, crossval.reread(run, data)).train_fold(fold, devices, max_hours)
    return crossval.is_done(run, fold)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's galleries, averaged, guess of the places of `split`; all settings are the run's own."""
    session = Session(runs.open_run(run_name), places)
    return guesses.average([session.guess(fold, split) for fold in crossval.done(session.run)])


class Session(Inputs):
    """A run with its data at hand: what its folds share."""

    def __init__(self, run: Run, places: Places) -> None:
        self.run, self.config = run, Config.of_run(run.settings)
        dtype = dtype_of(run.settings, best_device())
        super().__init__(places, self.config.encoder, self.config.image_size, self.config.mirror, dtype)

    def train_fold(self, fold: int, devices: int = 1, max_hours: float | None = None) -> None:
        """Embedder, gallery, k and temperature of one fold, then its guesses; returns early when the hours are over."""
        config, folder = self.config, crossval.folder(self.run, fold)
        known, held_out = self.known(fold)
        if config.method == "knn":
            embedder: Embedder = Frozen.fit(self.features["train"][known.rows], config.by)
        else:
            learns = np.setdiff1d(known.rows, known.asking)
            found = embedders.learn(
                asdict(config), self, known.apart[0], learns, known.asking, folder, devices, max_hours
            )
            if found is None or (torch.distributed.is_initialized() and torch.distributed.get_rank() > 0):
                return
            embedder, encoder = found
            if encoder:
                weights.save_encoder(encoder, folder / "encoder.safetensors")
                known = replace(known, features=self.features_of(fold)["train"])
        made, tried = known.lookup(embedder, self.gallery_points, config.gallery_size)
        made.save(folder)
        with storage.atomic_write(folder / "choice.csv") as beside:
            tried.to_csv(beside, index=False)
        test = self.guess(fold, "test") if "test" in self.packs else None
        crossval.keep(self.run, fold, self.guess(fold, "train", held_out), test)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """What a fold's gallery says of the places in `rows` (of all when None)."""
        pack, made = self.packs[split], self.lookup(fold)
        rows = np.arange(len(pack.sample_id)) if rows is None else rows
        blind = pack.unusable_places[rows]
        parts, seen = [made.entries.commonest(pack.sample_id[rows[blind]])], rows[~blind]
        if len(seen):
            parts.append(made.guess(pack.sample_id[seen], self.features_of(fold)[split][seen], self.device))
        return guesses.stack(parts).at(pack.sample_id[rows])

    def lookup(self, fold: int) -> Lookup:
        """The model of a fold that is done."""
        return Lookup.load(crossval.folder(self.run, fold), self.config.method, self.config.by)

    def features_of(self, fold: int) -> dict[str, torch.Tensor]:
        """Features as `features`, by the encoder that a fold trained where it did; computed once and kept."""
        if not self.config.finetune_epochs:
            return self.features
        encoder, folder = self.encoder(), crossval.folder(self.run, fold)
        weights.load_encoder(encoder, folder / "encoder.safetensors")
        return self.embed(encoder, folder / "embeddings")

    def asked(self, fold: int) -> tuple[Known, np.ndarray]:
        """`known` with the fold's own features, and those of the rows it holds out that have a usable picture."""
        known, held_out = self.known(fold)
        usable = ~self.packs["train"].unusable_places[held_out]
        return replace(known, features=self.features_of(fold)["train"]), held_out[usable]

    def known(self, fold: int) -> tuple[Known, np.ndarray]:
        """The training places of a fold with the features of the frozen encoder; and the rows (H,) it holds out."""
        config, places = self.config, self.places
        table = saved_folds.load_or_make(places, n_folds=self.run.settings["n_folds"])
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
