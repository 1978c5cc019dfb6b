from __future__ import annotations

import math
from pathlib import Path

import geoclip_reference as reference
import numpy as np
import pytest
import torch
from data_helper import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kitlib.core.errors import KitError
from kitlib.models.retrieval import geoclip
from kitlib.models.retrieval.geoclip import FourierFeatures, LocationEncoder

LATITUDE, LONGITUDE = st.floats(-89.9, 89.9), st.floats(-180, 180)


def small(seed: int = 0, **changed) -> LocationEncoder:
    torch.manual_seed(seed)
    return LocationEncoder(**{"dim": 16, "sigmas": (1, 16), "n_frequencies": 32, "hidden": 64} | changed)


def world(n: int, seed: int = 0) -> np.ndarray:
    """Points (n, 2) spread evenly over the globe."""
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


@pytest.fixture(scope="module")
def published_names() -> dict[str, torch.Tensor]:
    return reference.weights()


@pytest.fixture
def pth(published_names, tmp_path) -> Path:
    torch.save(published_names, tmp_path / "location_encoder_weights.pth")
    return tmp_path / "location_encoder_weights.pth"


@given(LATITUDE, LONGITUDE)
def test_equal_areas_on_the_globe_are_equal_on_the_map(lat, lon):
    point = torch.tensor([lat, lon], dtype=torch.float64)
    stretched = torch.linalg.det(torch.autograd.functional.jacobian(geoclip.equal_earth, point)).abs()
    on_globe = math.cos(math.radians(lat)) * math.radians(1) ** 2  # square radians in a degree by a degree
    assert stretched.item() == pytest.approx(on_globe * (geoclip.SCALE / 180) ** 2, rel=1e-9)


@given(LATITUDE, LONGITUDE)
def test_the_map_is_the_same_north_and_south_east_and_west(lat, lon):
    here, mirrored = geoclip.equal_earth(torch.tensor([[lat, lon], [-lat, -lon]], dtype=torch.float64))
    assert torch.allclose(here, -mirrored, rtol=0, atol=1e-15)


def test_equal_earth_has_the_published_outline():
    corners = torch.tensor([[0.0, 180], [90, 0], [90, 180], [-90, -180], [0, 0]], dtype=torch.float64)
    x, y = geoclip.equal_earth(corners).T.tolist()
    assert x[0] == pytest.approx(1, abs=1e-6) and y[0] == x[1] == x[4] == y[4] == 0
    assert x[0] / y[1] == pytest.approx(2.05458, abs=1e-5)  # width by height
    assert x[2] / x[0] == pytest.approx(0.59247, abs=1e-5)  # the pole is a line, so long beside the equator
    assert (x[3], y[3]) == (-x[2], -y[2])


def test_features_of_two_points_agree_as_a_gaussian_of_their_distance():
    torch.manual_seed(0)
    features = FourierFeatures(sigma=16, n_frequencies=20_000)
    points = torch.tensor([[0.3, 0.1], [0.3, 0.1], [0.305, 0.1], [0.3, 0.11], [0.31, 0.12]])
    made = features(points)
    assert features.b.std().item() == pytest.approx(16, rel=0.02)
    assert made.shape == (5, 40_000)
    agreement = (made[0] * made).mean(1) * 2
    expected = torch.exp(-2 * (math.pi * 16 * (points - points[0]).norm(dim=1)) ** 2)
    assert torch.allclose(agreement, expected, atol=0.02)
    assert 0.1 < expected[3] < expected[2] < 0.9


def test_same_embeddings_as_the_geoclip_package(pth):
    encoder, table = geoclip.load_geoclip(pth), np.load(reference.TABLE)
    with torch.no_grad():
        ours = encoder(torch.from_numpy(table["points"])).numpy()
    assert ours.shape == (20, 512) and ours.dtype == np.float32
    assert np.abs(ours[:, ::8] - table["embeddings"]).max() < 1e-5
    assert table["embeddings"].std() > 0.01  # a thousand times what is allowed
    embedded = geoclip.embed_points(encoder, table["points"])
    assert np.allclose(embedded, ours / np.linalg.norm(ours, axis=1, keepdims=True), atol=1e-6)


