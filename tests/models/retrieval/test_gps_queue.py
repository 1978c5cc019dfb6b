"""The queue of places: noise in metres wherever it is, first in first out, who is no negative, the loss by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.geo import projection
from kitlib.models.retrieval.gps_training import GpsQueue, contrast, jitter, too_near
from kitlib.training.sphere import unit_vectors

RAYLEIGH = np.sqrt(np.pi / 2)  # the mean length of a step whose two parts have standard deviation 1


def steps_m(place: list[float], noise_m: float, dtype=torch.float64, n: int = 20_000) -> np.ndarray:
    """Metres east and north (n, 2) that noise moves a place."""
    torch.manual_seed(0)
    moved = jitter(torch.tensor(place, dtype=dtype).expand(n, 2), noise_m)
    assert moved.dtype == dtype and moved.shape == (n, 2)
    return projection.to_local_km(geo.check_points(moved.numpy(), "moved"), place) * 1000


@pytest.mark.parametrize(
    "place", [[0.0, 0.0], [60.0, 25.0], [89.9, -100.0], [90.0, 0.0], [-89.99, 10.0], [10.0, 180.0], [-40.0, -180.0]]
)
@pytest.mark.parametrize("noise_m", [1.0, 150.0, 50_000.0])
def test_noise_is_the_same_number_of_metres_everywhere(place, noise_m):
    steps = steps_m(place, noise_m)
    assert np.allclose(steps.std(axis=0), noise_m, rtol=0.02)
    assert np.allclose(steps.mean(axis=0), 0, atol=0.03 * noise_m)
    assert abs(np.corrcoef(steps.T)[0, 1]) < 0.03
    assert np.linalg.norm(steps, axis=1).mean() == pytest.approx(RAYLEIGH * noise_m, rel=0.02)


@pytest.mark.parametrize("place", [[0.0, 0.0], [60.0, 25.0], [89.9, -100.0], [10.0, 180.0]])
def test_noise_in_single_precision(place):
    steps = steps_m(place, 150.0, torch.float32)
    assert np.allclose(steps.std(axis=0), 150, rtol=0.02) and np.allclose(steps.mean(axis=0), 0, atol=5)


def test_noise_comes_out_on_the_other_side_of_the_date_line_and_the_pole():
    torch.manual_seed(0)
    date_line = jitter(torch.tensor([[10.0, 180.0]]).expand(100, 2), 1000)
    assert (date_line[:, 1] > 179.9).any() and (date_line[:, 1] < -179.9).any()
    pole = jitter(torch.tensor([[89.99, 0.0]]).expand(100, 2), 5000)
    assert (pole[:, 1].abs() > 120).any() and pole[:, 0].max() <= 90


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_unit_vectors_are_those_of_geo(lat, lon):
    ours = unit_vectors(torch.tensor([lat, lon], dtype=torch.float64)).numpy()
    assert np.allclose(ours, geo.unit_vectors([lat, lon]), atol=1e-15)


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=6))
def test_the_queue_holds_the_last_points_pushed(size, batches):
    queue, pushed = GpsQueue(size), torch.empty(0, 2)
    for n in batches:
        points = torch.arange(len(pushed), len(pushed) + n)[:, None].float().expand(n, 2)
        queue.push(points)
        pushed = torch.cat([pushed, points])
        assert sorted(queue()[:, 0].tolist()) == pushed[-size:, 0].tolist()


def test_what_a_queue_gave_does_not_change_with_it_and_none_is_one_too():
    queue, none = GpsQueue(2), GpsQueue(0)
    queue.push(torch.ones(2, 2))
    given_out = queue()
    queue.push(torch.zeros(2, 2))
    none.push(torch.ones(3, 2))
    assert given_out.eq(1).all() and queue().eq(0).all() and none().shape == (0, 2)


def test_the_queue_resumes_from_its_state():
    queue, again = GpsQueue(5), GpsQueue(5)
    points = torch.rand(17, 2)
    queue.push(points[:8])
    again.load_state_dict(queue.state_dict())
    for each in (queue, again):
        each.push(points[8:])
    assert torch.equal(queue(), again())


def test_too_near_is_a_matter_of_kilometres():
    places = torch.tensor([[60.0, 179.999], [0.0, 0.0]])
    others = torch.tensor([[60.0, 179.999], [60.0, -179.999], [60.002, 179.999], [0.0, 0.0089], [0.0, 0.0091]])
    expected = [[True, True, True, False, False], [False, False, False, True, False]]  # 0.0090 degrees are 1 km
    assert too_near(places, others, 1.0).tolist() == expected
    assert not too_near(places, others, 0.0).any()


def test_the_loss_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]])  # two images, their places, one from the queue
    none = torch.zeros(2, 3, dtype=torch.bool)
    e = np.e
    images = -(np.log(e**2 / (e**2 + e + 1)) + np.log(e / (1 + e + e))) / 2
    loss, top1 = contrast(logits, none)
    assert loss.item() == pytest.approx(images) and top1.item() == 1


def test_what_is_left_out_is_no_negative_and_the_own_place_always_counts():
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    left_out = torch.tensor([[True, True, False], [True, True, True]])
    loss, top1 = contrast(logits, left_out)
    assert loss.item() == pytest.approx(np.log(2) / 2)  # one negative as good as the own place, then none
    assert top1.item() == 1
    assert contrast(logits, torch.zeros_like(left_out))[1].item() == 0.5
