"""Distances, neighbours and medians against the usual ways; prints seconds, peak memory and ratios of one run.

    OMP_NUM_THREADS=1 python benchmarks/distances.py

Memory is that of numpy arrays beyond the input, as tracemalloc sees it.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.metrics.pairwise import haversine_distances
from sklearn.neighbors import BallTree

from kitlib import geo

N_MATRIX, N_LARGE, N_PLACES, N_QUERIES, N_MEDIANS, N_SLOW, N_STATES = 4_000, 20_000, 65_980, 20_000, 65_980, 200, 33
REPEATS = 3


def numpy_broadcast(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Haversine as it is usually written."""
    lat_a, lon_a = np.radians(a).T[:, :, None]
    lat_b, lon_b = np.radians(b).T[:, None, :]
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * geo.EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0, 1)))


def scikit_learn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return haversine_distances(np.radians(a), np.radians(b)) * geo.EARTH_RADIUS_KM


def ball_tree(points: np.ndarray, of: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    km, index = BallTree(np.radians(of), metric="haversine").query(np.radians(points), k=k)
    return km * geo.EARTH_RADIUS_KM, index


def minimised(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Geometric medians by a general minimiser, row by row."""

    def one(cloud: np.ndarray, weight: np.ndarray) -> np.ndarray:
        start = geo.from_unit_vectors(weight @ geo.unit_vectors(cloud))
        return minimize(lambda p: weight @ geo.distance_km(cloud, p), start, method="Nelder-Mead").x

    return np.array([one(cloud, weight) for cloud, weight in zip(points, weights, strict=True)])


def measure(ways: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, Any]:
    """Run each way some times, in turns; print least seconds, peak memory and ratios to the first; return results."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    results, first = {}, None
    for name, way in ways.items():
        tracemalloc.start()
        results[name] = way()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        least = min(seconds[name])
        first = first or (least, peak)
        ratio = (
            f"  {least / first[0]:6.1f} x the time, {peak / first[1]:5.1f} x the memory"
            if name != next(iter(ways))
            else ""
        )
        print(f"  {name:<44}{least:9.3f} s {peak:8.0f} MB{ratio}")
    return results


def world(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.uniform(19, 71, n), rng.uniform(-160, -67, n)], axis=1)


def main() -> None:
    rng = np.random.default_rng(0)

    a = world(N_MATRIX, rng)
    out = np.empty((N_MATRIX, N_MATRIX), np.float32)
    print(f"distance matrix {N_MATRIX:,} x {N_MATRIX:,}; the result is {out.nbytes / 1e6:.0f} MB in float32")
    found = measure(
        {
            "geo.distance_matrix_km": lambda: geo.distance_matrix_km(a, a),
            "the same into an array that is there": lambda: geo.distance_matrix_km(a, a, out=out),
            "scikit-learn haversine_distances": lambda: scikit_learn(a, a),
            "numpy broadcast haversine": lambda: numpy_broadcast(a, a),
        }
    )
    ours, theirs = found["geo.distance_matrix_km"], found["numpy broadcast haversine"]
    print(f"  largest difference {1000 * np.abs(theirs - ours).max():.2f} m (float32 tells 0.5 m apart at 8,000 km)")
    large = world(N_LARGE, rng)
    print(f"distance matrix {N_LARGE:,} x {N_LARGE:,}; the result is {4 * N_LARGE**2 / 1e6:,.0f} MB in float32")
    measure({"geo.distance_matrix_km": lambda: geo.distance_matrix_km(large)}, repeats=1)

    places, queries = world(N_PLACES, rng), world(N_QUERIES, rng)
    print(f"10 nearest of {N_PLACES:,} places to {N_QUERIES:,} points (the trees' own memory is not seen)")
    found = measure(
        {
            "geo.nearest": lambda: geo.nearest(queries, places, 10),
            "scikit-learn BallTree, haversine": lambda: ball_tree(queries, places, 10),
        }
    )
    (_, ours), (_, theirs) = found.values()
    print(f"  same neighbours: {(ours == theirs).mean():.4%}")

    clouds = np.broadcast_to(world(N_STATES, rng), (N_MEDIANS, N_STATES, 2))
    weights = rng.dirichlet(np.full(N_STATES, 0.1), N_MEDIANS)
    print(f"geometric medians of {N_STATES} weighted points")
    measure({f"geo.geometric_median, {N_MEDIANS:,} rows": lambda: geo.geometric_median(clouds, weights)}, repeats=1)
    some = slice(0, N_SLOW)
    found = measure(
        {
            f"geo.geometric_median, {N_SLOW} rows": lambda: geo.geometric_median(clouds[some], weights[some]),
            f"scipy Nelder-Mead, {N_SLOW} rows": lambda: minimised(clouds[some], weights[some]),
        },
        repeats=1,
    )
    means = [(weights[some] * geo.distance_km(clouds[some], m[:, None])).sum(1).mean() for m in found.values()]
    print(f"  mean distance {means[0]:.4f} km against {means[1]:.4f} km")


if __name__ == "__main__":
    main()
