"""Heads of many regions at once: the same as one by one, in frames that agree with the scalers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.geo import projection
from kitlib.models.regional.heads import Frames, RegionHeads
from kitlib.models.regional.scalers import RegionScaler
from kitlib.models.regional.training import EncoderTraining, HeadsTraining, Teaching

rng = np.random.default_rng(0)
CENTRES = np.array([[14.6, 121.0], [-17.8, 179.9], [64.0, -150.0], [-1.3, 36.8]])
PLACES = [projection.from_local_km(rng.normal(0, 30, (40, 2)), centre) for centre in CENTRES]
SCALERS = [RegionScaler.fit(points) for points in PLACES]
TEACHING = Teaching(loss="mse", view_dropout=0.0, mirror=False, vary=0.0, weight_decay=0.0, t_0=10, t_mult=1)


def batch_of(n: int = 60, n_features: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Places of the four regions whose first two features tell where they lie."""
    draw = np.random.default_rng(seed)
    region = draw.integers(0, 4, n)
    points = np.stack([PLACES[k][i] for k, i in zip(region, draw.integers(0, 40, n), strict=True)])
    scaled = np.stack([SCALERS[k].transform(p[None])[0] for k, p in zip(region, points, strict=True)])
    features = draw.normal(0, 1, (n, 1, 3, n_features)).astype(np.float32)
    features[..., :2] = scaled[:, None, None] * (1 + region[:, None, None, None]) + draw.normal(0, 0.05, (n, 1, 3, 2))
    place = torch.from_numpy(geo.unit_vectors(points)).float()
    labels = {"region": torch.from_numpy(region), "scaled": torch.from_numpy(scaled).float(), "place": place}
    return {"features": torch.from_numpy(features).half()} | labels


def heads_of(own=(True, True, True, True), hidden=0, seed=0) -> RegionHeads:
    torch.manual_seed(seed)
    heads = RegionHeads(own, 12, hidden, dropout=0.0)
    heads.begin(batch_of()["features"], np.zeros((4, 2)))
    return heads


def train(module: HeadsTraining, batch: dict[str, torch.Tensor], steps: int) -> None:
    """Plain full-batch steps with the module's own optimizer."""
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(steps):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()


def test_frames_agree_with_the_scalers():
    frames, scaled = Frames(SCALERS), rng.normal(0, 2, (4, 2))
    vectors = frames.vectors(torch.from_numpy(scaled).float(), torch.arange(4))
    points = np.concatenate([scaler.inverse(s[None]) for scaler, s in zip(SCALERS, scaled, strict=True)])
    assert geo.distance_km(geo.from_unit_vectors(vectors.numpy()), points).max() < 0.005


def test_the_haversine_loss_is_the_distance_in_units_of_the_region():
    frames, batch = Frames(SCALERS), batch_of()
    said = batch["scaled"] + torch.tensor([0.3, 0.4])
    loss = frames.loss("haversine", said, batch)
    assert torch.allclose(loss, torch.full_like(loss, 0.5), atol=2e-3)
    assert torch.allclose(frames.loss("mse", said, batch), torch.full_like(loss, (0.09 + 0.16) / 2), atol=1e-6)


@pytest.mark.parametrize("hidden", [0, 8])
def test_together_is_the_same_as_one_by_one(hidden):
    batch = batch_of()
    together = HeadsTraining(heads_of(hidden=hidden), Frames(SCALERS), TEACHING, 0.05, 1)
    alone = [HeadsTraining(heads_of(hidden=hidden), Frames(SCALERS), TEACHING, 0.05, 1) for _ in range(4)]
    train(together, batch, 20)
    for k, module in enumerate(alone):
        own = batch["region"] == k
        train(module, {name: tensor[own] for name, tensor in batch.items()}, 20)
        for a, b in zip(together.heads.own.parameters(), module.heads.own.parameters(), strict=True):
            assert torch.allclose(a[k], b[k], atol=1e-4)


def test_regions_without_a_head_share_the_pooled_one_which_learns_from_all():
    heads, batch = heads_of((True, False, True, False)), batch_of()
    assert heads.n_heads == 3 and heads.slot.tolist() == [0, 2, 1, 2]
    rows, head, _ = heads.by_head(heads.fuse(batch["features"][:, 0]), batch["region"])
    assert sorted(rows[head == 2].tolist()) == list(range(60))
    assert (batch["region"][rows[head == 1]] == 2).all() and (head == 1).sum() == (batch["region"] == 2).sum()
    train(HeadsTraining(heads, Frames(SCALERS), TEACHING, 0.05, 1), batch, 5)
    every = heads(heads.fuse(batch["features"][:, 0]))
    assert every.shape == (60, 4, 2)
    assert torch.equal(every[:, 1], every[:, 3]) and not torch.allclose(every[:, 0], every[:, 2])


