from __future__ import annotations

import numpy as np
import pytest
import torch

from kitlib import geo
from kitlib.training import losses, sphere

POINTS = np.array([[36.12, -86.67], [33.94, -118.40], [61.2, -149.9], [21.3, -157.8], [0.0, 180.0], [89.9, 10.0]])


def vectors(points) -> torch.Tensor:
    return torch.from_numpy(geo.unit_vectors(points)).float()


def test_haversine_agrees_with_geo():
    ours = sphere.haversine_km(vectors(POINTS)[:, None], vectors(POINTS))
    assert np.allclose(ours, geo.distance_matrix_km(POINTS), atol=0.01)


def test_haversine_is_float32_under_autocast_and_right_at_a_kilometre():
    a, b = vectors([40.0, -100.0]), vectors([40.009, -100.0])
    with torch.autocast("cpu", torch.bfloat16):
        km = sphere.haversine_km(a, b)
    assert km.dtype == torch.float32
    assert km.item() == pytest.approx(1.0008, abs=0.002)


@pytest.mark.parametrize("other", [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
def test_haversine_has_a_finite_gradient_at_equal_and_opposite_points(other):
    a = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    sphere.haversine_km(a, torch.tensor(other)).backward()
    assert a.grad.isfinite().all()


def test_haversine_gradient_is_a_radius_a_radian():
    east = torch.tensor(0.0, requires_grad=True)
    moved = torch.stack([torch.cos(east), torch.sin(east), torch.zeros(())])
    sphere.haversine_km(moved, torch.tensor([0.0, 1.0, 0.0])).backward()
    assert east.grad.item() == pytest.approx(-geo.EARTH_RADIUS_KM, rel=1e-5)


def test_matrix_targets_follow_the_formula():
    km = torch.from_numpy(geo.distance_matrix_km(POINTS))
    targets = losses.matrix_targets(km, 300.0)
    weights = np.exp(-km.numpy() / 300.0)
    assert np.allclose(targets, weights / weights.sum(1, keepdims=True), atol=1e-6)
    assert (targets.argmax(1) == torch.arange(len(POINTS))).all()


def test_place_targets_follow_the_formula_and_never_favour_a_neighbour():
    centres = np.array([[31.0, -99.0], [31.0, -92.0], [39.0, -105.5]])  # Texas, Louisiana, Colorado
    places = np.array([[31.0, -99.5], [31.0, -94.0]])  # both in Texas, the second closer to Louisiana's centre
    true = torch.tensor([0, 0])
    targets = losses.place_targets(vectors(places), vectors(centres), true, 75.0)
    km = geo.distance_km(places[:, None], centres)
    weights = np.exp(-np.maximum(km - km[:, :1], 0) / 75.0)
    assert km[1, 1] < km[1, 0]
    assert np.allclose(targets, weights / weights.sum(1, keepdims=True), atol=1e-4)
    assert targets[1, 0] == pytest.approx(targets[1, 1].item())
    assert losses.true_mass(targets, true).tolist() == pytest.approx([1.0, 0.5], abs=1e-3)


def test_a_lower_temperature_leaves_the_true_class_more():
    km = torch.from_numpy(geo.distance_matrix_km(POINTS[:3] * [0.1, 0.05]))
    true = torch.arange(3)
    masses = [losses.true_mass(losses.matrix_targets(km, t), true).mean() for t in (1e-3, 75.0, 300.0)]
    assert masses[0] == 1
    assert masses[0] > masses[1] > masses[2] > 1 / 3


def test_soft_cross_entropy_is_torchs_for_hard_targets():
    logits, true = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    ours = losses.soft_cross_entropy(logits, losses.hard_targets(true, 4))
    assert ours == pytest.approx(torch.nn.functional.cross_entropy(logits, true).item(), rel=1e-6)


def test_soft_cross_entropy_is_least_at_the_targets():
    targets = losses.matrix_targets(torch.from_numpy(geo.distance_matrix_km(POINTS)), 3000.0)
    least = losses.soft_cross_entropy(targets.log(), targets)
    for _ in range(5):
        assert losses.soft_cross_entropy(targets.log() + 0.1 * torch.randn_like(targets), targets) > least
