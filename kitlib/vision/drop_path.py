"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, residual branches are left out at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kitlib.core.errors import KitError

if TYPE_CHECKING:
    from kitlib.vision.encoders import Encoder

BRANCHES = ("self_attn", "attention", "attn", "mlp")  # of a block, in transformers' towers and timm's transformers


def add(encoder: Encoder, rate: float) -> None:
    """Leave out each branch of a block for a share of the pictures that rises linearly with depth, from 0 to `rate`.

    The other pictures' branches are scaled up, so that their mean stays. Blocks that do not learn, and an encoder that
    guesses, are left as they are. Raises KitError for an encoder without such branches.
    """
    blocks = branches(encoder)
    for depth, block in enumerate(blocks):
        share = rate * depth / max(1, len(blocks) - 1)
        for branch in block if share and any(p.requires_grad for each in block for p in each.parameters()) else []:
            branch.register_forward_hook(lambda module, _, output, share=share: _dropped(module, output, share))


def branches(encoder: Encoder) -> list[list[nn.Module]]:
    """The residual branches of each block. Raises KitError if a block has none."""
    found = [[child for name, child in block.named_children() if name in BRANCHES] for block in encoder.blocks]
    if not found or not all(found):
        raise KitError(
            f"drop_path: expected an encoder of transformer blocks (with {', '.join(BRANCHES)}); got {encoder.spec!r}; "
            "of timm's other models some have it as an option: timm:NAME?drop_path_rate=0.1"
        )
    return found


def _dropped(module: nn.Module, output: Any, share: float) -> Any:
    """A branch's output (B, …), or the first part of it, with 0 for a random share of the pictures."""
    if not module.training:
        return output
    if isinstance(output, tuple):
        return _dropped(module, output[0], share), *output[1:]
    kept = torch.rand(len(output), *[1] * (output.ndim - 1), device=output.device) >= share
    return output * (kept / max(1 - share, 1e-6)).to(output.dtype)
