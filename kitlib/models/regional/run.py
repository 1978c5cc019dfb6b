"""Regional: clean the coordinates, divide the world into regions, and train a regressor with its own scaler for each.

    run = train(Config(encoder="tiny", finetune=False), places, "regions")     # a run that was cut short is resumed
    analysis.evaluation(run)                                                   # errors within each region

With folds_column "stratified" or "spatial" it is a family of the competition: the region of a query is not known, so a
router's state probabilities weight the points by the regressors of the likeliest regions. With "given" the places are a
region table whose second table is held out, and the router may be "known": the published pipeline.

Each fold's checkpoints/fold_<k>/ holds regions.npz, a scaler_region_<id>.joblib for each, heads.npz or region_<id>/ and
pooled/ with a fine-tuned encoder, and held_out.parquet with the prediction for each held-out place. Cleaning drops
training places only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.core.processes import launched
from kitlib.data import folds
from kitlib.data.places import Places
from kitlib.evaluation import baselines, fold_files, metrics, origin, runs
from kitlib.evaluation.crossval import Unfinished
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.regional import analysis, cleaning
from kitlib.models.regional.cleaning import Cleaned
from kitlib.models.regional.config import Config
from kitlib.models.regional.fold import POOLED, RegionalFold, failures
from kitlib.models.regional.regions import Regions
from kitlib.training.session import EncoderSession

log = logging.getLogger(__name__)

ROUTER = "router.npz"  # the logistic router of all training places, in the run's folder


def clean(config: Config, places: Places) -> Cleaned:
    """The training places to keep and to drop; deviations are measured within the data's own labels."""
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


def _names(only_regions: str | Sequence[str] | None) -> list[str]:
    """The regions in a list, or in a text with commas."""
    parts = only_regions.split(",") if isinstance(only_regions, str) else only_regions or []
    return [name.strip() for name in parts if name.strip()]


def _router_checksum(router: str, folds_column: str, places: Places) -> dict[str, str]:
    """The checksum of a router's guesses. Raises KitError for a router without out-of-fold guesses of these folds."""
    if router == "known" and folds_column != "given":
        raise KitError(f"router: expected 'known' only with folds_column 'given'; got it with {folds_column!r}")
    if router in ("known", "logistic"):
        return {}
    run = runs.open_run(router)
    n_folds = run.settings.get("n_folds", 5)
    same = origin.data_checksums(places, folds_column, n_folds).items() <= run.params["data"].items()
    if not run.finished or not same or run.settings.get("folds_column", "stratified") != folds_column:
        raise KitError(
            f"router: expected a finished run on the same places in the same folds ({folds_column}), whose guesses "
            f"are out of fold; got {router!r}"
        )
    return {"router": storage.digest(*sorted(run.dir.glob("*.npz")))}


