from __future__ import annotations

import torch

from kitlib.vision import encoders
from kitlib.vision.tiny_encoder import Tiny, bands


def test_bands_are_means_and_spreads_of_horizontal_bands():
    x = torch.zeros(1, 2, 4, 6)
    x[0, 0, :2] = 3.0
    x[0, 1, 2:, ::2] = 2.0
    top_and_bottom = bands(x, 2)
    assert torch.allclose(top_and_bottom, torch.tensor([[3.0, 0, 0, 1, 0.01, 0.01, 0.01, 1]]), atol=1e-3)
    assert bands(x, 1).shape == (1, 4)


def test_bands_of_one_colour_have_a_finite_gradient():
    x = torch.full((1, 3, 8, 8), 0.7, requires_grad=True)
    bands(x, 4).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_the_seed_makes_the_weights():
    first, same, other = Tiny(seed=0), Tiny(seed=0), Tiny(seed=1)
    for a, b, c in zip(first.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and (a.ndim == 1 or not torch.equal(a, c))


def test_frozen_features_tell_textures_of_the_same_colour_apart():
    generator = torch.Generator().manual_seed(0)
    stripes = torch.arange(256) // 6 % 2 * 2.0 - 1
    kinds = [stripes.expand(256, 256), stripes[:, None].expand(256, 256), stripes * stripes[:, None]]
    noise = torch.randn(3, 20, 1, 256, 256, generator=generator) * 20
    contrast = 20 + 40 * torch.rand(3, 20, 1, 1, 1, generator=generator)
    pictures = (128 + torch.stack(kinds)[:, None, None] * contrast + noise).clamp(0, 255).expand(-1, -1, 3, -1, -1)
    with torch.inference_mode():
        features = encoders.load("tiny")(pictures.flatten(0, 1).to(torch.uint8)).view(3, 20, -1)
    features = (features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-3)
    centroids = features[:, :10].mean(dim=1)
    nearest = torch.cdist(features[:, 10:].flatten(0, 1), centroids).argmin(dim=1).view(3, 10)
    assert (nearest == torch.arange(3)[:, None]).float().mean() > 0.9


def test_tiny_learns_end_to_end():
    torch.manual_seed(0)
    encoder = encoders.load("tiny", image_size=48).train()
    head = torch.nn.Linear(encoder.dim, 2)
    pictures = torch.randint(0, 256, (32, 3, 48, 48), dtype=torch.uint8)
    labels = (pictures[:, 0, 20:28, 20:28].float().mean((1, 2)) > 127.5).long()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(head(encoder(pictures)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
