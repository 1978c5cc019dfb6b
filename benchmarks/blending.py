"""A blend at the competition's size: 65,980 + 16,500 places, 33 states, five members; a minute or two, by hand.

    OMP_NUM_THREADS=2 python benchmarks/blending.py

Members are drawn: log-probabilities that know the true state by some strength, points around the states' middles. What
is timed is what 30_ensemble does: fit, nested fit, other ways to blend, table of points, prior, submission.
"""

from __future__ import annotations

import functools
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib import geo
from kitlib.data.places import Places
from kitlib.data.sample import competition as sample
from kitlib.evaluation import blenders, decisions, ensemble, metrics, prior, submission
from kitlib.evaluation.guesses import Guesses

N_TRAIN, N_TEST, FOLDS, POINTS = 65_980, 16_500, 5, 24
STRENGTHS = (1.6, 1.8, 2.0, 2.2, 2.4)


def drawn_places() -> Places:
    """Places like the sample's, without pictures."""
    parts = []
    for split, rows in zip(("train", "test"), sample._places(N_TRAIN, N_TEST, 0), strict=True):
        parts.append(rows.assign(split=split, sample_id=np.arange(len(rows)), image_only=""))
    states = sample._states()[["state_idx", "state"]]
    table = pd.concat(parts, ignore_index=True)
    template = pd.DataFrame({"sample_id": np.arange(N_TEST), "image_north": "x.jpg"})
    for column in (*(f"predicted_state_idx_{k}" for k in range(1, 6)), "predicted_latitude", "predicted_longitude"):
        template[column] = 0
    columns = ["split", "sample_id", "image_only", "state", "state_idx", "latitude", "longitude"]
    return Places("drawn", Path(), table.merge(states)[columns] if "state" not in table else table[columns], states,
                  template)  # fmt: skip


def member(places: Places, split: str, strength: float, seed: int) -> Guesses:
    """Guesses that know the state of each place by `strength`."""
    rng = np.random.default_rng([seed, split == "test"])
    truth, n_states = places.state_position(split), len(places.states)
    logits = rng.normal(0, strength, (len(truth), n_states)).astype(np.float32)
    logits[np.arange(len(truth)), truth] += strength**2
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    order = np.argsort(-probs, axis=1)[:, :POINTS]
    middles = geo.group_medians(places.points("train"), places.state_position("train"), n_states)
    weights = np.take_along_axis(probs, order, 1)
    points = middles[order] + rng.normal(0, 1, (*order.shape, 2))
    weights = weights / weights.sum(1, keepdims=True)
    own = places.sample_id(split), places.states["state_idx"].to_numpy()
    return Guesses(*own, probs, points, weights, np.ones(len(truth), bool))


def timed(what: str, make: Callable[[], Any]) -> Any:
    """What `make` returns; its time and the peak of memory so far are printed."""
    began = time.perf_counter()
    result = make()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<45}{time.perf_counter() - began:8.1f} s{peak:8.1f} GB", flush=True)
    return result


def main() -> None:
    """Time every part."""
    places = timed("places drawn", drawn_places)
    oof, test = ({}, {})
    for k, strength in enumerate(STRENGTHS):
        oof[f"member {k}"], test[f"member {k}"] = (member(places, split, strength, k) for split in ("train", "test"))
    began = time.perf_counter()
    fold = pd.Series(np.arange(N_TRAIN) % FOLDS, index=places.sample_id("train"))
    timed("members scored", lambda: metrics.score_members(oof, places))
    blend = timed("weights fitted", lambda: ensemble.fit(oof, places))
    nested, blends = timed("weights fitted on four folds, five times", lambda: ensemble.nested(oof, places, fold))
    for way, other in blenders.OTHERS.items():
        timed(f"nested: {way}", functools.partial(ensemble.nested, oof, places, fold, other))
    for gone in blend.used:
        rest = {name: guess for name, guess in oof.items() if name != gone}
        timed(f"nested without {gone}", functools.partial(ensemble.nested, rest, places, fold, known=blends))
    timed("ways to settle on a point", lambda: decisions.table(nested, places))
    timed("prior judged", lambda: prior.judge(places, prior.uniform(places), nested))
    mixed = timed("test places blended", lambda: blend(test))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.csv"
        timed(
            "submission written", lambda: submission.write_submission(path, mixed, places.template, {}, places.states)
        )
    print(f"all: {time.perf_counter() - began:.0f} s; the blend, nested: {metrics.score_guesses(nested, places)}")


if __name__ == "__main__":
    main()
