"""The settings of a ridge run; without torch, so that they are checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kitlib.core.settings import Names
from kitlib.training.options import EncoderOptions


@dataclass(frozen=True)
class Config(EncoderOptions):
    """The settings that decide the result, saved in params.json."""

    mirror: bool = False  # frozen features gain nothing from mirrored places, and take twice as long
    soft_km: float = 100.0  # km at which a target falls to 1/e, of states and of cells
    places_per_cell: int = 50  # training places in a geocell, on average; a state has at least one cell
    pseudo: float = 0.0  # probability from which the refit learns the folds' test guesses, if rules allow; 0: none
    points: int = 24  # likeliest cells that become points of a guess

    LIMITS: ClassVar = {"points": 2**14}
    POSITIVE: ClassVar[Names] = ("soft_km", "places_per_cell", "points")
    SHARES: ClassVar[Names] = ("pseudo",)
    PRESETS: ClassVar = {"sample": {"encoder": "tiny", "places_per_cell": 8}}
