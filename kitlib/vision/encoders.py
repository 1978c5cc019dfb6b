"""Load vision encoders by name; they convert uint8 pictures to one feature vector each.

    tiny                                        the kit's own, without download; for the sample and for tests
    timm:NAME                                   a timm model with its published weights
    timm:NAME@WEIGHTS.safetensors               a timm model with the weights in a file or folder
    timm:NAME?pad_type=same@WEIGHTS.safetensors the same with options for timm.create_model
    hf:REPO_OR_FOLDER                           CLIP (StreetCLIP), SigLIP, DINOv2 and DINOv3 of the transformers library
    NAME#stages                                 any of them, with the features of every stage (`stages`)
    NAME+NAME                                   several side by side, for frozen features (`inputs.Inputs`)

Only the vision tower is loaded. Features are the encoder's pooled output before any projection: 1024 numbers for
StreetCLIP, whose 768 projected ones only serve comparison with texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, shown
from kitlib.vision import backbones, licences
from kitlib.vision.preprocess import Preprocess
from kitlib.vision.stages import Stages

SMALLEST = 16  # px of an encoder's input
STREETCLIP = "hf:geolocal/StreetCLIP"
ALLOWED = (
    "expected tiny, timm:NAME, timm:NAME@WEIGHTS, timm:NAME?option=value@WEIGHTS or hf:REPO_OR_FOLDER, each also with "
    "#stages behind it"
)


class Encoder(nn.Module):
    """A vision encoder with its preprocessing: uint8 (B, 3, H, W) on its device to float (B, dim).

    blocks: the repeated blocks from input to output, for fine-tuning the last N and for layer-wise learning rates.
    freeze_batch_norm: keep the stored statistics of batch norms while training, as small batches distort them.
    """

    backbone: Any

    def __init__(self, spec: str, backbone: nn.Module, blocks: list[nn.Module], preprocess: Preprocess) -> None:
        super().__init__()
        self.spec, self.preprocess = spec, preprocess
        self.backbone = backbone.to(memory_format=torch.channels_last)  # twice as fast for convolutions
        self.freeze_batch_norm = True
        names = {id(module): name for name, module in backbone.named_modules()}
        self._block_names = [names[id(block)] for block in blocks]
        self.dim, self.gflop = _measure(spec, backbone, preprocess.size)
        self.parts = backbone.parts if isinstance(backbone, Stages) else [self.dim]  # widths of what is side by side
        self.eval()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Preprocess and encode uint8 (B, 3, H, W) to (B, dim); under autocast the dtype is autocast's."""
        return self.backbone(self.preprocess(pictures))

    @property
    def name(self) -> str:
        """The spec without this machine's folders."""
        spec = self.spec.removesuffix(paths.STAGES)
        kind, colon, rest = spec.partition(":")
        rest = rest.partition("@")[0]
        short = kind + colon + (Path(rest).name if kind == "hf" and Path(rest).is_dir() else rest)
        return short + self.spec[len(spec) :]

    @property
    def last_layer(self) -> Encoder | None:
        """The encoder of the last layer alone, with whose features those of all stages begin; None for any other."""
        if not isinstance(self.backbone, Stages):
            return None
        blocks = [name.removeprefix("backbone.") for name in self._block_names]
        inner = self.backbone.backbone
        plain = self.spec.removesuffix(paths.STAGES)
        return Encoder(plain, inner, [inner.get_submodule(name) for name in blocks], self.preprocess)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks from input to output."""
        return [self.backbone.get_submodule(name) for name in self._block_names]

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters in groups from input to output: before the blocks, one group per block, after them.

        The mask token of masked pretraining is in no group, as it would never get a gradient.
        """
        groups: list[list[nn.Parameter]] = [[] for _ in range(len(self._block_names) + 2)]
        last = 0
        for name, parameter in self.backbone.named_parameters():
            inside = [i for i, block in enumerate(self._block_names, 1) if name.startswith(f"{block}.")]
            last = inside[0] if inside else -1 if last else 0
            if not name.endswith("mask_token"):
                groups[last].append(parameter)
        return groups

    def train_last(self, n_blocks: int | None) -> list[list[nn.Parameter]]:
        """Make only the last `n_blocks` blocks and the layers after them trainable (None: all).

        Returns the trainable parameters, grouped as by `layers()`, without empty groups.
        """
        groups = self.layers()
        if n_blocks is not None:
            groups = groups[max(1, len(groups) - 1 - n_blocks) :]
        self.backbone.requires_grad_(False)
        for group in groups:
            for parameter in group:
                parameter.requires_grad_(True)
        return [group for group in groups if group]

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass: a tenth of the memory for 23 % more computation."""
        try:
            self.backbone.set_grad_checkpointing(True)
        except AssertionError as error:
            raise KitError(f"encoder {self.spec!r} cannot checkpoint its activations: {error}") from error

    def train(self, mode: bool = True) -> Encoder:
        """Set the training mode, except for frozen batch norms."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @property
    def weights_digest(self) -> str:
        """A checksum of the present weights, 16 hex characters; it takes 1 s for ViT-L."""
        state = sorted(self.backbone.state_dict().items())
        parts = ((name, tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()) for name, tensor in state)
        return storage.digest(*(part for pair in parts for part in pair))


def load(spec: str, image_size: int | None = None) -> Encoder:
    """Load an encoder by name, in eval mode on the CPU.

    image_size: px of its square input (default: its own); position embeddings are interpolated. Raises KitError for an
    unknown name, weights that do not fit, or a size that the encoder cannot take.

    >>> load("tiny").dim
    672
    """
    plain = spec.removesuffix(paths.STAGES)
    kind, _, name = plain.partition(":")
    makers = {"timm": backbones.timm_model, "hf": backbones.vision_tower}
    if plain != "tiny" and not (kind in makers and name):
        raise KitError(f"encoder {shown(spec)}: {ALLOWED}")
    if image_size and image_size < SMALLEST:
        raise KitError(f"image_size: expected {SMALLEST} px or more, or 0 for the encoder's own; got {image_size}")
    with torch.random.fork_rng(devices=[]):  # initial weights must not advance the caller's generator
        parts = backbones.tiny(image_size) if plain == "tiny" else makers[kind](name, image_size)
    backbone, blocks, preprocess = parts
    licences.tell(plain)
    return Encoder(spec, backbone if plain == spec else Stages(backbone, blocks), blocks, preprocess)


def check_trainable(spec: str) -> None:
    """Raise KitError for a name whose features are only used frozen: of all stages, or of several encoders."""
    if len(paths.joined(spec)) > 1 or spec.endswith(paths.STAGES):
        raise KitError(f"encoder {shown(spec)}: expected a single one without #stages, to be fine-tuned")


def _measure(spec: str, backbone: nn.Module, size: int) -> tuple[int, float]:
    """The number of features and the GFLOP of one picture, measured on shapes without computation."""
    state = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = torch.func.functional_call(backbone, shapes, torch.empty(1, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise KitError(f"encoder {spec!r} cannot take pictures of {size} px: {backbones.first_line(error)}") from error
    return features.shape[-1], counter.get_total_flops() / 1e9
