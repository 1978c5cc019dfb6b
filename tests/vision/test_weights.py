"""weights: tensors and settings to a file and back, networks by their settings, what an encoder has learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from kitlib.core.errors import Damaged, KitError
from kitlib.models.multiview.heads import Classes, Heads
from kitlib.models.retrieval.gps_network import GpsMatch
from kitlib.models.retrieval.metric_learning import Projection
from kitlib.vision import encoders, lora, weights

POINTS = np.array([[34.0, -118.0], [41.0, -74.0]])
CLASSES = Classes(np.array([3, 7]), np.array([10, 30]), POINTS, POINTS, np.array([0, 1]), np.array([50.0, 20.0]))
MAKE = {
    Heads: lambda: Heads(CLASSES, 4, 6, hidden=8),
    Projection: lambda: Projection(6, 4, hidden=3),
    GpsMatch: lambda: GpsMatch(6, dim=5, hidden=4, sigmas=(2,), n_frequencies=4, location_hidden=8),
}
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(
    settings=st.dictionaries(st.text(), PLAIN | st.lists(PLAIN)),
    shapes=st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 3), max_size=3)),
)
def test_tensors_and_settings_go_to_a_file_and_back(tmp_path_factory, settings, shapes):
    path = tmp_path_factory.mktemp("weights") / "new" / "a.safetensors"
    tensors = {
        name: torch.randn(shape).transpose(0, -1) if shape else torch.randn(()) for name, shape in shapes.items()
    }
    weights.write(path, tensors, settings)
    again, read = weights.read(path)
    assert read == settings and again.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.items())


@pytest.mark.parametrize("kind", MAKE)
def test_a_network_comes_back_whole_and_draws_no_random_numbers(tmp_path, kind):
    torch.manual_seed(0)
    network = MAKE[kind]()
    network.save(tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    again = kind.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.settings == network.settings and not again.training
    state = network.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("kind", MAKE)
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KitError, match=r"a.safetensors cannot be read as weights: expected .* got FileNotFoundError"):
        kind.load(path)
    MAKE[kind]().save(path)
    path.write_bytes(path.read_bytes()[:-10])  # cut short
    with pytest.raises(KitError, match=r"a.safetensors cannot be read .* got SafetensorError"):
        kind.load(path)
    for other in set(MAKE) - {kind}:
        MAKE[other]().save(path)
        with pytest.raises(KitError, match=f"a.safetensors does not fit: expected .* by {kind.__name__}.save"):
            kind.load(path)


@pytest.mark.parametrize("kind", MAKE)
def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    MAKE[kind]().save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in np.random.default_rng(0).integers(header, len(whole), 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged, match=r"a\.safetensors in .*: expected the weights as they were written; .*delete"):
            kind.load(path)


def test_weights_of_an_earlier_kit_have_no_checksum_and_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"settings": '{"b": 1}'})
    tensors, settings = weights.read(tmp_path / "a.safetensors")
    assert tensors["a"].tolist() == [1, 1] and settings == {"b": 1}


@torch.no_grad()
def features(encoder: encoders.Encoder) -> torch.Tensor:
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return encoder(pictures)


@torch.no_grad()
def learn(layers: list[list[torch.nn.Parameter]]) -> None:
    """Change what learns."""
    torch.manual_seed(0)
    for parameter in (p for layer in layers for p in layer):
        parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("how", ["last block", "lora"])
def test_an_encoder_gets_back_what_another_has_learned(tmp_path, clip, how):
    encoder, fresh = encoders.load(clip), encoders.load(clip)
    learn(lora.add(encoder, 2) if how == "lora" else encoder.train_last(1))
    learned = features(encoder)
    weights.save_encoder(encoder, tmp_path / "encoder.safetensors")
    assert torch.allclose(features(encoder), learned, atol=1e-4)  # merged, it says the same
    written = set(weights.read(tmp_path / "encoder.safetensors")[0])
    assert len(written) == 12 if how == "lora" else len(written) < len(fresh.state_dict()) / 2
    assert not torch.allclose(features(fresh), learned, atol=1e-2)
    weights.load_encoder(fresh, tmp_path / "encoder.safetensors")
    assert torch.allclose(features(fresh), learned, atol=1e-4)


def test_weights_of_another_encoder_are_refused(tmp_path, clip):
    encoder = encoders.load("tiny")
    weights.save_encoder(encoder, tmp_path / "encoder.safetensors")
    with pytest.raises(KitError, match=r"does not fit encoder 'hf:.*expected weights that were trained in it"):
        weights.load_encoder(encoders.load(clip), tmp_path / "encoder.safetensors")
