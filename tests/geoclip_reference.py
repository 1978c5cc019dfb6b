"""Weights by a formula under the names of the `geoclip` package, and the table of what that package makes of them.

The package cannot share the kit's environment. In one of its own (pip install geoclip==1.3.0), this file as a script
writes geoclip_reference.npz: points (20, 2) and every eighth column of their embeddings, (20, 64).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

TABLE = Path(__file__).parent / "geoclip_reference.npz"
POINTS = """
    90 0, 90 180, 89.9999 -120, -90 0, -90 77, 0 0, 0 180, 0 -180, 0 -90.5, 16.5 179.9999, -16.5 -179.9999, 65.7 -169,
    40.7128 -74.006, 34.0522 -118.2437, 61.2181 -149.9003, 21.3069 -157.8583, -33.8688 151.2093, 51.4779 -0.0015,
    -54.8019 -68.303, 35.6762 139.6503
"""


def weights() -> dict[str, torch.Tensor]:
    """Full-size weights of the location encoder, the same on every machine: the generator's raw bits are fixed."""
    layers = {"capsule.1": (1024, 512), "capsule.3": (1024, 1024), "capsule.5": (1024, 1024), "head.0": (512, 1024)}
    state = {}
    for i, sigma in enumerate((1, 16, 256)):
        state[f"LocEnc{i}.capsule.0.b"] = _uniform(100 * i, 256, 2) * sigma
        for j, (name, shape) in enumerate(layers.items()):
            size = 1 / 256 if name == "head.0" else 1 / 16  # embeddings as large as with the published weights
            state[f"LocEnc{i}.{name}.weight"] = size * _uniform(100 * i + 2 * j + 1, *shape)
            state[f"LocEnc{i}.{name}.bias"] = size * _uniform(100 * i + 2 * j + 2, shape[0])
    return state


def _uniform(seed: int, *shape: int) -> torch.Tensor:
    """Multiples of 2**-23 from -1 to 1."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(40)
    return torch.from_numpy((bits / 2**23 - 1).astype(np.float32).reshape(shape))


if __name__ == "__main__":
    from geoclip import LocationEncoder

    points = np.array([place.split() for place in POINTS.split(",")], float)
    encoder = LocationEncoder(from_pretrained=False)
    encoder.load_state_dict(weights())
    with torch.no_grad():
        embeddings = encoder(torch.from_numpy(points).float()).numpy()
    TABLE.parent.mkdir(exist_ok=True)
    np.savez(TABLE, points=points, embeddings=embeddings[:, ::8])
    print(points.shape, embeddings.shape, "standard deviation", embeddings.std(), "largest", abs(embeddings).max())
