"""Training of the heads: the parts of the loss, soft labels, and validation; see test_learner for the rest."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.multiview.training import Geolocator, GeolocatorOptions
from kitlib.training import losses, sphere
from kitlib.training.learner import encode
from kitlib.training.sphere import unit_vectors

POINTS = np.array([[40.0, -100.0], [41.0, -101.0], [34.0, -118.0], [41.5, -74.0]])
CLASSES = Classes(
    state_idx=np.array([3, 7, 40]),
    state_count=np.array([20, 10, 30]),
    state_points=POINTS[[0, 2, 3]],
    cell_points=POINTS,
    cell_state=np.array([0, 0, 1, 2]),
    cell_radius_km=np.array([100.0, 80.0, 50.0, 60.0]),
)


def module_of(**options) -> Geolocator:
    torch.manual_seed(0)
    return Geolocator(Heads(CLASSES, 4, 12, hidden=32, dropout=0.1), None, GeolocatorOptions(**options), 1, rate=1e-3)


def batch_of(n: int = 8) -> dict[str, torch.Tensor]:
    """Places near the cells' centres, with features that tell nothing."""
    rng = np.random.default_rng(1)
    cell = np.arange(n) % 4
    place = unit_vectors(POINTS[cell] + rng.uniform(-1, 1, (n, 2)))
    labels = {"state": torch.from_numpy(CLASSES.cell_state[cell]), "cell": torch.from_numpy(cell), "place": place}
    return {"features": torch.from_numpy(rng.normal(size=(n, 2, 4, 12))).float()} | labels


def test_the_loss_is_the_sum_of_its_parts_and_shrinks():
    module, batch, logged = module_of(), batch_of(), {}
    module.log_dict = logged.update
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    seen = []
    for _ in range(60):
        loss = module.training_step(batch, 0)
        parts = logged["state_loss"] + logged["cell_loss"] + (logged["cell_km"] + logged["gps_km"]) / 1000
        assert loss.item() == pytest.approx(parts.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.parametrize("soft", ["place", "matrix", "none"])
def test_soft_labels_are_the_named_ones(soft):
    module, batch = module_of(soft_labels=soft, temperature_km=500.0), batch_of()
    mass = module.parts(module.heads(encode(batch, None)), batch)["true_state_mass"]
    state_vectors, rows = module.heads.state_vectors, torch.arange(8)
    km = sphere.haversine_km(state_vectors[:, None], state_vectors)
    expected = {
        "none": torch.ones(8),
        "matrix": losses.matrix_targets(km, 500.0).diagonal()[batch["state"]],
        "place": losses.place_targets(batch["place"], state_vectors, batch["state"], 500.0)[rows, batch["state"]],
    }
    assert mass.item() == pytest.approx(expected.pop(soft).mean().item(), abs=1e-5)
    assert all(abs(mass.item() - other.mean().item()) > 1e-3 for other in expected.values())


@torch.no_grad()
def test_validation_logs_the_share_of_right_states_and_the_mean_distance():
    module, batch, logged = module_of().eval(), batch_of(), {}
    module.log_dict = lambda parts, **options: logged.update({k: float(v) for k, v in parts.items()} | options)
    module.validation_step(batch, 0)
    outputs = module.heads(batch["features"][:, 0])
    assert logged["held_out_top1"] == (outputs.states.argmax(1) == batch["state"]).float().mean()
    assert logged["held_out_gps_km"] == pytest.approx(sphere.haversine_km(outputs.gps, batch["place"]).mean().item())
    assert logged["batch_size"] == 8


def test_options_refuse():
    with pytest.raises(KitError, match="soft_labels: expected one of place, matrix, none; got 'county'"):
        GeolocatorOptions(soft_labels="county")
    with pytest.raises(KitError, match="temperature_km: expected more than 0; got 0"):
        GeolocatorOptions(temperature_km=0)
