"""drop_path: whole branches for single pictures, only in training, only where blocks learn."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file

from kitlib.core.errors import KitError
from kitlib.vision import drop_path, encoders

PICTURES = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_encoder_that_guesses_is_left_as_it_is(clip):
    encoder, plain = encoders.load(clip), encoders.load(clip)
    encoder.train_last(None)
    drop_path.add(encoder, 0.9)
    assert torch.equal(encoder(PICTURES[:4]), plain(PICTURES[:4]))
    assert encoder.weights_digest == plain.weights_digest


@pytest.mark.parametrize("tuple_", [False, True])
def test_whole_branches_of_single_pictures_are_left_out_and_the_mean_stays(clip, tuple_):
    encoder, seen = encoders.load(clip), {}
    encoder.train_last(None)
    block = encoder.blocks[-1]
    branch = block.self_attn if tuple_ else block.mlp
    branch.register_forward_hook(lambda *given: seen.update(before=given[2][0] if tuple_ else given[2]))
    drop_path.add(encoder, 0.5)
    branch.register_forward_hook(lambda *given: seen.update(after=given[2][0] if tuple_ else given[2]))
    torch.manual_seed(0)
    encoder.train()(PICTURES)
    left_out = (seen["after"] == 0).all(dim=2).all(dim=1)
    assert 20 < left_out.sum() < 44
    torch.testing.assert_close(seen["after"][~left_out], 2 * seen["before"][~left_out])


def test_the_share_rises_with_depth_and_frozen_blocks_keep_all(clip):
    encoder, shares = encoders.load(clip), []
    encoder.train_last(2)
    drop_path.add(encoder, 0.6)
    for block in encoder.blocks:
        block.mlp.register_forward_hook(lambda *given: shares.append((given[2] == 0).flatten(1).all(1).float().mean()))
    torch.manual_seed(0)
    with torch.no_grad():
        encoder.train()(PICTURES.repeat(16, 1, 1, 1))
    assert torch.stack(shares).tolist() == pytest.approx([0, 0.3, 0.6], abs=0.05)
    frozen = encoders.load(clip)
    frozen.train_last(1)
    drop_path.add(frozen, 0.6)
    assert [len(block.mlp._forward_hooks) for block in frozen.blocks] == [0, 0, 1]


def test_timm_s_transformers_have_branches_too(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = encoders.load(f"timm:test_vit@{tmp_path / 'model.safetensors'}")
    encoder.train_last(None)
    drop_path.add(encoder, 1.0)
    block, x = encoder.blocks[-1], torch.randn(2, 5, 64)
    assert torch.equal(block.train()(x), x) and not torch.equal(block.eval()(x), x)


def test_recomputed_activations_leave_out_the_same_branches(clip):
    gradients = []
    for checkpointing in (False, True):
        encoder = encoders.load(clip)
        encoder.train_last(None)
        drop_path.add(encoder, 0.5)
        if checkpointing:
            encoder.enable_checkpointing()
        torch.manual_seed(0)
        encoder.train()(PICTURES[:8]).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.blocks[1].parameters()]))
    torch.testing.assert_close(*gradients)


def test_an_encoder_without_branches_is_refused():
    with pytest.raises(KitError, match=r"drop_path: expected an encoder of transformer blocks .*'tiny'"):
        drop_path.add(encoders.load("tiny"), 0.1)
