"""Features of every stage of an encoder, not of its last layer alone.

Early stages hold colour, texture and the layout of a street view, which the last layer of a network trained on objects
has discarded. `ENCODER=timm:NAME#stages` gives the pooled output followed by mean and spread of each stage's channels,
over the whole picture and over its upper, middle and lower third: sky, horizon and ground.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from kitlib.vision.tiny_encoder import bands

MOST = 8  # stages; of more blocks, such as those of a transformer, four at equal distances are read
BANDS = (1, 3)  # the whole picture, and thirds


class Stages(nn.Module):
    """Wrap a backbone and its blocks: pixels (B, 3, H, W) to features (B, D), whose widths are `parts`."""

    def __init__(self, backbone: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        n = len(blocks)
        read = blocks if n <= MOST else [blocks[round(n * share) - 1] for share in (0.25, 0.5, 0.75, 1)]
        self._maps: list[torch.Tensor] = []
        self.parts: list[int] = []
        for block in read:
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: Any, output: Any) -> None:
        self._maps.append(output[0] if isinstance(output, tuple) else output)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The pooled output, then mean and spread of each stage's channels, in float32."""
        self._maps.clear()
        pooled = self.backbone(pixels).float()
        last_as_channels = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        maps = [as_maps(output, last_as_channels) for output in self._maps]
        self._maps.clear()
        features = [pooled, *(bands(each, n) for each in maps for n in BANDS)]
        self.parts = [feature.shape[1] for feature in features]
        return torch.cat(features, dim=1)


def as_maps(output: torch.Tensor, last_as_channels: bool = False) -> torch.Tensor:
    """The output of a block as (B, C, H, W): patch tokens (B, T, C) are laid out in their square, others left out."""
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        return output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return output.permute(0, 3, 1, 2) if last_as_channels else output
