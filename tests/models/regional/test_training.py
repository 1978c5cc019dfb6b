"""The training of a region's encoder: its frame, its loss, its learning rate, its first step."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.geo import projection
from kitlib.models.regional.scalers import RegionScaler
from kitlib.models.regional.training import EncoderTraining, Frames, RegressorOptions
from kitlib.vision import encoders

rng = np.random.default_rng(0)
CENTRES = np.array([[14.6, 121.0], [-17.8, 179.9], [64.0, -150.0], [-1.3, 36.8]])
PLACES = [projection.from_local_km(rng.normal(0, 30, (40, 2)), centre) for centre in CENTRES]
SCALERS = [RegionScaler.fit(points) for points in PLACES]


def batch_of(n: int = 60) -> dict[str, torch.Tensor]:
    """Places of the four regions, as targets."""
    region = rng.integers(0, 4, n)
    points = np.stack([PLACES[k][i] for k, i in zip(region, rng.integers(0, 40, n), strict=True)])
    scaled = np.stack([SCALERS[k].transform(p[None])[0] for k, p in zip(region, points, strict=True)])
    place = torch.from_numpy(geo.unit_vectors(points)).float()
    return {"region": torch.from_numpy(region), "scaled": torch.from_numpy(scaled).float(), "place": place}


def module_of(**options) -> EncoderTraining:
    options = RegressorOptions(encoder="tiny", mirror=False, vary=0.0, weight_decay=0.0, **options)
    return EncoderTraining(encoders.load("tiny"), Frames(SCALERS), options, 3, np.array([0.25, -0.5]))


def test_frames_agree_with_the_scalers():
    frames, scaled = Frames(SCALERS), rng.normal(0, 2, (4, 2))
    vectors = frames.vectors(torch.from_numpy(scaled).float(), torch.arange(4))
    points = np.concatenate([scaler.inverse_transform(s[None]) for scaler, s in zip(SCALERS, scaled, strict=True)])
    assert geo.distance_km(geo.from_unit_vectors(vectors.numpy()), points).max() < 0.005


def test_the_haversine_loss_is_the_distance_in_units_of_the_region():
    frames, batch = Frames(SCALERS), batch_of()
    guess = batch["scaled"] + torch.tensor([0.3, 0.4])
    loss = frames.loss("haversine", guess, batch)
    assert torch.allclose(loss, torch.full_like(loss, 0.5), atol=2e-3)
    assert torch.allclose(frames.loss("mse", guess, batch), torch.full_like(loss, (0.09 + 0.16) / 2), atol=1e-6)


def test_the_rate_starts_again():
    made = module_of(rate=0.1, t_0=2, t_mult=2).configure_optimizers()
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert [i for i, rate in enumerate(rates) if rate == 0.1] == [0, 6, 18]  # 2 epochs of 3 steps, then 4


def test_an_encoder_begins_with_the_start_and_takes_a_step():
    torch.manual_seed(0)
    module = module_of()
    pictures = torch.randint(0, 256, (4, 2, 3, 96, 96), dtype=torch.uint8)
    assert torch.allclose(module(pictures), torch.tensor([0.25, -0.5]).expand(4, 2))
    batch = {name: tensor[:4] for name, tensor in batch_of().items()} | {"views": pictures}
    optimizer = module.configure_optimizers()["optimizer"]
    before = module.training_step(batch, 0)
    before.backward()
    optimizer.step()
    assert module.training_step(batch, 0) < before
