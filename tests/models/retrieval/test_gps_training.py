"""Image-to-GPS training: both sides learn, exact resume with the queue, validation, files, published weights."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import geoclip_reference as reference
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.loader import Batches
from kitlib.models.retrieval.gps_network import GpsMatch, embed_images
from kitlib.models.retrieval.gps_training import MatchOptions, MatchTraining
from kitlib.training import fit as fitting

N, V, D = 300, 2, 12
HELD_OUT = np.arange(N) % 5 == 0
TRAIN = np.flatnonzero(~HELD_OUT)
OPTIONS = MatchOptions(queue=100, noise_m=2000.0, queue_noise_m=5000.0, view_dropout=0.2)
SMALL = {"dim": 16, "hidden": 32, "dropout": 0.1, "sigmas": (2, 8), "n_frequencies": 16, "location_hidden": 32}


@cache
def toy() -> dict[str, torch.Tensor]:
    """Places on both sides of the date line; features tell where they are, noisily, among other things."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-20, 20, N), (rng.uniform(160, 200, N) + 180) % 360 - 180], axis=1)
    vectors = geo.unit_vectors(points)
    signal = (vectors - vectors.mean(0)) / vectors.std(0) @ rng.normal(size=(3, D // 2))
    features = np.concatenate([signal, rng.normal(size=(N, D - D // 2))], axis=1)[:, None, None]
    features = features + 0.2 * rng.normal(size=(N, 2, V, D))
    return {"features": torch.from_numpy(features).half(), "point": torch.from_numpy(points)}


def load(rows: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: tensor[torch.from_numpy(rows)] for name, tensor in toy().items()}


def small(**changed) -> GpsMatch:
    torch.manual_seed(0)
    match = GpsMatch(D, **SMALL | changed)
    match.fit_scale(toy()["features"][TRAIN])
    return match


def fit(folder, epochs=2, chosen=OPTIONS, rate=1e-2, gallery_points=None, before_step=None, **options):
    """A training that has run on the toy, and what `fitting.fit` gives."""
    steps = fitting.total_steps(len(TRAIN), 48, 1, epochs)
    gallery_points = toy()["point"].numpy()[TRAIN] if gallery_points is None else gallery_points
    module = MatchTraining(small(), None, chosen, steps, rate=rate, gallery_points=gallery_points)
    if before_step:
        step = module.training_step

        def watched(batch, batch_idx):
            before_step(module, batch_idx)
            return step(batch, batch_idx)

        module.training_step = watched
    held_out = Batches(np.flatnonzero(HELD_OUT), 25, 0, load, shuffle=False)
    defaults = {"epochs": epochs, "config": dataclasses.asdict(chosen), "val_batches": held_out}
    options = defaults | {"precision": "float32"} | options  # one number type on every processor
    return module, fitting.fit(module, Batches(TRAIN, 48, 3, load), folder, **options)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(t, states[1][name]) for name, t in states[0].items()
    )


def alone(chosen=OPTIONS, **options) -> MatchTraining:
    """A training without a Trainer, whose logs go nowhere."""
    module = MatchTraining(small(), None, chosen, 10, rate=1e-3, **options)
    module.log_dict = lambda metrics, **_: None
    return module


def test_training_finds_held_out_places(tmp_path):
    _, fitted = fit(tmp_path, epochs=12, rate=3e-2)
    points = toy()["point"].numpy()
    chance_km = geo.distance_matrix_km(points[HELD_OUT], points[TRAIN]).mean()
    history = fitted.history
    assert history["val_km"].iloc[-1] < 0.4 * chance_km
    assert {"loss", "logit_scale", "top1", "val_km"} <= set(history.columns)
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    assert history["top1"].iloc[-1] > 2 * history["top1"].iloc[0]


@pytest.mark.parametrize("cut", ["crash", "in pieces"])
def test_a_fit_cut_short_ends_with_the_same_weights_and_queue(tmp_path, cut):
    whole, fitted = fit(tmp_path / "whole", checkpoint_steps=3)
    seen = []

    def note(module, batch_idx):
        seen.append(int(module.queue.count))
        if cut == "crash" and len(seen) == 8:  # step 8 of 10; the last checkpoint is of step 6
            raise InterruptedError

    if cut == "crash":
        with pytest.raises(InterruptedError):
            fit(tmp_path / "cut", checkpoint_steps=3, before_step=note)
        again, refitted = fit(tmp_path / "cut", checkpoint_steps=3, before_step=note)
        assert seen[8] == 240 + 48 and len(seen) == 8 + 4  # it has pushed what the first 6 steps had
    else:
        while not (last := fit(tmp_path / "cut", checkpoint_steps=3, before_step=note, max_hours=0))[1].finished:
            pass
        again, refitted = last
        assert len(seen) == 10
    assert same(whole, again) and len(again.queue()) == 100
    assert fitted.history.drop(columns="seconds").equals(refitted.history.drop(columns="seconds"))


def test_gradients_reach_both_sides_the_scale_and_the_queue():
    module = alone()
    batch = load(TRAIN[:20])
    module.training_step(batch, 0)
    moved = []
    module.match.location.register_forward_hook(lambda _, given, out: moved.append(len(given[0])))
    module.training_step(load(TRAIN[20:40]), 0).backward()
    assert moved == [20 + 20]  # the batch's places, then those that the queue kept
    for name, parameter in module.match.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_an_image_is_not_told_apart_from_its_own_place_in_the_queue():
    quiet = dataclasses.replace(OPTIONS, noise_m=0.0, queue_noise_m=0.0, view_dropout=0.0)
    for same_km, expected in {1.0: 0.0, 0.0: math.log(2)}.items():
        module = alone(dataclasses.replace(quiet, same_km=same_km)).eval()
        assert module.training_step(load(TRAIN[:1]), 0).item() == 0  # nothing to be told apart from yet
        assert module.training_step(load(TRAIN[:1]), 0).item() == pytest.approx(expected)


def test_noise_and_views_are_drawn_under_the_seed():
    module, batch = alone(), load(TRAIN[:20])
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(module.training_step(batch, 0).item())
        module.queue.count.zero_()
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_location_side_in_float32(dtype):
    match, points = small().eval(), toy()["point"].float()
    features = toy()["features"][:, 0]
    plain = match.places(points)
    with torch.autocast("cpu", dtype):
        places, images = match.places(points), match.images(features)
        assert torch.equal(places, plain)
        assert match.logits(images, places).dtype == images.dtype == torch.float32
    assert torch.allclose(images, match.images(features), atol=0.02)
    assert torch.allclose(plain.norm(dim=1), torch.ones(N), atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_it_learns_in_half_precision_too(tmp_path, precision):
    module, fitted = fit(tmp_path, epochs=8, rate=3e-2, precision=precision)
    assert fitted.history["val_km"].iloc[-1] < 0.6 * fitted.history["val_km"].iloc[0]
    assert module.queue.points.dtype == torch.float32


def test_the_image_side_sees_the_kept_views_alone_standardised():
    match = small().eval()
    features = toy()["features"][:3, 0].float()
    keep = torch.tensor([[True, False], [True, True], [False, True]])
    by_hand = torch.stack([features[0, 0], features[1].mean(0), features[2, 1]])
    flat = toy()["features"][TRAIN].float().flatten(0, -2)
    by_hand = match.image((by_hand - flat.mean(0)) / (flat.std(0) + 1e-3 * flat.std()))
    expected = torch.nn.functional.normalize(by_hand, dim=1)
    assert torch.allclose(match.images(features, keep), expected, atol=1e-5)


def test_the_logit_scale_stops_at_100_and_can_come_back():
    match = small()
    with torch.no_grad():
        match.log_scale.fill_(9.0)
    ones = torch.nn.functional.normalize(torch.ones(1, 16), dim=1)
    logits = match.logits(ones, ones)
    logits.sum().backward()
    assert logits.item() == pytest.approx(100, rel=1e-4)
    assert match.log_scale.item() == pytest.approx(math.log(100)) and match.log_scale.grad > 0


def test_embeddings_of_images_are_without_dropout_and_the_mean_over_sides():
    match, features = small(dropout=0.9).train(), toy()["features"].numpy()
    embedded = embed_images(match, features)
    assert match.training and np.allclose(embed_images(match, features, batch=7), embedded, atol=1e-6)
    sides = embed_images(match, features[:, 0]), embed_images(match, features[:, 1])
    assert np.allclose(embedded, np.mean(sides, axis=0), atol=1e-6)


def test_to_a_file_and_back(tmp_path):
    torch.manual_seed(1)
    match = GpsMatch(D, **SMALL)
    match.save(tmp_path / "match.safetensors")
    again = GpsMatch.load(tmp_path / "match.safetensors")
    assert same(match, again) and again.settings == match.settings and not again.training
    features = toy()["features"][:5, 0]
    assert torch.equal(again.images(features), match.eval().images(features))
    match.settings["image"] = "mlp"  # as an earlier kit wrote it
    match.save(tmp_path / "earlier.safetensors")
    assert same(match, GpsMatch.load(tmp_path / "earlier.safetensors"))


def test_the_published_weights(tmp_path):
    torch.save(reference.weights(), tmp_path / "location.pth")
    match = GpsMatch(768)
    match.load_published(tmp_path / "location.pth")
    table = np.load(reference.TABLE)
    embedded = match.location(torch.from_numpy(table["points"])).detach()
    assert np.abs(embedded.numpy()[:, ::8] - table["embeddings"]).max() < 1e-5
    places = match.places(torch.from_numpy(table["points"]))
    assert torch.allclose(places, torch.nn.functional.normalize(embedded, dim=1), atol=1e-6)
    with pytest.raises(KitError, match=r"expected .*256.*got {'sigmas': \[2.0, 4.0\]}"):
        GpsMatch(768, sigmas=(2, 4)).load_published(tmp_path / "location.pth")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small().fit_scale(torch.zeros(4, D + 1)), f"at least 2 rows of {D}"),
        (lambda: small().fit_scale(torch.full((4, D), torch.nan)), "finite numbers"),
        (lambda: MatchOptions(queue=-1), "queue: expected a finite number that is not negative; got -1"),
        (lambda: MatchOptions(noise_m=math.nan), "noise_m: expected a finite number that is not negative; got nan"),
        (lambda: alone(gallery_points=[[95.0, 0.0]]), "gallery_points: expected latitudes"),
        (lambda: alone(gallery_points=[5.0, 0.0]), r"gallery_points: expected shape \(M, 2\)"),
        (lambda: alone().on_validation_epoch_start(), "gallery_points: expected the gallery of the validation"),
        (lambda: embed_images(small(), np.zeros((4, V, D + 1))), rf"expected shape \(N, V, {D}\)"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(call, message):
    with pytest.raises(KitError, match=message):
        call()
