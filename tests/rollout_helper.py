"""A row of rollouts, for several test files."""

from __future__ import annotations

import numpy as np

from kitlib import geo

TRUTH = [48.0, 11.0]


def row(step: int, rollout: int = 0, phase: str = "train", point: list[float] | None = TRUTH, **other) -> dict:
    """A rollout of one turn about a place near Munich."""
    km = None if point is None else float(geo.distance_km(point, TRUTH))
    reward = 0.0 if km is None else float(np.exp(-km / 200))
    return {
        "step": step, "phase": phase, "sample_id": "munich", "rollout": rollout, "environment": "SingleTurn",
        "prompt": "Where is this?", "pictures": ["munich-0.jpg"], "replies": ["48, 11"], "points": [point],
        "point": point, "truth": TRUTH, "rewards": [reward], "reward": reward,
        "advantage": None if phase == "eval" else 0.5, "km": km, "tau_km": 200.0,
    } | other  # fmt: skip
