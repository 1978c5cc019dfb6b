"""Neighbours in embedding space and GPS galleries against the usual ways; one run of a minute and a half.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py

Embeddings are drawn: a common direction and noise, since those of street views are much alike. Times are CPU seconds,
the least of REPEATS interleaved runs. Memory is what the process grows by at its peak, beyond the gallery (Linux only).
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from kitlib import geo
from kitlib.data.sample import competition as sample
from kitlib.geo import grid
from kitlib.models.retrieval import gallery, search

D, K, REPEATS = 512, 10, 3
N_QUERIES, N_GALLERY = 2_000, 20_000
N_BF16, CANDIDATES = 200, 64
N_POINTS, N_POINTS_GEOCLIP, N_IMAGES, VIT_GFLOP = 4_000, 100_000, 3, 162
N_LARGE, N_LARGE_QUERIES = 1_000_000, 512
N_PLACES, N_TRUTH, BUDGETS = 65_980, 16_000, (1_000, 5_000, 10_000)


def drawn(n: int, rng: np.random.Generator) -> np.ndarray:
    """Embeddings (n, D) float16 whose cosines are about 0.8."""
    noise = rng.integers(-100, 101, (n, D), np.int8).astype(np.float16)
    noise += np.float16(115)
    return noise


def measure(ways: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> tuple[dict[str, float], dict[str, Any]]:
    """Least CPU seconds of each way, run in turns and printed with ratios to the first, and what each returned."""
    least = dict.fromkeys(ways, float("inf"))
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            least[name] = min(least[name], time.process_time() - start)
    first = least[next(iter(ways))]
    for name, seconds in least.items():
        print(f"  {name:<60}{seconds:9.3f} s{seconds / first:8.1f} x")
    return least, results


def scikit_learn(queries: np.ndarray, entries: np.ndarray) -> np.ndarray:
    return NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(entries).kneighbors(queries)[1]


def bfloat16(queries: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """The best CANDIDATES in bfloat16, scored again in float32."""
    q, g = (nn.functional.normalize(torch.from_numpy(x).float(), dim=1) for x in (queries, entries))
    candidates = (q.bfloat16() @ g.bfloat16().T).topk(CANDIDATES, dim=1).indices
    again = torch.einsum("nd,nkd->nk", q, g[candidates]).topk(K, dim=1).indices
    return candidates.gather(1, again).numpy()


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float((found[:, :, None] == exact[:, None]).any(axis=2).mean())


def location_encoder() -> Callable[[torch.Tensor], torch.Tensor]:
    """What GeoCLIP's takes for points that are Fourier features (n, 512) already: three MLPs, summed."""
    sizes = [512, 1024, 1024, 1024, 512]
    scales = [
        nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))[:-1]
        for _ in range(3)
    ]
    return lambda features: torch.stack([scale(features) for scale in scales]).sum(0)


