"""Places of six states, drawn, and members that know their states by as much as a test wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kitlib.data.places import Places
from kitlib.evaluation.guesses import Guesses

N, S = 300, 6
STATES = pd.DataFrame({"state_idx": np.arange(S) * 3, "state": list("ABCDEF")})


def places() -> Places:
    rng = np.random.default_rng(0)
    state = rng.integers(0, S, N)
    table = pd.DataFrame({"split": "train", "sample_id": rng.permutation(N), "image_only": "", "state": "x"})
    points = np.stack([30 + 3.0 * state, -120 + 9.0 * state], 1) + rng.normal(0, 1, (N, 2))
    table = table.assign(state_idx=state * 3, latitude=points[:, 0], longitude=points[:, 1])
    return Places("x", Path(), table, STATES)


def member(places: Places, seed: int, sharpness: float) -> Guesses:
    """Guesses whose log-probabilities know the truth by `sharpness` and are noise beside it; honest by construction."""
    rng = np.random.default_rng(seed)
    logits = sharpness**2 * np.eye(S)[places.state_position("train")] + sharpness * rng.normal(0, 1, (N, S))
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    centres = np.stack([30 + 3.0 * np.arange(S), -120 + 9.0 * np.arange(S)], 1)
    return Guesses(
        places.sample_id("train"), STATES["state_idx"], probs, np.tile(centres, (N, 1, 1)), probs, np.ones(N)
    )
