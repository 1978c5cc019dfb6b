"""Regional: clean the coordinates, cut the world into regions, one regressor with its own scaler for each.

    run = train(Config(encoder="tiny", finetune=False), places, "regions")     # resumes when it was cut short
    evaluation(run)                                                            # how good it is within each region

With folds_column "stratified" or "spatial" it is a family of the competition: the region of a place that is guessed is
not known, a router's state probabilities weigh what the likeliest regions' regressors say. With "given" the places are
a region table whose second table is held out, and the router may be "known": the published pipeline.

Each fold's checkpoints/fold_<k>/ holds regions.npz, a scaler_region_<id>.joblib for each, heads.safetensors or
region_<id>/ and pooled/ with a fine-tuned encoder, and held_out.parquet with what was said of each place that was held
out. Only training places are ever cleaned away.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.settings import Settings
from kitlib.data import folds as saved_folds
from kitlib.data.places import Places
from kitlib.evaluation import baselines, crossval, guesses, metrics, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.regional import analysis, cleaning
from kitlib.models.regional.cleaning import Cleaned
from kitlib.models.regional.fold import Part, failures
from kitlib.models.regional.heads import LOSSES
from kitlib.models.regional.regions import Regions
from kitlib.models.regional.scalers import KINDS
from kitlib.training import wandb_logger
from kitlib.training.start import start_run
from kitlib.vision.device import best_device, dtype_of
from kitlib.vision.inputs import Inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(Settings):
    """What decides the result; travels with the run in params.json. Learning rates and so on are the published ones."""

    encoder: str = "timm:convnext_small"  # see encoders.py
    image_size: int = 0  # px of the square that the encoder sees; 0: its own
    regions: str = "state"  # state (the data's labels), division (of the US Census Bureau) or cluster:N
    min_places: int = 20  # a region with fewer training places shares a pooled model
    router: str = "logistic"  # who tells the region: a finished run, logistic regression, or known (in a region table)
    routes: int = 32  # likeliest regions that become points of a guess
    exclude: str = ""  # sample_ids (file names) or row numbers, commas between: nothing is learned from them
    mad_threshold: float = 0.0  # median absolute deviations from its label's median that a coordinate may be; 0: any
    eps_km: float = 0.0  # a place with fewer than min_samples within this is noise (DBSCAN); 0: none is
    min_samples: int = 5  # the place itself counts
    scaler: str = "robust"  # robust, standard, minmax
    loss: str = "mse"  # of scaled coordinates; or haversine
    finetune: bool = True  # each region trains an encoder of its own; False: heads on the frozen one's features
    batch: int = 32  # places a step and device, of an encoder
    rate: float = 1e-5  # learning rate of an encoder
    heads_batch: int = 1024  # places a step, of all regions together; fewer where a pass would have less than 8 steps
    heads_rate: float = 1e-3  # learning rate of heads on frozen features
    hidden: int = 128  # units between features and a head's two numbers; 0: none
    dropout: float = 0.5  # share of features left out in training heads
    view_dropout: float = 0.3  # share of views left out in training heads
    weight_decay: float = 1e-4
    epochs: int = 60
    patience: int = 10  # epochs without a lower validation loss after which a region stops; 0: never
    t_0: int = 10  # epochs until the learning rate starts again
    t_mult: int = 1  # how many times longer each next cycle is
    val_share: float = 0.1  # of training places that stop the training; a region table brings its own
    mirror: bool = True  # learn from mirrored places too, and average over both when guessing
    vary: float = 1.0  # how far light and zoom of pictures vary in training an encoder; 0: not at all
    gradient_checkpointing: bool = False  # a tenth of the activations' memory for 23 % more work
    seed: int = 0  # of weights, order, dropout and augmentation

    CHOICES: ClassVar = {"scaler": KINDS, "loss": LOSSES}
    POSITIVE: ClassVar = ("min_places", "routes", "min_samples", "batch", "heads_batch", "epochs", "t_0", "t_mult",
                          "val_share")  # fmt: skip
    SHARES: ClassVar = ("dropout", "view_dropout", "val_share")


def train(
    config: Config,
    places: Places,
    run_name: str,
    *,
    folds_column: str = "stratified",
    n_folds: int = 5,
    only_folds: Sequence[int] | None = None,
    only_regions: Sequence[str] | None = None,
    devices: int = 1,
    max_hours: float | None = None,
    overwrite: bool = False,
    wandb_project: str = "",
) -> Run:
    """Train the regressors of each fold and write what they guess; go on where an earlier call was cut short.

    folds_column: stratified, spatial, or given (the split "test", whose truth must be known, is held out).
    only_folds: train these alone. only_regions: train the encoders of these alone ("pooled" is one); when the last
    one is done, on whatever machine, the fold is. devices, max_hours: as for `multiview.train`. wandb_project: log
    there too. Raises KitError for an unknown fold, region or router, and for a run that was started otherwise.
    """
    if folds_column == "given":
        if places.rows("test")[["latitude", "longitude"]].isna().any(axis=None) or not len(places.rows("test")):
            raise KitError(f"folds_column 'given': {places.name} has no second table whose coordinates are known")
        todo = [0]
    else:
        todo = crossval.chosen(places, folds_column, n_folds, only_folds)
    checksums = _router_checksum(config.router, folds_column, places)
    if only_regions is not None and not config.finetune:
        raise KitError("only_regions needs finetune=True: heads on frozen features learn in all regions at once")
    cleaned = clean(config, places)
    Regions.make(places, np.flatnonzero(cleaned.kept), config.regions, config.seed)
    run = start_run("regional", config, places, run_name, folds_column, n_folds, overwrite, checksums)
    session = Session(run, places)
    with storage.atomic_write(run.dir / "dropped.csv") as beside:
        cleaned.dropped.to_csv(beside, index=False)

    def train_one(fold: int, left: float | None) -> None:
        session.train_fold(fold, devices, left, only_regions, wandb_project)

    if crossval.train_folds(run, todo, train_one, max_hours):
        _finish(run, places)
    return run


def train_fold(
    run_name: str, fold: int, data: str = "", devices: int = 1, max_hours: float | None = None, region: str = ""
) -> bool:
    """Train one region's encoder in one fold of a run that `train` has started, as one of several processes."""
    run = runs.open_run(run_name)
    part = Session(run, crossval.reread(run, data)).part(fold)
    if region not in part.models:
        raise KitError(f"region {region!r} of run {run_name}: allowed are {', '.join(part.models)}")
    return part.train_encoder(region, devices, max_hours=max_hours)


