"""The settings of a multiview run; without torch, so that they are checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kitlib.core.settings import Names
from kitlib.training.options import TrainingOptions

SOFT_LABELS = ("place", "matrix", "none")
FUSIONS = ("average", "concat", "attention", "learned")  # those of vision/fusion.py, which imports torch
TIES = ("none", "state", "cell")


@dataclass(frozen=True)
class GeolocatorOptions(TrainingOptions):
    """How heads and encoder are trained."""

    soft_labels: str = "place"  # distances of the state targets: from the place, between states (matrix), or none
    temperature_km: float = 75.0  # km at which a target's weight falls to 1/e, of states and of cells
    average: float = 0.0  # share of the last steps whose mean weights are kept; 0: the last weights

    CHOICES: ClassVar = {"soft_labels": SOFT_LABELS}
    POSITIVE: ClassVar[Names] = ("temperature_km",)
    SHARES: ClassVar[Names] = ("average",)


@dataclass(frozen=True)
class Config(GeolocatorOptions):
    """The settings that decide the result, saved in params.json. Defaults are for tens of thousands of places."""

    fusion: str = "average"  # of the views: average, concat, attention, learned
    hidden: int = 256  # units between the fused views and the heads
    dropout: float = 0.5  # share of features, and of hidden units, left out in training
    places_per_cell: int = 50  # training places in a geocell, on average; a state has at least one cell
    tie: str = "state"  # what the GPS head adds to: the middle of the likely states, of the cells, or none
    gps_share: float = 0.1  # weight of the GPS head's point among a guess's points; cells share the rest
    pseudo: float = 0.0  # probability from which the refit learns the folds' test guesses, if rules allow; 0: none
    points: int = 24  # likeliest cells that become points of a guess
    heads_epochs: int = 60  # passes of the heads over cached features
    heads_batch: int = 1024  # places a step; fewer where a pass would have less than 8 steps
    heads_rate: float = 1e-3  # learning rate
    finetune_epochs: int = 3  # passes over the pictures; 0: heads only
    finetune_batch: int = 64  # places a step, gathered over devices and turns
    device_batch: int = 16  # places that fit on one device at once
    finetune_heads_rate: float = 2e-4  # learning rate of the heads

    CHOICES: ClassVar = {"fusion": FUSIONS, "tie": TIES}
    LIMITS: ClassVar = {"hidden": 2**14, "points": 2**14}
    POSITIVE: ClassVar[Names] = ("hidden", "places_per_cell", "points", "heads_epochs", "heads_batch",
                                 "finetune_batch", "device_batch")  # fmt: skip
    SHARES: ClassVar[Names] = ("dropout", "gps_share", "pseudo")
    PRESETS: ClassVar = {
        "sample": {"encoder": "tiny", "places_per_cell": 8, "dropout": 0.3, "heads_epochs": 40, "heads_rate": 3e-3},
        "sample tiny": {"finetune_epochs": 4, "finetune_blocks": -1, "finetune_rate": 1e-3, "finetune_batch": 16,
                        "layer_decay": 1.0, "vary": 0.0},
    }  # fmt: skip

    @classmethod
    def preset(cls, name: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a preset; those of fine-tuning only for an encoder that was never trained."""
        tiny = settings.get("encoder", "tiny") == "tiny"
        return {**super().preset(name, settings), **(super().preset(f"{name} tiny", settings) if tiny else {})}
