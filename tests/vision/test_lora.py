"""lora: little learns, the encoder begins as it was, and the updates end in plain weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.vision import encoders, lora


def test_lora_learns_little_and_merges_into_the_weights(clip):
    encoder, plain = encoders.load(clip), encoders.load(clip)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    layers = lora.add(encoder, 2)
    assert len(layers) == 3
    learning = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for layer in layers for parameter in layer}
    assert torch.allclose(encoder(pictures), plain(pictures), atol=1e-5)
    for parameter in (p for layer in layers for p in layer):
        torch.nn.init.normal_(parameter, std=0.3)
    changed = encoder(pictures)
    names = lora.merge(encoder)
    assert len(names) == 12  # q, k, v and out of three blocks
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(encoder(pictures), changed, atol=1e-4)
    assert not torch.allclose(changed, plain(pictures), atol=1e-2)
    plain.load_state_dict({name: encoder.state_dict()[name] for name in names}, strict=False)
    assert torch.allclose(plain(pictures), changed, atol=1e-4)


def test_an_encoder_without_updates_is_left_as_it_is(clip):
    encoder = encoders.load(clip)
    digest = encoder.weights_digest
    assert lora.merge(encoder) == [] and encoder.weights_digest == digest


def test_lora_refuses_an_encoder_without_attention():
    with pytest.raises(KitError, match=r"lora_rank 2: expected an hf: encoder .*'tiny'"):
        lora.add(encoders.load("tiny"), 2)
