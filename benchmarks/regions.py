"""Heads of all regions as one batched model against one after the other: the same result, and how much faster.

    python benchmarks/regions.py

Both learn through the same Lightning module and `fitting.fit`, from the same drawn features of 33 regions with 40
to 160 places each; the first two features tell, with noise, where in its region a place lies.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitlib import geo
from kitlib.data.loader import Batches
from kitlib.geo import projection
from kitlib.models.regional.heads import Frames, RegionHeads
from kitlib.models.regional.scalers import RegionScaler
from kitlib.models.regional.training import HeadsTraining, Teaching
from kitlib.training import fit as fitting

R, D, EPOCHS, HIDDEN = 33, 768, 10, 128
TEACHING = Teaching("mse", view_dropout=0.0, mirror=False, vary=0.0, weight_decay=1e-4, t_0=10, t_mult=1)


def world(rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], list[RegionScaler]]:
    """Features and labels of all places, and the scaler of each region."""
    region = np.repeat(np.arange(R), rng.integers(40, 161, R))
    centres = np.stack([rng.uniform(-60, 60, R), rng.uniform(-180, 180, R)], axis=1)
    points = projection.from_local_km(rng.normal(0, 80, (len(region), 2)), centres[region])
    scalers = [RegionScaler.fit(points[region == k], "standard") for k in range(R)]
    scaled = np.concatenate([scalers[k].transform(points[region == k]) for k in range(R)])
    features = rng.normal(0, 1, (len(region), 1, 1, D)).astype(np.float32)
    features[:, 0, 0, :2] += 3 * scaled
    data = {
        "features": torch.from_numpy(features).half(),
        "region": torch.from_numpy(region),
        "scaled": torch.from_numpy(scaled).float(),
        "place": torch.from_numpy(geo.unit_vectors(points)).float(),
    }
    return data, scalers


def fit(
    data: dict[str, torch.Tensor],
    scalers: list[RegionScaler],
    rows: np.ndarray,
    val: np.ndarray,
    batch: int,
    folder: Path,
    regions: range,
) -> np.ndarray:
    """The best validation loss of each of the regions' heads, trained on their places."""
    torch.manual_seed(0)
    heads = RegionHeads([True] * len(regions), D, HIDDEN, dropout=0.5)
    heads.begin(data["features"], np.zeros((len(regions), 2)))
    steps = fitting.total_steps(len(rows), batch, 1, 1)
    frames = Frames([scalers[k] for k in regions])
    module = HeadsTraining(heads, frames, TEACHING, 1e-3, steps, patience=0)

    def load(r: np.ndarray) -> dict[str, torch.Tensor]:
        batch = {name: tensor[r] for name, tensor in data.items()}
        return batch | {"region": batch["region"] - regions.start}

    module.start(load(val))
    batches = Batches(rows, batch, 0, load)
    how: dict[str, Any] = {
        "epochs": EPOCHS,
        "config": {},
        "gradient_clip": 0.0,
        "val_batches": Batches(val, 4096, 0, load, shuffle=False),
    }
    fitting.fit(module, batches, folder, **how)
    return module.best_loss.numpy()


def main() -> None:
    rng = np.random.default_rng(0)
    data, scalers = world(rng)
    region = data["region"].numpy()
    held = rng.random(len(region)) < 0.2
    rows, val = np.flatnonzero(~held), np.flatnonzero(held)
    batch = len(rows) // 8
    with tempfile.TemporaryDirectory() as folder:
        fit(data, scalers, rows[:64], val[:64], 32, Path(folder) / "warm", range(R))
        began = time.process_time()
        together = fit(data, scalers, rows, val, batch, Path(folder) / "together", range(R))
        middle = time.process_time()
        alone = np.empty(R)
        for k in range(R):
            own, own_val = rows[region[rows] == k], val[region[val] == k]
            alone[k] = fit(data, scalers, own, own_val, len(own) // 8, Path(folder) / f"alone{k}", range(k, k + 1))[0]
        end = time.process_time()
    print(f"{R} regions, {len(rows)} places, {EPOCHS} epochs of 8 or 9 steps")
    seconds = middle - began, end - middle
    print(f"together {seconds[0]:.1f} s, one after the other {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.1f}x")
    print(f"validation loss, mean over regions: together {together.mean():.3f}, alone {alone.mean():.3f}")
    print(f"largest difference of a region {np.abs(together - alone).max():.3f}, spread over regions {alone.std():.3f}")


if __name__ == "__main__":
    main()
