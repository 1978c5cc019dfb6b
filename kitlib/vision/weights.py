"""Weights as .safetensors files with their settings: networks of the kit, and what an encoder has learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import nn

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.vision import lora
from kitlib.vision.encoders import Encoder


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> None:
    """Write tensors by name, and settings (plain values), to one file, atomically."""
    told = {"settings": json.dumps(settings)} if settings else None
    with storage.atomic_write(path) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata=told)


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and settings of a file by `write`, {} where it has none; KitError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get("settings", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, settings  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        told = f"{path} cannot be read ({type(error).__name__}); wanted is a whole .safetensors file of the kit's"
        raise KitError(told) from error


class Saved(nn.Module):
    """A network that goes to one file and back; `settings` holds the arguments that it was built with."""

    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write weights and settings to one .safetensors file, atomically."""
        write(path, self.tensors(), self.settings)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The network that `save` wrote, in eval mode; KitError for any other file."""
        tensors, settings = read(path)
        try:
            with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
                network = cls.built(tensors, settings)
            network.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            told = f"{path} does not fit ({type(error).__name__}); wanted is a .safetensors file by {cls.__name__}.save"
            raise KitError(told) from error
        return network.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the file holds."""
        return self.state_dict()

    @classmethod
    def built(cls, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Self:
        """A network as it is before its weights are loaded; takes those of `tensors` that are no weights out."""
        return cls(**settings)


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Merge LoRA's updates into the weights, if there are any, and write the weights that have learned, no others."""
    names = lora.merge(encoder) or [name for name, weight in encoder.named_parameters() if weight.requires_grad]
    state = encoder.state_dict()
    write(path, {name: state[name] for name in names})


def load_encoder(encoder: Encoder, path: Path) -> None:
    """Give a fresh encoder the weights that `save_encoder` wrote; KitError if they are not of such a one."""
    tensors, _ = read(path)
    state = encoder.state_dict()
    if unfit := sorted(name for name, t in tensors.items() if name not in state or state[name].shape != t.shape):
        raise KitError(
            f"{path} does not fit encoder {encoder.spec!r}: {len(unfit)} of {len(tensors)} weights are not in it or of "
            f"another shape, {unfit[0]} first; wanted is the encoder that they were trained in"
        )
    encoder.load_state_dict(tensors, strict=False)
