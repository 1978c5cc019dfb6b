"""GeoCLIP's location encoder (Vivanco Cepeda et al. 2023, arXiv:2309.16020), which embeds coordinates, and its weights.

Degrees -> equal earth projection -> random Fourier features at several scales -> one MLP a scale -> their sum. It is
trained so that the embedding of a place is close to those of the pictures taken there.

    encoder = load_geoclip("location_encoder_weights.pth")
    gallery = embed_points(encoder, points)  # (N, 512), rows of length 1: cosine similarity is a dot product

The published weights are in the wheel of the `geoclip` package, under geoclip/model/weights. At the finest scale a
phase reaches thousands of radians, so that rounding the projection's last bit moves an embedding by 1e-5: the
arithmetic below has the order and form that the weights were trained with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.vision import weights

EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)  # the polynomial's coefficients, of theta^1, 3, 7 and 9
SCALE = 66.50336  # / 180: x runs from -1 to 1 along the equator, y from -0.487 to 0.487 from pole to pole


def equal_earth(points: torch.Tensor) -> torch.Tensor:
    """Points (..., 2) [lat, lon] in degrees as [x, y] (..., 2) on the equal earth map, in the points' precision.

    The two sides of the date line are opposite edges of the map. Source: Šavrič et al. 2018,
    doi:10.1080/13658816.2018.1504949, scaled as in GeoCLIP.

    >>> equal_earth(torch.tensor([0.0, 180.0])).round(decimals=4).tolist()
    [1.0, 0.0]
    """
    a1, a2, a3, a4 = EQUAL_EARTH
    lat_rad, lon_rad = torch.deg2rad(points).unbind(-1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat_rad))
    x = 2 * math.sqrt(3) * lon_rad * torch.cos(theta)
    x = x / (3 * (9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1))
    y = a4 * theta**9 + a3 * theta**7 + a2 * theta**3 + a1 * theta
    return torch.stack([x, y], dim=-1) * SCALE / 180


class FourierFeatures(nn.Module):
    """Random Fourier features (Tancik et al. 2020, arXiv:2006.10739) of points on a plane, at one scale.

    The frequencies are random, with standard deviation `sigma`, and not trained. Phases are computed by two products
    and a sum, because TF32 or autocast would round a matrix product to three digits.
    """

    b: torch.Tensor  # (n_frequencies, 2) waves in a unit of the map; named b in the published weights

    def __init__(self, sigma: float, n_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("b", torch.randn(n_frequencies, 2) * sigma)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """Plane (..., 2) to cosines and sines (..., 2 * n_frequencies)."""
        x, y = (2 * math.pi * plane).split(1, dim=-1)
        phase_rad = torch.addcmul(x * self.b[:, 0], y, self.b[:, 1])
        return torch.cat([phase_rad.cos(), phase_rad.sin()], dim=-1)


class LocationEncoder(nn.Module):
    """Points (..., 2) [lat, lon] in degrees to embeddings (..., dim), not normalised.

    sigmas: the scales; at 1, 16, 256 a wave is some 20,000, 1,250, 80 km long at the equator. n_frequencies: random
    waves a scale. hidden: width of the MLPs. The projection and the waves are always in float32. The defaults are those
    of GeoCLIP's published weights.
    """

    def __init__(
        self, dim: int = 512, sigmas: Sequence[float] = (1, 16, 256), n_frequencies: int = 256, hidden: int = 1024
    ) -> None:
        super().__init__()
        self.dim = dim
        self.scales = nn.ModuleList(
            nn.Sequential(
                FourierFeatures(sigma, n_frequencies),
                nn.Linear(2 * n_frequencies, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, dim),
            )
            for sigma in sigmas
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Embed points (..., 2), float32 or float64, as float32 (..., dim)."""
        plane = equal_earth(points.float())
        return torch.stack([scale(plane).float() for scale in self.scales]).sum(0)


def embed_points(
    encoder: LocationEncoder, points: ArrayLike, batch: int = 8192, device: torch.device | str | None = None
) -> np.ndarray:
    """Embeddings (N, dim) float32 of points (N, 2), normalised to length 1, `batch` points at once.

    device: where to compute; the encoder is moved there (default: where it is). Raises KitError for points that are not
    on Earth.
    """
    points = geo.check_points(points, "points to embed")
    if points.ndim != 2 or batch < 1:
        raise KitError(f"points, batch: expected shape (N, 2) and a batch from 1; got {points.shape}, {batch}")
    encoder = encoder.to(device) if device is not None else encoder
    device = next(encoder.parameters()).device
    embeddings = np.empty((len(points), encoder.dim), np.float32)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(points), batch):
            part = torch.tensor(points[start : start + batch], dtype=torch.float32, device=device)
            embeddings[start : start + batch] = F.normalize(encoder(part), dim=-1).cpu().numpy()
    return embeddings


def load_geoclip(path_to_weights: str | Path) -> LocationEncoder:
    """GeoCLIP's location encoder with its published weights, on the CPU, in eval mode.

    path_to_weights: location_encoder_weights.pth of the `geoclip` package, or a .safetensors file with the same names,
    alone or as `location_encoder.*`. Raises KitError if a weight is missing, unknown, of another shape, not finite.
    """
    path, prefix = Path(path_to_weights).expanduser(), "location_encoder."
    state, _ = weights.read_file(path)
    state = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)} or state
    with torch.random.fork_rng(devices=[]):  # the random weights are overwritten: a loader leaves the seed alone
        encoder = LocationEncoder()
    expected = {_published_name(key): tensor for key, tensor in encoder.state_dict().items()}
    if fault := weights.misfit(expected, state):
        raise KitError(f"{path} does not fit GeoCLIP's location encoder: expected {len(expected)} weights; got {fault}")
    encoder.load_state_dict({key: state[_published_name(key)] for key in encoder.state_dict()})
    return encoder.eval()


def _published_name(name: str) -> str:
    """The package's name of a weight of the location encoder; it calls the last layer of each MLP its head.

    >>> _published_name("scales.2.0.b"), _published_name("scales.0.7.bias")
    ('LocEnc2.capsule.0.b', 'LocEnc0.head.0.bias')
    """
    _, scale, layer, kind = name.split(".")
    return f"LocEnc{scale}.head.0.{kind}" if layer == "7" else f"LocEnc{scale}.capsule.{layer}.{kind}"
