"""Read and write weight files: networks of the kit with their settings, trained encoder weights, published weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import safe_open, save_file
from torch import nn

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.vision import lora

if TYPE_CHECKING:
    from kitlib.vision.encoders import Encoder


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> None:
    """Write tensors by name, and settings (plain values), to one file, atomically."""
    metadata = {"settings": json.dumps(settings)} if settings else None
    with storage.atomic_write(path) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata=metadata)


def read_file(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and metadata of a .safetensors or .pth file; nothing in it is executed.

    A .pth file has no metadata; a tensor that is alone in it gets the name "". Raises KitError for any other file.
    """
    try:
        if Path(path).suffix == ".pth":
            content = torch.load(path, map_location="cpu", weights_only=True)
            tensors = {"": content} if isinstance(content, torch.Tensor) else dict(content)
            if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
                raise TypeError("not all of it are tensors")
            return tensors, {}
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a damaged or foreign file fails in any of a dozen ways
        reason = f"expected a whole .safetensors or .pth file of tensors by name; got {type(error).__name__}"
        raise KitError(f"{path} cannot be read as weights: {reason}") from error


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and settings, {} if it has none, of a file by `write`; KitError if it cannot be read."""
    tensors, metadata = read_file(path)
    return tensors, json.loads(metadata.get("settings", "{}"))


def misfit(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], optional: Iterable[str] = ()
) -> str:
    """What is wrong with the weights `state` in place of the expected ones, "" if nothing.

    >>> misfit({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(3), "c": torch.zeros(2)}, optional="b")
    '1 unknown (c), 1 of another shape (a)'
    """
    shared = expected.keys() & state.keys()
    faults = {
        "missing": expected.keys() - shared - set(optional),
        "unknown": state.keys() - shared,
        "of another shape": {name for name in shared if state[name].shape != expected[name].shape},
        "not finite": {name for name in shared if not bool(torch.isfinite(state[name]).all())},
    }
    return ", ".join(
        f"{len(names)} {fault} ({', '.join(sorted(names)[:3])})" for fault, names in faults.items() if names
    )


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
            reason = f"expected a .safetensors file by {cls.__name__}.save; got {type(error).__name__}"
            raise KitError(f"{path} does not fit: {reason}") from error
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
    expected = encoder.state_dict()
    if fault := misfit(expected, tensors, optional=expected):
        raise KitError(
            f"{path} does not fit encoder {encoder.spec!r}: expected weights that were trained in it; "
            f"got {len(tensors)}, of which {fault}"
        )
    encoder.load_state_dict(tensors, strict=False)
