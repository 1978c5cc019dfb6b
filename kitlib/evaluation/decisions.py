"""Ways to settle on one point a place, to compare: the kit's own is the geometric median of a guess's points."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.data.places import Places
from kitlib.evaluation import metrics
from kitlib.evaluation.baselines import state_points
from kitlib.evaluation.guesses import Guesses


def points(guesses: Guesses, places: Places) -> dict[str, np.ndarray]:
    """One point (N, 2) a place by each way, [lat, lon] in degrees.

    The distance that a mean minimises is squared, and a far away point of little weight pulls it into the sea; the
    median minimises what the score counts. The likeliest state's middle is the median of its training places.
    """
    rows, order = np.arange(len(guesses)), places.states["state_idx"].to_numpy()
    probs = guesses.on_states(order).state_probs
    vectors = (geo.unit_vectors(guesses.points) * guesses.weights[..., None]).sum(axis=1)
    known = ~np.isnan(middles := state_points(places)).any(axis=1)  # (S, 2)
    of_states = np.broadcast_to(middles[known], (len(guesses), int(known.sum()), 2))
    return {
        "geometric median of the points": guesses.point(),
        "mean of the points": geo.from_unit_vectors(vectors),
        "heaviest point": guesses.points[rows, guesses.weights.argmax(axis=1)],
        "middle of the likeliest state": middles[known][probs[:, known].argmax(axis=1)],
        "geometric median of the states' middles": geo.geometric_median(of_states, probs[:, known]),
    }


def table(guesses: Guesses, places: Places) -> pd.DataFrame:
    """The mean and median error in km, and the GPS part of the score, of each way for guesses of training places."""
    truth = places.rows("train").set_index("sample_id").loc[guesses.sample_id, ["latitude", "longitude"]].to_numpy()
    km = {way: geo.distance_km(truth, each) for way, each in points(guesses, places).items()}
    found = pd.DataFrame({way: {"mean km": kms.mean(), "median km": np.median(kms)} for way, kms in km.items()}).T
    return found.assign(GPS=(1 - found["mean km"] / metrics.ZERO_AT_KM).clip(lower=0)).sort_values("mean km")