class Session(EncoderSession[Config]):
    """Trains, saves and queries the regressors of each fold, and routes places to them.

    only_regions: train the encoders of these alone, a list or a text with commas ("pooled" is one); the fold is done
    when the last one is trained, on any machine.
    """

    family = "regional"
    config_type = Config
    FOLDS = (*folds.KINDS, "given")
    OPTIONS = ("only_regions",)

    def __init__(self, run: Run, places: Places, *args: Any, **options: Any) -> None:
        super().__init__(run, places, *args, **options)
        if not len(places.rows("train")):
            return  # it only answers
        self.cleaned = clean(self.config, places)
        with storage.atomic_write(run.dir / "dropped.csv") as beside:
            self.cleaned.dropped.to_csv(beside, index=False)

    @classmethod
    def select_folds(
        cls, places: Places, folds_column: str, n_folds: int, only_folds: Sequence[int] | str | None
    ) -> list[int]:
        """As for all families; "given" has one fold, which holds out the second table."""
        if folds_column != "given":
            return super().select_folds(places, folds_column, n_folds, only_folds)
        test = places.rows("test")
        if not len(test) or test[["latitude", "longitude"]].isna().any(axis=None):
            raise KitError(f"folds_column: expected a second table with coordinates; got none in {places.name}")
        return [0]

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
        """Refuse an unsuitable router, unknown regions, and filters that leave none; returns the router's checksum."""
        if config.refit and folds_column == "given":
            raise KitError("refit: expected false with folds_column 'given', which has one fold; got true")
        only = _names(options.get("only_regions"))
        if only and not config.finetune:
            raise KitError("only_regions: expected none with finetune=False, which fits all regions at once")
        regions = Regions.make(places, np.flatnonzero(clean(config, places).kept), config.regions, config.seed)
        own = [*regions.names[regions.count >= config.min_places], POOLED]  # a fold may have fewer
        if unknown := sorted(set(only) - set(own)):
            raise KitError(f"only_regions: expected some of {', '.join(own)}; got {', '.join(unknown)}")
        super().check(config, places, folds_column, todo, recorded)
        return _router_checksum(config.router, folds_column, places)

    @property
    def spawns(self) -> bool:
        """Whether a whole fold is trained by several processes: never, they are started for each region's encoder."""
        return False

    @cached_property
    def router(self) -> dict[str, Guesses]:
        """The router's guesses by split; those of training places are out of fold."""
        name, states = self.config.router, self.places.states["state_idx"].to_numpy()
        if name == "known":
            return {}
        if name != "logistic":
            run = runs.open_run(name)
            files = {"train": run.dir / "oof.npz", "test": run.dir / "test.npz"}
            return {split: Guesses.load(file).on_states(states) for split, file in files.items() if file.is_file()}
        mean = {split: features[:, 0].float().mean(1).numpy() for split, features in self.features.items()}
        fold = self.fold_table["stratified" if self.given else self.run.settings["folds_column"]].to_numpy()
        oof, test = baselines.logistic(self.places, mean["train"], fold, mean.get("test"), keep=self.run.dir / ROUTER)
        return {"train": oof} | ({} if test is None else {"test": test})

    @cached_property
    def routed(self) -> Guesses:
        """The router's guesses for photographs."""
        if self.config.router != "logistic":
            return self.ask(self.config.router, self.places)
        model, pack = baselines.StateModel.load(self.run.dir / ROUTER), self.packs["test"]
        return model.guess(self.features["test"][:, 0].float().mean(1).numpy(), pack.sample_id)

    def regional_fold(self, fold: int) -> RegionalFold:
        """The regions of one fold, with its training, validation and held-out places."""
        config, places = self.config, self.places
        usable = ~self.packs["train"].unusable_places & self.cleaned.kept
        if self.given:
            rows, held_out = np.flatnonzero(usable), ("test", np.arange(len(places.rows("test"))))
            val = "test", np.flatnonzero(~self.packs["test"].unusable_places)
        else:
            mask = self.held_out(fold)
            rows, held_out = np.flatnonzero(~mask & usable), ("train", np.flatnonzero(mask))
            val = "train", rows[:0]
            if config.finetune and fold_files.is_refit(self.run.settings, fold):
                val = "train", rows  # unused: the folds have chosen the epochs
            elif config.finetune:
                group = self.fold_table["group"].to_numpy()[rows]
                groups = np.random.default_rng(config.seed).permutation(np.unique(group))
                mask = np.isin(group, groups[: math.ceil(config.val_share * len(groups))])
                rows, val = rows[~mask], ("train", rows[mask])
        return RegionalFold(self, config, self.folder(fold), rows, val, held_out)

    def fit_fold(self, fold: int) -> None:
        """Train the regressors of a fold. Raises Unfinished while some regions remain to be trained elsewhere."""
        regional_fold, names = self.regional_fold(fold), _names(self.options.get("only_regions"))
        models = regional_fold.models
        if unknown := sorted(set(names) - set(models)):
            raise KitError(f"only_regions: expected some of {', '.join(models)}; got {', '.join(unknown)}")
        if launched():
            epochs = self._epochs(fold, names[0])
            if not regional_fold.train_encoder(names[0], self.devices, self.hours_left, epochs):
                raise Unfinished
            return
        regional_fold.save()
        if self.config.finetune:
            for name in names or models:
                self._train_encoder(regional_fold, fold, name)
            if missing := [name for name in models if not regional_fold.is_trained(name)]:
                log.warning("run %s, fold %d: still to train: %s", self.run.name, fold, ", ".join(missing))
                raise Unfinished
        else:
            regional_fold.fit_heads()
        if len(regional_fold.held_out[1]):
            with storage.atomic_write(self.folder(fold) / "held_out.parquet") as beside:
                regional_fold.evaluate().to_parquet(beside, index=False)

    def part(self, fold: int) -> str:
        """As for all families; processes may train other regions of a fold at the same time."""
        names = _names(self.options.get("only_regions"))
        return super().part(fold) + (f" regions {storage.digest(*names)}" if names else "")

    def complete_fold(self, fold: int) -> None:
        """As for all families; a launched process only trains the encoder of a region."""
        if not launched():
            return super().complete_fold(fold)
        with contextlib.suppress(Unfinished):
            self.fit_fold(fold)

    def guess(self, fold: int, split: str, rows: np.ndarray | None = None) -> Guesses:
        """Guesses of a fold's regressors for the places in `rows`, for all when None, weighted by the router."""
        asked, states = self.places.queries is not None, self.places.states["state_idx"].to_numpy()
        regional_fold = RegionalFold.load(self, self.config, self.folder(fold)) if asked else self.regional_fold(fold)
        rows = np.arange(len(self.places.rows(split))) if rows is None else rows
        if self.config.router == "known":
            position = self.places.state_position(split)[rows]
            if (position < 0).any():
                raise KitError(f"{self.run.name}: router: expected places of known regions, as its router is 'known'; "
                               f"{(position < 0).sum()} of {len(rows)} have none")  # fmt: skip
            state_probs = np.eye(len(states))[position]
            return regional_fold.guess(split, rows, states, state_probs, np.ones(len(rows), bool))
        routed = (self.routed if asked else self.router[split]).at(self.places.sample_id(split)[rows]).on_states(states)
        return regional_fold.guess(split, rows, states, routed.state_probs, routed.answered)

    def guess_held_out(self, fold: int) -> Guesses:
        """Guesses of a fold's regressors for its held-out places, for "given" the second table."""
        if self.given:
            return self.guess_together(fold, "test", np.arange(len(self.places.rows("test"))))
        return super().guess_held_out(fold)

    def guess_test(self, fold: int) -> Guesses | None:
        """As for all families; None for "given", whose test places are held out."""
        return None if self.given else super().guess_test(fold)

    @property
    def given(self) -> bool:
        """Whether the data's own second table is held out."""
        return self.run.settings["folds_column"] == "given"

    def metrics(self) -> dict[str, Any]:
        """Accuracy within the true regions, and failed models; also writes regions.csv with a row a region."""
        table = analysis.evaluation(self.run)
        with storage.atomic_write(self.run.dir / "regions.csv") as beside:
            table.to_csv(beside)
        within = metrics.report(analysis.held_out(self.run)["km"]).as_dict()
        within["median_point_km"] = float(table["median_point_km"]["all"])
        failed = {name: model for name, model in table.drop("all")["model"].items() if "failed" in model}
        for fold in fold_files.done_folds(self.run):  # a failed region may have no held-out place
            names = Regions.load(self.folder(fold) / "regions.npz").names
            failed |= failures(self.folder(fold), names) | failed
        for name, reason in failed.items():
            log.warning("run %s: region %s: %s", self.run.name, name, reason)
        return {"within_regions": within, "failed": failed}

    def finish(self) -> None:
        """As for all families; the one fold of "given" is scored within its regions only."""
        if not self.given:
            return super().finish()
        self.run.save_guesses("test", Guesses.load(self.folder(0) / "oof.npz"))
        result = self.metrics()
        self.run.finish(result)
        log.info("run %s: mean error %.2f km", self.run.name, result["within_regions"]["mean_km"])

    def _train_encoder(self, regional_fold: RegionalFold, fold: int, name: str) -> None:
        """Train a region's encoder; a failure is recorded and does not stop the others."""
        regional_fold.clear_failure(name)
        try:
            if self.devices > 1:
                self.launch(fold, "--region", name)
            else:
                regional_fold.train_encoder(name, 1, self.hours_left, self._epochs(fold, name))
        except (KitError, RuntimeError, ValueError, OSError) as error:
            log.warning("run %s, fold %d, region %s: %s", self.run.name, fold, name, error)
            regional_fold.record_failure(name, str(error).splitlines()[0])

    def _epochs(self, fold: int, name: str) -> int:
        """The epochs of a model of the refit, 0 for a fold's, which validation stops.

        They are the median of the best epochs in the folds; of all models, where no fold has trained this one.
        """
        if not fold_files.is_refit(self.run.settings, fold):
            return 0
        trained = [RegionalFold.load(self, self.config, self.folder(k)) for k in fold_files.done_folds(self.run)]
        every = [(model, one.best_epoch(model)) for one in trained for model in one.models]
        own = [epoch for model, epoch in every if epoch and model == name]
        return round(statistics.median(own or [epoch for _, epoch in every if epoch] or [self.config.epochs]))


train, train_fold, predict = Session.train, Session.train_fold, Session.predict
