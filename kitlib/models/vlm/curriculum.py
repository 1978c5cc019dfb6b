"""Choose the places that GRPO learns from: more often those whose replies of late earned different rewards.

A group with equal rewards teaches nothing, be the place too easy or impossible to tell; the wider the spread of a
group's rewards, the more a step at its place can gain. Kimi k1.5 (2501.12599) prioritises by failures instead.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kitlib.core import storage

FLOOR = 0.1  # least weight of a place, as a share of the mean, so that none is lost
RECENT = 0.5  # weight of the last spread against those before it


class Curriculum:
    """Draws places by the recent spread of their groups' rewards; those never drawn count as the mean.

    strength: the power of a spread that is its weight; 0 is uniform. Draws depend on the seed, the step and the spreads
    alone, so that all processes draw the same, and a training that continues does, too.
    """

    def __init__(self, n_places: int, strength: float, seed: int) -> None:
        self.spread = np.full(n_places, np.nan)  # (N,) standard deviation of a group's rewards
        self.strength, self.seed = strength, seed

    def weights(self) -> np.ndarray:
        """The probability (N,) of each place."""
        seen = ~np.isnan(self.spread)
        mean = self.spread[seen].mean() if seen.any() else 0.0
        relative = np.where(seen, self.spread, mean) / mean if mean > 0 else np.ones(len(seen))
        weights = np.maximum(relative, FLOOR) ** self.strength
        return weights / weights.sum()

    def draw(self, step: int, count: int) -> np.ndarray:
        """The different places (count,) of a step."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step]))
        return rng.choice(len(self.spread), count, replace=False, p=self.weights())

    def update(self, places: np.ndarray, spread: np.ndarray) -> None:
        """Take in the spread (count,) of the rewards that groups at the places (count,) earned."""
        before = np.where(np.isnan(self.spread[places]), spread, self.spread[places])
        self.spread[places] = RECENT * spread + (1 - RECENT) * before

    def save(self, path: Path) -> None:
        """Write the spreads, for `load`."""
        storage.write_npz(path, {"spread": self.spread})

    def load(self, path: Path) -> None:
        """Go on from saved spreads."""
        self.spread = storage.read_npz(path, ("spread",))["spread"]