def grown_mb(work: Callable[[], object]) -> float:
    """How much more memory the process takes at most while it works; NaN where Linux's /proc is not there."""
    if sys.platform != "linux":
        work()
        return float("nan")

    def status(name: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024

    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def search_against_the_usual(rng: np.random.Generator) -> None:
    print(f"the {K} nearest of {N_GALLERY:,} x {D} to {N_QUERIES:,} queries")
    entries, queries = drawn(N_GALLERY, rng), drawn(N_QUERIES, rng)
    entries_32, queries_32 = entries.astype(np.float32), queries.astype(np.float32)
    ours = "search"
    seconds, found = measure(
        {
            ours: lambda: search.search(queries_32, entries_32, K)[1],
            "the same from float16": lambda: search.search(queries, entries, K)[1],
            "scikit-learn NearestNeighbors, brute, cosine": lambda: scikit_learn(queries_32, entries_32),
        }
    )
    same = recall(found["scikit-learn NearestNeighbors, brute, cosine"], found[ours])
    print(f"  {N_QUERIES / seconds[ours]:,.0f} queries a second; scikit-learn finds the same: {same:.4%}")
    print(f"bfloat16 for {CANDIDATES} candidates, float32 for the {K} best of them; {N_BF16} queries")
    some = queries[:N_BF16]
    _, found = measure(
        {ours: lambda: search.search(some, entries, K)[1], "bfloat16 first": lambda: bfloat16(some, entries)}, 1
    )
    print(f"  bfloat16 first finds {recall(found['bfloat16 first'], found[ours]):.4%} of them")


def cached_against_encoded_again(rng: np.random.Generator) -> None:
    print(
        f"{N_IMAGES} images, one by one, against a GPS gallery of {N_POINTS:,} points; the encoder of places is an MLP"
    )
    encoder, points = location_encoder(), torch.from_numpy(rng.normal(size=(N_POINTS, 512)).astype(np.float32))
    images = drawn(N_IMAGES, rng).astype(np.float32)

    def encode() -> np.ndarray:
        with torch.inference_mode():
            return encoder(points).numpy()

    def again() -> list[np.ndarray]:
        return [search.search(image[None], encode(), K)[1] for image in images]

    kept = encode()

    def cached() -> list[np.ndarray]:
        return [search.search(image[None], kept, K)[1] for image in images]

    seconds, _ = measure({"gallery encoded once": cached, "gallery encoded for every image": again})
    once, every = (s / N_IMAGES * N_POINTS_GEOCLIP / N_POINTS for s in seconds.values())
    print(f"  at {N_POINTS_GEOCLIP:,} points, in proportion: {1000 * once:,.0f} ms against {every:,.1f} s an image")
    gflop = 3 * 2 * (512 * 1024 + 1024 * 1024 * 2 + 1024 * 512) * N_POINTS_GEOCLIP / 1e9
    ratio = (gflop + VIT_GFLOP) / VIT_GFLOP
    print(f"  by count, with a ViT-L/14 for the image ({VIT_GFLOP} GFLOP): {ratio:.1f} x the work")


def a_million(rng: np.random.Generator) -> None:
    entries = np.empty((N_LARGE, D), np.float16)
    for start in range(0, N_LARGE, 100_000):
        entries[start : start + 100_000] = drawn(100_000, rng)
    queries = drawn(N_LARGE_QUERIES, rng)
    print(
        f"the {K} nearest of {N_LARGE:,} x {D} (float16, {entries.nbytes / 1e6:,.0f} MB) to {N_LARGE_QUERIES} queries"
    )
    began = time.process_time()
    grown = grown_mb(partial(search.search, queries, entries, K))
    rate = N_LARGE_QUERIES / (time.process_time() - began)
    print(f"  {rate:.0f} queries a second, {grown:.0f} MB at the peak")


def galleries() -> None:
    print(f"galleries out of {N_PLACES:,} drawn places: km to the nearest entry, its Geoscore, share within 25 km")
    train, test = (part[["latitude", "longitude"]].to_numpy() for part in sample._places(N_PLACES, N_TRUTH, 0))
    rng = np.random.default_rng(0)
    waves, phases = rng.normal(0, 60, (3, 64)), rng.uniform(0, 2 * np.pi, 64)
    looks = np.cos(geo.unit_vectors(train) @ waves + phases) + rng.normal(0, 0.5, (N_PLACES, 64))
    land = grid.land_grid(25, list(sample._states()["state"]))
    print(f"  {'':26}{f'{N_TRUTH:,} places drawn alike':^42}{'the land, every 25 km':>24}")
    print(f"  {'':26}{'mean':>9}{'median':>9}{'Geoscore':>12}{'25 km':>12}{'mean':>12}{'25 km':>12}")
    for budget in BUDGETS:
        rows = {
            "at_random": gallery.at_random(N_PLACES, budget),
            "uniformly": gallery.choose(train, budget),
            "choose, with embeddings": gallery.choose(train, budget, embeddings=looks),
        }
        print(f"  {budget:,} of them")
        for name, chosen in rows.items():
            alike, even = (gallery.expected_scores(train[chosen], truth) for truth in (test, land))
            print(
                f"    {name:24}{alike['mean_km']:9.1f}{alike['median_km']:9.1f}{alike['geoscore']:12.0f}"
                f"{alike['within_25_km']:12.1%}{even['mean_km']:12.1f}{even['within_25_km']:12.1%}"
            )


def main() -> None:
    rng = np.random.default_rng(0)
    a_million(rng)
    search_against_the_usual(rng)
    cached_against_encoded_again(rng)
    galleries()


if __name__ == "__main__":
    main()
