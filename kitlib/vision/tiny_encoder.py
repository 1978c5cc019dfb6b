"""The kit's own tiny encoder: a hundred thousand weights, no download, and useful features without training.

Three convolutions with random orthogonal filters respond to textures at three scales. Colours and filter responses are
pooled to mean and spread in horizontal bands, because sky, terrain and road lie below each other. Pooled random filters
are useful features of textures (Saxe et al., On random weights and unsupervised feature learning, 2011).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

THUMBNAIL = (6, 4)  # rows and columns of mean colours
COLOUR_BANDS = 4
CONVOLUTIONS = (  # channels, kernel, stride, bands
    (32, 7, 4, 1),
    (64, 3, 2, 2),
    (128, 3, 2, 1),
)


class Tiny(nn.Module):
    """Pixels (B, 3, H, W), about 96 px and of unit variance, to features (B, 672); `seed` determines the weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        blocks = []
        n_in = 3
        for n_out, kernel, stride, _ in CONVOLUTIONS:
            convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2)
            nn.init.orthogonal_(convolution.weight, gain=2.0, generator=generator)
            nn.init.zeros_(convolution.get_parameter("bias"))
            blocks.append(nn.Sequential(convolution, nn.ReLU()))
            n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate the colours of a thumbnail with mean and spread in bands of the colours and each convolution."""
        features = [F.adaptive_avg_pool2d(x, THUMBNAIL).flatten(1), bands(x, COLOUR_BANDS)]
        for block, (_, _, _, n_bands) in zip(self.blocks, CONVOLUTIONS, strict=True):
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            features.append(bands(x, n_bands))
        return torch.cat(features, dim=1)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpointing = enable


def bands(x: torch.Tensor, n_bands: int) -> torch.Tensor:
    """Mean and standard deviation of each channel of (B, C, H, W) in horizontal bands: (B, 2 * C * n_bands)."""
    x = x.float()  # the spread is a small difference of large numbers
    mean = F.adaptive_avg_pool2d(x, (n_bands, 1))
    variance = F.adaptive_avg_pool2d(x * x, (n_bands, 1)) - mean * mean
    return torch.cat([mean.flatten(1), (variance.clamp(min=0) + 1e-4).sqrt().flatten(1)], dim=1)