def test_one_safetensors_file_holds_all_parts(published_names, pth, tmp_path):
    whole = {f"location_encoder.{name}": tensor for name, tensor in published_names.items()}
    whole |= {"image_encoder.mlp.0.bias": torch.zeros(768), "logit_scale": torch.tensor(3.681)}
    save_file(whole, tmp_path / "model.safetensors")
    ours, same = geoclip.load_geoclip(tmp_path / "model.safetensors"), geoclip.load_geoclip(pth)
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_loaded_encoder_is_ready_and_leaves_the_seed_alone(pth):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    encoder = geoclip.load_geoclip(pth)
    assert torch.equal(torch.get_rng_state(), before)
    assert not encoder.training
    assert {tensor.device.type for tensor in encoder.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"LocEnc1.head.0.bias": None}, r"expected 27 weights; got 1 missing \(LocEnc1.head.0.bias\)"),
        ({"LocEnc3.head.0.bias": torch.zeros(512)}, r"1 unknown \(LocEnc3.head.0.bias\)"),
        ({"surplus": torch.zeros(1)}, r"1 unknown \(surplus\)"),
        ({"LocEnc0.capsule.0.b": torch.zeros(128, 2)}, r"1 of another shape \(LocEnc0.capsule.0.b\)"),
        ({"LocEnc2.capsule.5.bias": torch.full((1024,), torch.nan)}, r"1 not finite \(LocEnc2.capsule.5.bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(published_names, tmp_path, change, message):
    state = {name: tensor for name, tensor in (published_names | change).items() if tensor is not None}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(KitError, match=f"weights.safetensors does not fit GeoCLIP's location encoder.*{message}"):
        geoclip.load_geoclip(tmp_path / "weights.safetensors")


def test_files_that_are_no_weights_are_refused_and_never_executed(pth, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"LocEnc0.capsule.0.b": Trap()}, tmp_path / "trap.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("LocEnc0")
    (tmp_path / "half.pth").write_bytes(pth.read_bytes()[:1_000_000])
    for name in ("trap.pth", "text.safetensors", "half.pth", "list.pth", "absent.pth"):
        with pytest.raises(KitError, match=f"{name} cannot be read as weights"):
            geoclip.load_geoclip(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_the_seed_decides_the_encoder():
    points = torch.from_numpy(world(5))
    assert torch.equal(small(1)(points), small(1)(points))
    assert not torch.allclose(small(1)(points), small(2)(points), atol=1e-3)


def test_leading_shapes_are_kept_and_every_scale_has_its_say():
    encoder, points = small(), torch.from_numpy(world(12))
    whole = encoder(points)
    assert whole.shape == (12, 16)
    assert torch.allclose(encoder(points.view(3, 4, 2)), whole.view(3, 4, 16), atol=1e-6)
    parts = [scale(geoclip.equal_earth(points.float())) for scale in encoder.scales]
    assert torch.allclose(parts[0] + parts[1], whole, atol=1e-6)
    assert min(part.std(0).min() for part in parts) > 0


def test_waves_stay_float32_under_autocast():
    encoder, points = LocationEncoder(dim=32, hidden=128), torch.from_numpy(world(200)).float()
    waves, plane = encoder.scales[2][0], geoclip.equal_earth(points)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(geoclip.equal_earth(points), plane)
        lowered, lowered_waves = encoder(points), waves(plane)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered_waves, waves(plane))
    assert torch.cosine_similarity(lowered, encoder(points)).min() > 0.99


def test_it_learns_places_and_not_the_waves():
    encoder, points, rows = small(), torch.from_numpy(world(64)), torch.arange(64)
    pictures = torch.nn.functional.normalize(torch.randn(64, 16), dim=1)
    waves = encoder.scales[0][0].b.clone()
    for _ in range(60):
        similar = pictures @ torch.nn.functional.normalize(encoder(points), dim=1).T
        encoder.zero_grad()
        torch.nn.functional.cross_entropy(20 * similar, rows).backward()
        for parameter in encoder.parameters():
            assert parameter.grad.abs().sum() > 0
            parameter.data -= 0.05 * parameter.grad
    assert (similar.argmax(1) == rows).float().mean() > 0.9
    assert torch.equal(encoder.scales[0][0].b, waves)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12), st.integers(1, 15))
def test_embeddings_have_length_1_whatever_the_batch(n, batch):
    encoder, points = small(), world(n)
    embedded = geoclip.embed_points(encoder, points, batch=batch)
    assert embedded.shape == (n, 16) and embedded.dtype == np.float32
    assert np.allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)
    assert np.allclose(embedded, geoclip.embed_points(encoder, points, device="cpu"), atol=1e-6)


@pytest.mark.parametrize(
    ("points", "batch", "message"),
    [
        ([[91.0, 0.0]], 1, "not on Earth"),
        ([[np.nan, 0.0]], 1, "not on Earth"),
        ([0.0, 0.0], 1, r"expected shape \(N, 2\)"),
        ([[0.0, 0.0]], 0, "a batch from 1"),
    ],
)
def test_bad_points_and_batches_are_refused(points, batch, message):
    with pytest.raises(KitError, match=message):
        geoclip.embed_points(small(), points, batch=batch)


def test_weights_of_the_image_side_are_refused():
    file = SHARED / "weights/geoclip_image_mlp/model.safetensors"
    if not file.is_file():
        pytest.skip("the published image projection (shared/weights) is not at hand")
    with pytest.raises(KitError, match=r"does not fit GeoCLIP's location encoder.*27 missing.*4 unknown"):
        geoclip.load_geoclip(file)
