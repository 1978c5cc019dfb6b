"""The settings of a regional run; without torch, so that they are checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kitlib.core import paths
from kitlib.core.settings import Names
from kitlib.models.regional.regions import n_clusters_of
from kitlib.models.regional.scalers import KINDS
from kitlib.training.options import EncoderOptions

LOSSES = ("mse", "haversine")


@dataclass(frozen=True)
class RegressorOptions(EncoderOptions):
    """How a region's encoder is trained; the defaults are the published ones."""

    encoder: str = "timm:convnext_small"  # tiny, timm:NAME, timm:NAME@WEIGHTS or hf:REPO_OR_FOLDER
    loss: str = "mse"  # of scaled coordinates; or haversine
    batch: int = 32  # places a step and device
    rate: float = 1e-5  # learning rate
    weight_decay: float = 1e-4  # of all weights
    epochs: int = 60  # passes over a region's places at most
    patience: int = 10  # epochs without a lower validation loss before the training stops; 0: it never does
    t_0: int = 10  # epochs until the learning rate restarts
    t_mult: int = 1  # factor of each next cycle's length
    val_share: float = 0.1  # of training places, for early stopping; a region table has its own

    CHOICES: ClassVar = {"loss": LOSSES}
    LIMITS: ClassVar = {"t_0": 10_000, "t_mult": 10_000}
    POSITIVE: ClassVar[Names] = ("batch", "epochs", "t_0", "t_mult", "val_share")
    SHARES: ClassVar[Names] = ("val_share",)


@dataclass(frozen=True)
class Config(RegressorOptions):
    """The settings that decide the result, saved in params.json."""

    regions: str = "state"  # state (the data's labels), division (of the US Census Bureau) or cluster:N
    min_places: int = 20  # a region with fewer training places shares a pooled model
    router: str = "logistic"  # gives the regions' probabilities: a finished run, logistic regression, or known
    routes: int = 32  # likeliest regions that become points of a guess
    exclude: str = ""  # sample_ids (file names) or row numbers of places to drop, commas between
    mad_threshold: float = 0.0  # limit of a coordinate, in median absolute deviations from its label's median; 0: none
    eps_km: float = 0.0  # a place with fewer than min_samples within this is noise (DBSCAN); 0: none is
    min_samples: int = 5  # the place itself counts
    scaler: str = "robust"  # robust, standard, minmax
    finetune: bool = True  # each region trains an encoder of its own; False: ridge regression on frozen features

    CHOICES: ClassVar = {"scaler": KINDS}
    PARSERS: ClassVar = {"regions": n_clusters_of, "router": lambda text: paths.file_name(text, "router")}
    POSITIVE: ClassVar[Names] = ("min_places", "routes", "min_samples")
    PRESETS: ClassVar = {"sample": {"encoder": "tiny", "mirror": False, "finetune": False, "scaler": "standard"}}