def predict(run_name: str, places: Places, split: str = "test") -> Guesses:
    """What the run's models, averaged, guess of the places of `split`; all settings are the run's own."""
    session = Session(runs.open_run(run_name), places)
    rows = np.arange(len(places.rows(split)))
    return guesses.average([session.guess(session.part(fold), split, rows) for fold in crossval.done(session.run)])


def clean(config: Config, places: Places) -> Cleaned:
    """Which training places are learned from; deviations are measured within the data's own labels."""
    return cleaning.clean(
        places.sample_id("train"),
        places.points("train"),
        places.state_position("train"),
        places.states["state"].to_numpy(),
        mad_threshold=config.mad_threshold,
        eps_km=config.eps_km,
        min_samples=config.min_samples,
        exclude=[name.strip() for name in config.exclude.split(",") if name.strip()],
    )


def _router_checksum(router: str, folds_column: str, places: Places) -> dict[str, str]:
    """What stands for the guesses of a run that routes; refuses one that would know too much, or other places."""
    if router == "known" and folds_column != "given":
        raise KitError("router 'known' needs folds_column 'given': out of fold, and in a test, the region is not known")
    if router in ("known", "logistic"):
        return {}
    run = runs.open_run(router)
    same = crossval.checksums(places, folds_column).items() <= run.params["data"].items()
    if not run.finished or not same or run.settings.get("folds_column", "stratified") != folds_column:
        raise KitError(
            f"router {router!r} must be a finished run on the same places in the same folds ({folds_column}): "
            "what it says of a place must come from models that have not seen it"
        )
    return {"router": storage.digest(*sorted(run.dir.glob("*.npz")))}


def _finish(run: Run, places: Places) -> None:
    """Join the folds, and write metrics.json, which ends the run."""
    table = analysis.evaluation(run)
    with storage.atomic_write(run.dir / "regions.csv") as beside:
        table.to_csv(beside)
    found = metrics.report(analysis.held_out(run)["km"]).as_dict()
    found["median_point_km"] = float(table["median_point_km"]["all"])
    failed = {name: model for name, model in table.drop("all")["model"].items() if "failed" in model}
    for fold in crossval.done(run):  # a region that failed may have no place that is held out
        failed |= failures(crossval.folder(run, fold)) | failed
    for name, reason in failed.items():
        log.warning("run %s: region %s: %s", run.name, name, reason)
    if run.settings["folds_column"] == "given":
        run.save_guesses("test", Guesses.load(crossval.folder(run, 0) / "oof.npz"))
        run.finish({"within_regions": found, "failed": failed})
        log.info("run %s: mean error %.2f km", run.name, found["mean_km"])
    else:
        crossval.finish(run, places, {"within_regions": found, "failed": failed})


