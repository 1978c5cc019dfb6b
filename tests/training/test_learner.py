"""learner: what any network on an encoder shares, shown with the three that there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.models.multiview import training
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.retrieval import gps_training
from kitlib.models.retrieval import metric_learning as metric
from kitlib.models.retrieval.gps_network import GpsMatch
from kitlib.models.retrieval.metric_learning import Projection
from kitlib.training import fit as fitting
from kitlib.training.learner import Learner, TrainingOptions, encode, kept_views, varied
from kitlib.training.options import EncoderOptions
from kitlib.training.sphere import unit_vectors
from kitlib.vision import encoders

N, V = 12, 4
POINTS = np.random.default_rng(0).uniform([30, -120], [48, -75], (N, 2))
CLASSES = Classes(np.arange(2), np.ones(2), POINTS[:2], POINTS[:2], np.arange(2), np.full(2, 50.0))
LABELS = {"state": torch.arange(N) % 2, "cell": torch.arange(N) % 2, "place": unit_vectors(POINTS)}
LABELS |= {"group": torch.arange(N), "point": torch.from_numpy(POINTS)}
PICTURES = torch.randint(0, 256, (N, V, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def geolocating(encoder, n_features=12, **options) -> Learner:
    heads = Heads(CLASSES, V, n_features, hidden=8)
    return training.Geolocator(heads, encoder, training.GeolocatorOptions(layer_decay=0.5), 2, **options)


def metric_learning(encoder, n_features=12, **options) -> Learner:
    chosen = metric.MetricOptions(layer_decay=0.5, near_km=1000.0)
    return metric.MetricTraining(Projection(n_features, 6), encoder, chosen, 2, **options)


def matching(encoder, n_features=12, **options) -> Learner:
    match = GpsMatch(n_features, dim=6, hidden=8, sigmas=(2,), n_frequencies=8, location_hidden=8)
    chosen = gps_training.MatchOptions(layer_decay=0.5)
    return gps_training.MatchTraining(match, encoder, chosen, 2, gallery_points=POINTS, **options)


Make = Callable[..., Learner]
ALL = pytest.mark.parametrize("make", [geolocating, metric_learning, matching])


def features() -> torch.Tensor:
    return torch.randn(N, 2, V, 12, generator=torch.Generator().manual_seed(1))


def fit(module: Learner, folder, seen: dict[str, torch.Tensor], **options) -> fitting.Fitted:
    """Two epochs of two steps."""

    def load(rows):
        return {name: tensor[torch.from_numpy(rows)] for name, tensor in (seen | LABELS).items()}

    held_out = Batches(N, N, 0, load, shuffle=False)
    return fitting.fit(
        module, Batches(N, N // 2, 0, load), folder, epochs=2, config={}, val_batches=held_out, **options
    )


@ALL
@pytest.mark.parametrize(("spec", "options"), [("tiny", {"n_blocks": 1}), ("clip", {"lora_rank": 2})])
def test_an_encoder_learns_along_and_only_what_learns_is_kept(tmp_path, clip, make, spec, options):
    encoder = encoders.load(clip if spec == "clip" else spec, 32)
    torch.manual_seed(0)
    module = make(encoder, encoder.dim, rate=1e-2, encoder_rate=1e-2, **options)
    before = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    fitted = fit(module, tmp_path / "whole", {"views": PICTURES})
    assert fitted.finished and fitted.steps == 4
    changed = {name for name, tensor in encoder.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == learning < set(before)
    kept = {name.removeprefix("encoder.") for name in module.state_dict()}
    assert kept & set(before) == learning

    torch.manual_seed(0)
    fresh = encoders.load(clip if spec == "clip" else spec, 32)
    again = make(fresh, fresh.dim, rate=1e-2, encoder_rate=1e-2, **options)
    fit(again, tmp_path / "whole", {"views": PICTURES})  # finished: gives its weights back
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in module.state_dict().items())


@ALL
def test_rates_fall_towards_the_input_and_vectors_are_spared_from_decay(make):
    encoder = encoders.load("tiny")
    module = make(encoder, encoder.dim, rate=1e-3, encoder_rate=1e-4)
    groups = module.configure_optimizers()["optimizer"].param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(module.parameters()))
    rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    own = {rate[id(p)] for name, p in module.named_parameters() if not name.startswith("encoder.")}
    assert own == {1e-3}
    rates = [rate[id(layer[0])] for layer in encoder.layers() if layer]
    assert rates[-1] == 1e-4 and rates == [pytest.approx(1e-4 * 0.5**depth) for depth in range(len(rates))][::-1]
    assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in groups for p in group["params"])


@ALL
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_can_clip_the_gradients(make, tmp_path, precision):
    module = make(None, rate=1e-3)
    assert fit(module, tmp_path, {"features": features()}, precision=precision).steps == 4
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


@ALL
def test_what_is_seen_depends_on_the_seed_alone(make):
    module, seen = make(None, rate=1e-3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(torch.cat([part.flatten().float() for part in module.seen({"features": features()})]))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_encode_is_plain_or_mirrored():
    encoder, plain = encoders.load("tiny", 32), features()
    assert torch.equal(encode({"features": plain}, None), plain[:, 0])
    assert torch.equal(encode({"features": plain}, None, mirrored=True), plain[:, 1])
    with torch.no_grad():
        seen = torch.stack([encoder(PICTURES[:, v]) for v in range(V)], 1)
        assert torch.allclose(encode({"views": PICTURES}, encoder), seen, atol=1e-4)
        swapped = torch.stack([encoder(PICTURES[:, v].flip(-1)) for v in (0, 3, 2, 1)], 1)  # east and west swapped
        assert torch.allclose(encode({"views": PICTURES}, encoder, mirrored=True), swapped, atol=1e-4)


def test_mirrored_sides_are_learned_from_as_often_as_plain_ones_or_never():
    torch.manual_seed(0)
    sides = torch.arange(2.0).view(1, 2, 1, 1).expand(2000, 2, V, 3)
    both = varied({"features": sides}, None, EncoderOptions(mirror=True, vary=1.0))["features"]
    assert both.shape == (2000, 1, V, 3) and both.mean() == pytest.approx(0.5, abs=0.05)
    assert (varied({"features": sides}, None, EncoderOptions(mirror=False, vary=1.0))["features"] == 0).all()
    encoder = encoders.load("tiny", 40)
    assert torch.equal(varied({"views": PICTURES}, encoder, EncoderOptions(mirror=False, vary=0.0))["views"], PICTURES)
    assert not torch.equal(
        varied({"views": PICTURES}, encoder, EncoderOptions(mirror=False, vary=1.0))["views"], PICTURES
    )
    erased = EncoderOptions(mirror=False, vary=0.0, erase=1.0)
    assert not torch.equal(varied({"views": PICTURES}, encoder, erased)["views"], PICTURES)


def test_a_share_of_views_is_left_out_but_never_all():
    torch.manual_seed(0)
    keep = kept_views(torch.zeros(5000, V, 3), 0.3)
    assert keep.any(1).all() and keep.float().mean() == pytest.approx(0.7 + 0.3**V, abs=0.02)
    assert kept_views(torch.zeros(50, V, 3), 0.0).all() and kept_views(torch.zeros(50, V, 3), 1.0).all()


@pytest.mark.parametrize(
    "kind", [TrainingOptions, training.GeolocatorOptions, metric.MetricOptions, gps_training.MatchOptions]
)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"view_dropout": 1.5}, "view_dropout: expected a number from 0 to 1"),
        ({"warmup": -0.1}, "warmup: expected a number from 0 to 1"),
        ({"mirror": 1}, "mirror: expected true or false"),
        ({"weight_decay": float("inf")}, "weight_decay: expected a finite number"),
    ],
)
def test_training_options_refuse(kind, wrong, message):
    with pytest.raises(KitError, match=message):
        kind(**wrong)
    with pytest.raises(KitError, match=message):
        dataclasses.replace(kind(), **wrong)
