"""The frozen phase of multiview, an epoch of the heads on cached features: the usual way against ours, in one run.

    OMP_NUM_THREADS=1 python benchmarks/heads.py [PLACES]

The usual way is a DataLoader that collates single rows, float32, and plain AdamW; ours slices whole batches from one
float16 tensor and steps fused AdamW. Heads, losses and batch size are the same. The floor is the arithmetic of the
linear layers alone: the same matrix products, forward and backward, and nothing else. Ratios are of CPU seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kitlib import geo
from kitlib.data import loader
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.multiview.training import Geolocator, GeolocatorOptions
from kitlib.training import fit as fitting
from kitlib.training.learner import Batch
from kitlib.training.sphere import unit_vectors

VIEWS, FEATURES, STATES, CELLS, HIDDEN, BATCH, REPEATS = 4, 1024, 33, 400, 256, 1024, 3


class Rows(Dataset):
    """Single places, as most published training code has them."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["state"])

    def __getitem__(self, row: int) -> Batch:
        return {name: tensor[row] for name, tensor in self.batch.items()}


def drawn(n: int) -> tuple[Batch, Heads]:
    """Random features and places, and heads for them."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(25, 49, n + CELLS), rng.uniform(-124, -67, n + CELLS)])
    cell_state = np.arange(CELLS) % STATES
    cells, places = points[:CELLS], points[CELLS:]
    classes = Classes(np.arange(STATES), np.ones(STATES, int), cells[:STATES], cells, cell_state, np.full(CELLS, 30.0))
    cell = torch.from_numpy(geo.nearest(places, cells)[1][:, 0])
    features = torch.randn(n, 2, VIEWS, FEATURES, generator=torch.Generator().manual_seed(0)).half()
    batch = {"features": features, "state": cell % STATES, "cell": cell, "place": unit_vectors(places)}
    torch.manual_seed(0)
    return batch, Heads(classes, VIEWS, FEATURES, hidden=HIDDEN)


def epoch(batches: Iterable[Batch], heads: Heads, fused: bool) -> None:
    """One pass in a plain loop."""
    module = Geolocator(heads, None, GeolocatorOptions(), 1, rate=1e-3)
    module.log_dict = lambda *_: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, fused=fused, foreach=False if not fused else None)
    for batch in batches:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()


def sliced(batch: Batch) -> loader.Batches:
    """Whole batches, cut from the tensors."""
    return loader.Batches(len(batch["state"]), BATCH, 0, lambda rows: {n: t[rows] for n, t in batch.items()})


def fit(batch: Batch, heads: Heads) -> None:
    """The same through the kit's Lightning Trainer, its checkpoint included."""
    n = len(batch["state"])
    module = Geolocator(heads, None, GeolocatorOptions(), fitting.total_steps(n, BATCH, 1, 1), rate=1e-3)
    with TemporaryDirectory() as folder:
        fitting.fit(module, sliced(batch), Path(folder) / "heads", epochs=1, config={})


def floor(n: int) -> None:
    """The matrix products of the linear layers, once forward and twice backward."""
    sizes = [(FEATURES, HIDDEN), (HIDDEN, STATES), (HIDDEN, CELLS), (HIDDEN, 2 * CELLS), (HIDDEN, 3)]
    for rows in [BATCH] * (n // BATCH):
        for n_in, n_out in sizes:
            x, w, y = torch.empty(rows, n_in), torch.empty(n_in, n_out), torch.empty(rows, n_out)
            _ = x @ w, x.T @ y, y @ w.T


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    batch, heads = drawn(n)
    single = batch | {"features": batch["features"].float()}
    ways: dict[str, Callable[[], None]] = {
        "DataLoader of single rows, float32, AdamW": lambda: epoch(
            DataLoader(Rows(single), BATCH, shuffle=True), heads, fused=False
        ),
        "batches sliced from a float16 tensor, fused AdamW": lambda: epoch(sliced(batch), heads, fused=True),
        "the same in fitting.fit, with its checkpoint": lambda: fit(batch, heads),
        "floor: the linear layers' arithmetic": lambda: floor(n),
    }
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            cpu[name].append(time.process_time() - began)
    usual = statistics.median(cpu[next(iter(ways))][1:])
    print(f"{f'an epoch of {n:,} places, {VIEWS} views of {FEATURES} features':56}{'CPU s':>8}{'ratio':>8}")
    for name, seconds in cpu.items():
        middle = statistics.median(seconds[1:])  # without the first, which warms up
        print(f"  {name:54}{middle:8.2f}{usual / middle:7.1f}x")


if __name__ == "__main__":
    main()