class Session(Inputs):
    """A run with its data at hand: what its folds share."""

    def __init__(self, run: Run, places: Places) -> None:
        self.run, self.config = run, Config.of_run(run.settings)
        self.kept = clean(self.config, places).kept
        dtype = dtype_of(run.settings, best_device())
        super().__init__(places, self.config.encoder, self.config.image_size, self.config.mirror, dtype)

    @cached_property
    def router(self) -> dict[str, Guesses]:
        """What the router says of the places of each split; of training places out of fold."""
        name, states = self.config.router, self.places.states["state_idx"].to_numpy()
        if name == "known":
            return {}
        if name != "logistic":
            run = runs.open_run(name)
            there = {"train": run.dir / "oof.npz", "test": run.dir / "test.npz"}
            return {s: Guesses.load(path).on_states(states) for s, path in there.items() if path.is_file()}
        mean = {split: features[:, 0].float().mean(1).numpy() for split, features in self.features.items()}
        column, n_folds = self.run.settings["folds_column"], self.run.settings["n_folds"]
        kind = "stratified" if column == "given" else column
        fold = saved_folds.load_or_make(self.places, n_folds)[kind].to_numpy()
        oof, test = baselines.logistic(self.places, mean["train"], fold, mean.get("test"))
        return {"train": oof} | ({} if test is None else {"test": test})

    def part(self, fold: int) -> Part:
        """One fold: what is learned from which places, and which are held out."""
        config, places = self.config, self.places
        usable = ~self.packs["train"].unusable_places & self.kept
        if self.run.settings["folds_column"] == "given":
            rows, held = np.flatnonzero(usable), ("test", np.arange(len(places.rows("test"))))
            val = "test", np.flatnonzero(~self.packs["test"].unusable_places)
        else:
            table = saved_folds.load_or_make(places, n_folds=self.run.settings["n_folds"])
            out = table[self.run.settings["folds_column"]].to_numpy() == fold
            rows, held = np.flatnonzero(~out & usable), ("train", np.flatnonzero(out))
            group = table["group"].to_numpy()[rows]
            groups = np.random.default_rng(config.seed).permutation(np.unique(group))
            stops = np.isin(group, groups[: math.ceil(config.val_share * len(groups))])
            rows, val = rows[~stops], ("train", rows[stops])
        return Part(self, config, crossval.folder(self.run, fold), rows, val, held)

    def train_fold(
        self, fold: int, devices: int, max_hours: float | None, only_regions: Sequence[str] | None, wandb_project: str
    ) -> None:
        """All regressors of a fold, then its guesses; returns early when the hours are over or regions are missing."""
        began, part = time.monotonic(), self.part(fold)
        part.save()
        names = part.models if only_regions is None else list(only_regions)
        if unknown := sorted(set(names) - set(part.models)):
            raise KitError(f"regions {', '.join(unknown)}: with a model of their own are {', '.join(part.models)}")

        def how(name: str) -> dict[str, Any]:
            left = max_hours and max_hours - (time.monotonic() - began) / 3600
            title = f"{self.run.name}-fold{fold}-{name}"
            logger = wandb_logger.tracker(wandb_project, title, self.run.dir / "wandb") if wandb_project else None
            return {"max_hours": left, "logger": logger}

        if self.config.finetune:
            for name in names:
                if not self._train_encoder(part, fold, name, devices, **how(name)):
                    return
            if missing := [name for name in part.models if not part.is_trained(name)]:
                log.warning("run %s, fold %d: still to train: %s", self.run.name, fold, ", ".join(missing))
                return
        elif not part.train_heads(**how("heads")):
            return
        table = part.held_out()
        with storage.atomic_write(part.folder / "held_out.parquet") as beside:
            table.to_parquet(beside, index=False)
        split, rows = part.held
        everywhere = np.arange(len(self.places.rows("test")))
        test = self.guess(part, "test", everywhere) if split == "train" and len(everywhere) else None
        crossval.keep(self.run, fold, self.guess(part, split, rows), test)

    def guess(self, part: Part, split: str, rows: np.ndarray) -> Guesses:
        """What a fold's models guess of places (B,) of a split, on the way that the router shows."""
        states = self.places.states["state_idx"].to_numpy()
        if self.config.router == "known":
            state_probs = np.eye(len(states))[self.places.state_position(split)[rows]]
            return part.guess(split, rows, states, state_probs, np.ones(len(rows), bool))
        routed = self.router[split].at(self.places.sample_id(split)[rows]).on_states(states)
        return part.guess(split, rows, states, routed.state_probs, routed.answered)

    def _train_encoder(self, part: Part, fold: int, name: str, devices: int, **how: Any) -> bool:
        """Whether a region's encoder came to an end; what goes wrong is written down and does not stop the others."""
        part.forget_failure(name)
        try:
            if devices == 1:
                return part.train_encoder(name, devices, **how)
            more = ["--region", name]
            crossval.train_in_processes(self.run, fold, self.places.folder, devices, how["max_hours"], more)
            return part.is_trained(name)
        except (KitError, RuntimeError, ValueError, OSError) as error:
            log.warning("run %s, fold %d, region %s: %s", self.run.name, fold, name, error)
            part.note_failure(name, str(error).splitlines()[0])
            return True
