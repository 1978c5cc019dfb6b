"""Augmentation of places on the device: mirror images, crops, changes of light, zoom, erasing."""

from __future__ import annotations

import math

import torch

CROPS = {  # from and to which share of the height, of the width
    "centre": (0.1, 0.9, 0.1, 0.9),
    "bottomless": (0.0, 0.9, 0.05, 0.95),  # without the lowest tenth, where watermarks are; a square stays one
}


def crop(views: torch.Tensor, name: str) -> torch.Tensor:
    """One of `CROPS` of places (B, V, 3, H, W), which the encoder's own resize then enlarges."""
    top, bottom, left, right = CROPS[name]
    height, width = views.shape[-2:]
    return views[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def mirror(views: torch.Tensor) -> torch.Tensor:
    """Mirror places (B, V, 3, H, W): flip every picture, and swap east and west.

    The views are at equal angles clockwise from north, so that view i becomes view -i: north, west, south, east.
    """
    n_views = views.shape[1]
    return views.flip(-1)[:, [-i % n_views for i in range(n_views)]]


def augment(
    views: torch.Tensor,
    generator: torch.Generator,
    mirrored: float = 0.5,
    light: float = 0.15,
    zoom: float = 0.1,
) -> torch.Tensor:
    """Augment uint8 places (B, V, 3, H, W) on their device; the resulting pictures are slightly smaller.

    mirrored: the share of mirrored places. light: brightness, contrast and saturation of each place, the same for its V
    views, change by a factor of at most 1 ± light. zoom: the batch is cropped to one window without up to this share of
    the edges, which the encoder's own resize then enlarges at no extra cost. `generator` is a CPU generator, so that a
    seed has the same effect on every device.
    """
    n, _, _, height, width = views.shape
    random = torch.rand((n, 4), generator=generator).to(views.device)
    window = torch.rand(3, generator=generator).tolist()
    keep = 1 - zoom * window[0]
    rows, columns = math.ceil(height * keep), math.ceil(width * keep)
    top, left = round((height - rows) * window[1]), round((width - columns) * window[2])
    views = views[..., top : top + rows, left : left + columns]
    flip = (random[:, 0] < mirrored).view(n, 1, 1, 1, 1)
    views = torch.where(flip, mirror(views), views)

    # Brightness, contrast and saturation together are one affine map of a pixel's three channels.
    brightness, contrast, saturation = (1 + light * (2 * random[:, 1:] - 1)).T
    luma = torch.tensor([0.299, 0.587, 0.114], device=views.device)
    gray = luma.expand(3, 3)  # every channel becomes the luma
    matrix = saturation.view(n, 1, 1) * torch.eye(3, device=views.device) + (1 - saturation).view(n, 1, 1) * gray
    matrix = (brightness * contrast).view(n, 1, 1) * matrix
    pixels = views.float()
    level = torch.einsum("nvchw,c->n", pixels, luma) / pixels[0, :, 0].numel()  # mean luma of each place
    offset = (brightness * (1 - contrast) * level).view(n, 1, 1, 1, 1)
    changed = torch.einsum("nij,nvjhw->nvihw", matrix, pixels) + offset
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def erase(views: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Blot out a rectangle of a share of the pictures (B, V, 3, H, W) uint8, in the picture's mean colour.

    It covers 2 to 33 % of a picture, as in random erasing (Zhong et al. 2017, arXiv:1708.04896); the published
    fine-tuning of CLIP (arXiv:2212.06138) does so with a share of 0.25. `generator` is a CPU generator.
    """
    n, n_views, _, height, width = views.shape
    chosen, area, ratio, top, left = torch.rand((5, n, n_views), generator=generator).to(views.device)
    area, ratio = 0.02 + (1 / 3 - 0.02) * area, 0.3 * (3.3 / 0.3) ** ratio
    tall, wide = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # shares of the edges
    rows, columns = (_within(size, (1 - side) * start, side) for size, side, start in
                     ((height, tall, top), (width, wide, left)))  # fmt: skip
    blot = (chosen < share)[..., None, None] & rows[..., None] & columns[..., None, :]  # (B, V, H, W)
    colour = views.float().mean((-2, -1), keepdim=True).to(torch.uint8)
    return torch.where(blot[:, :, None], colour, views)


def _within(size: int, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Which of `size` pixels (B, V, size) lie within `length` (B, V) from `start` (B, V) on, in shares of all."""
    middle = (torch.arange(size, device=start.device) + 0.5) / size
    return (middle >= start[..., None]) & (middle < (start + length)[..., None])