def test_heads_begin_with_the_median_point_and_learn():
    heads, batch = RegionHeads([True, True, True, False], 12, 0, 0.0), batch_of()
    medians = np.array([[0.1, 0.2], [0.3, 0.4], [-1.0, 0.0], [0.5, 0.5]])
    heads.begin(batch["features"], medians)
    assert torch.allclose(heads(torch.randn(5, 12)), torch.from_numpy(medians).float().expand(5, 4, 2))
    module = HeadsTraining(heads, Frames(SCALERS), TEACHING, 0.05, 1)
    module.start(batch)
    before = module.best_loss.clone()
    train(module, batch, 150)
    module.on_validation_epoch_start()
    module.heads.eval()
    total, count = module._losses(heads.fuse(batch["features"][:, 0]), batch)
    assert (total / count < before / 5).all()


def test_each_head_keeps_its_own_best_epoch_and_stops_alone():
    module = HeadsTraining(heads_of(), Frames(SCALERS), TEACHING, 0.05, 1, patience=2)
    module.start(batch_of())
    module.trainer = type("T", (), {"should_stop": False})()
    losses = torch.tensor([[3.0, 1, 5, 1], [2, 2, 6, 1], [9, 3, 7, 1], [1, 0.5, 0.1, 1]])  # epoch, head
    module.best_loss.copy_(torch.tensor([4.0, 4, 4, 4]))
    marks = []
    for epoch, loss in enumerate(losses):
        with torch.no_grad():
            for weight in module.heads.own.weights:
                weight.fill_(epoch + 1.0)
        module.on_validation_epoch_start()
        module._total, module._count = loss, torch.ones(4)
        module.on_validation_epoch_end()
        marks.append(module.trainer.should_stop)
    kept = module.best.own.weights[0][:, 0, 0].tolist()
    assert module.best_epoch.tolist() == [4, 1, 0, 1]  # the second and third had stopped before they got better
    assert kept[0] == 4 and kept[1] == 1 and kept[3] == 1 and kept[2] not in (1, 2, 3, 4)
    assert marks == [False, False, False, False]


def test_all_heads_waiting_stops_the_fit():
    module = HeadsTraining(heads_of(), Frames(SCALERS), TEACHING, 0.05, 1, patience=1)
    module.trainer = type("T", (), {"should_stop": False})()
    module.best_loss.zero_()
    module.on_validation_epoch_start()
    module._total, module._count = torch.ones(4), torch.ones(4)
    module.on_validation_epoch_end()
    assert module.trainer.should_stop


def test_a_head_that_breaks_does_not_touch_the_others():
    batch = batch_of()
    good = HeadsTraining(heads_of(), Frames(SCALERS), TEACHING, 0.05, 1)
    bad = HeadsTraining(heads_of(), Frames(SCALERS), TEACHING, 0.05, 1)
    broken = {name: tensor.clone() for name, tensor in batch.items()}
    broken["scaled"][broken["region"] == 2] = torch.inf
    train(good, batch, 5)
    train(bad, broken, 5)
    assert bad.broken.tolist() == [False, False, True, False]
    for a, b in zip(good.heads.own.parameters(), bad.heads.own.parameters(), strict=True):
        assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]]) and b.isfinite().all()


def test_saved_heads_say_the_same(tmp_path):
    heads = heads_of((True, False, True, True), hidden=5)
    train(HeadsTraining(heads, Frames(SCALERS), TEACHING, 0.05, 1), batch_of(), 3)
    heads.save(tmp_path / "heads.safetensors")
    fused = torch.randn(7, 12)
    assert torch.equal(RegionHeads.load(tmp_path / "heads.safetensors")(fused), heads.eval()(fused))


def test_the_rate_starts_again():
    module = HeadsTraining(heads_of(), Frames(SCALERS), Teaching("mse", 0, False, 0, 0, 2, 2), 0.1, epoch_steps=3)
    made = module.configure_optimizers()
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert [i for i, rate in enumerate(rates) if rate == 0.1] == [0, 6, 18]  # 2 epochs, then 4


def test_an_encoder_begins_with_the_start_and_takes_a_step():
    from kitlib.vision import encoders

    torch.manual_seed(0)
    module = EncoderTraining(encoders.load("tiny"), Frames(SCALERS), TEACHING, 1e-5, 1, np.array([0.25, -0.5]))
    pictures = torch.randint(0, 256, (4, 2, 3, 96, 96), dtype=torch.uint8)
    assert torch.allclose(module(pictures), torch.tensor([0.25, -0.5]).expand(4, 2))
    batch = {name: tensor[:4] for name, tensor in batch_of().items()} | {"views": pictures}
    made = module.configure_optimizers()["optimizer"]
    before = module.training_step(batch, 0)
    before.backward()
    made.step()
    assert module.training_step(batch, 0) < before
