"""What an image is told apart from when it learns its place: other places of its batch, and a queue of earlier ones.

Points are tensors (..., 2) [lat, lon] in degrees. In float32, which a GPU works with, a degree of longitude is good to
a metre; noise and distances are in the points' own precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kitlib.core.errors import KitError
from kitlib.geo import EARTH_RADIUS_KM
from kitlib.training import sphere


def unit_vectors(points: torch.Tensor) -> torch.Tensor:
    """Points (..., 2) as unit vectors (..., 3), as `geo.unit_vectors` makes them, on the points' device."""
    lat_rad, lon_rad = torch.deg2rad(points).unbind(-1)
    across = lat_rad.cos()
    return torch.stack([across * lon_rad.cos(), across * lon_rad.sin(), lat_rad.sin()], dim=-1)


def jitter(points: torch.Tensor, noise_m: float) -> torch.Tensor:
    """Points (..., 2) moved at random: east and north by normal noise of standard deviation `noise_m` metres each.

    A step in the tangent plane, wrapped onto the sphere: metres are metres at every latitude, where noise in degrees
    shrinks towards the poles, and a step over a pole or the date line comes out on the other side. Draws from torch's
    generator of the points' device.

    >>> jitter(torch.tensor([[10.0, 20.0]]), 0.0).tolist()
    [[10.0, 20.0]]
    """
    if not noise_m > 0:
        return points
    lat_rad, lon_rad = torch.deg2rad(points).unbind(-1)
    up, zero = unit_vectors(points), torch.zeros_like(lat_rad)
    east = torch.stack([-lon_rad.sin(), lon_rad.cos(), zero], dim=-1)
    north = torch.stack([-lat_rad.sin() * lon_rad.cos(), -lat_rad.sin() * lon_rad.sin(), lat_rad.cos()], dim=-1)
    step = torch.randn_like(points) * (noise_m / 1000 / EARTH_RADIUS_KM)  # radians
    angle_rad = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    along = step[..., :1] * east + step[..., 1:] * north
    x, y, z = (up * angle_rad.cos() + along * torch.sinc(angle_rad / torch.pi)).unbind(-1)
    return torch.rad2deg(torch.stack([torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)], dim=-1))


class GpsQueue(nn.Module):
    """The last `size` points that were pushed, oldest first out; in the state_dict, so that a fit resumes exactly.

    It starts empty: until it is full only real places are in it. With several processes each pushes its own points,
    and DDP hands round those of the first.
    """

    points: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 0:
            raise KitError(f"a queue of {size} places: allowed is a whole number from 0")
        self.register_buffer("points", torch.zeros(size, 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # points ever pushed

    def forward(self) -> torch.Tensor:
        """A copy (n, 2) of what is in the queue, in no particular order."""
        return self.points[: int(self.count)].clone()

    @torch.no_grad()
    def push(self, points: torch.Tensor) -> None:
        """Add points (B, 2), each in the place of the oldest one where the queue is full."""
        size = len(self.points)
        if size:
            newest = points[-size:]
            skipped = len(points) - len(newest)
            at = (self.count + skipped + torch.arange(len(newest), device=points.device)) % size
            self.points[at] = newest.to(self.points)
        self.count += len(points)


def too_near(points: torch.Tensor, others: torch.Tensor, same_km: float) -> torch.Tensor:
    """Which of others (M, 2) lie closer than `same_km` to each of points (B, 2): (B, M) bool."""
    return sphere.haversine_km(unit_vectors(points)[:, None], unit_vectors(others)) < same_km


def contrast(logits: torch.Tensor, left_out: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of images against places, and the share of images whose own place leads the batch.

    logits (B, B + Q) of images and places: image i belongs to place i, the last Q are from the queue. left_out
    (B, B + Q) bool: places that are no negatives of an image; its own place always counts. symmetric: the mean with the
    cross-entropy of the batch's places against its images, as in CLIP.

    >>> contrast(torch.zeros(1, 2), torch.tensor([[True, False]]), False)[0].exp().round().item()
    2.0
    """
    n = len(logits)
    own = torch.arange(n, device=logits.device)
    left_out = left_out & (own[:, None] != torch.arange(logits.shape[1], device=logits.device))
    logits = logits.float().masked_fill(left_out, -torch.inf)
    among = logits[:, :n]
    loss = F.cross_entropy(logits, own)
    if symmetric:
        loss = (loss + F.cross_entropy(among.T, own)) / 2
    return loss, (among.argmax(1) == own).float().mean()
