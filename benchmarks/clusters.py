"""DBSCAN by chords against DBSCAN by haversine: seconds, peak memory, ratios, and whether the labels agree.

    OMP_NUM_THREADS=1 python benchmarks/clusters.py

Places are drawn with the competition's density, four in five around towns. Every measurement has a process of its own;
memory is what its resident set grows by at most, so the trees and lists that numpy does not see are counted. The
process that starts them stays small, since the system hands its peak on.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import psutil
from sklearn.cluster import DBSCAN

from kitlib import geo
from kitlib.core import paths
from kitlib.geo import clustering, projection

N_PLACES, N_TOWNS, SPREAD_KM, MIN_SAMPLES, REPEATS = 65_980, 800, 4.0, 5, 3
EPS_KM = (5, 25, 50, 100)
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of the system's peak resident set


def by_chords(points: np.ndarray, eps_km: float) -> np.ndarray:
    return clustering.dbscan(points, eps_km, MIN_SAMPLES)


def by_haversine(points: np.ndarray, eps_km: float) -> np.ndarray:
    model = DBSCAN(eps=eps_km / geo.EARTH_RADIUS_KM, min_samples=MIN_SAMPLES, metric="haversine")
    return model.fit(np.radians(points)).labels_


def measure(
    way: Callable[[np.ndarray, float], np.ndarray], points: np.ndarray, eps_km: float
) -> tuple[float, float, np.ndarray]:
    """Seconds, MB and labels of one run."""
    way(points[:100], eps_km)  # what the libraries load late
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    labels = way(points, eps_km)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return seconds, (peak - before) / 1e6, labels


def mean_neighbours(points: np.ndarray, eps_km: float) -> float:
    return float((geo.distance_matrix_km(points[:500], points) <= eps_km).sum(axis=1).mean())


def places(n: int, rng: np.random.Generator) -> np.ndarray:
    """Places (n, 2) in the bins of the competition's map, 80 % around towns of lognormal size."""
    density = pd.read_csv(paths.package_dir() / "data/sample/density.csv")
    centre = density[["latitude", "longitude"]].to_numpy()
    size = [np.diff(np.unique(column)).min() for column in centre.T]
    share = density["count"].to_numpy() / density["count"].sum()

    def anywhere(n: int) -> np.ndarray:
        return centre[rng.choice(len(centre), n, p=share)] + rng.uniform(-0.5, 0.5, (n, 2)) * size

    towns, inhabitants = anywhere(N_TOWNS), rng.lognormal(0, 1.0, N_TOWNS)
    home = towns[rng.choice(N_TOWNS, n, p=inhabitants / inhabitants.sum())]
    near = projection.from_local_km(rng.normal(0, SPREAD_KM, (n, 2)), home)
    return np.where(rng.uniform(size=(n, 1)) < 0.8, near, anywhere(n))


def main() -> None:
    points = places(N_PLACES, np.random.default_rng(0))
    print(f"DBSCAN of {N_PLACES:,} places, min_samples {MIN_SAMPLES}; least seconds of {REPEATS}")
    print("    eps  neighbours  clusters   noise            chords           haversine   time  memory  labels")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for eps_km in EPS_KM:
            runs = [
                [pool.submit(measure, way, points, eps_km).result() for way in (by_chords, by_haversine)]
                for _ in range(REPEATS)
            ]
            (s, mb), (s_theirs, mb_theirs) = (
                np.min([run[:2] for run in way], axis=0) for way in zip(*runs, strict=True)
            )
            labels, theirs = (run[2] for run in runs[0])
            neighbours = pool.submit(mean_neighbours, points, eps_km).result()
            same = "identical" if np.array_equal(labels, theirs) else "DIFFERENT"
            print(
                f"{eps_km:4d} km{neighbours:12.0f}{labels.max() + 1:10d}{(labels < 0).sum():8d}{s:9.2f} s {mb:4.0f} MB"
                f"{s_theirs:11.2f} s {mb_theirs:4.0f} MB{s_theirs / s:6.1f}x{mb_theirs / mb:7.1f}x  {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
