"""Read and write weight files: networks of the kit with their settings, trained encoder weights, published weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import safe_open, save_file
from torch import nn

from kitlib.core import storage
from kitlib.core.errors import Damaged, KitError
from kitlib.vision import lora

MEND = "delete the folder that it lies in and train that fold again"

if TYPE_CHECKING:
    from kitlib.vision.encoders import Encoder


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> None:
    """Write tensors by name, with settings of plain values, to one file, atomically."""
    metadata = {"settings": json.dumps(settings)} if settings else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata["checksum"] = _checksum(tensors, metadata)
    with storage.atomic_write(path) as beside:
        save_file(tensors, beside, metadata=metadata)


def read_file(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors by name, on the CPU, and metadata of a .safetensors or .pth file, without executing its content.

    A .pth file has no metadata; a single tensor in it gets the name "". Raises KitError for any other file.
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
    """Read tensors and settings ({} if none) of a file by `write`.

    Raises KitError if it cannot be read, Damaged if it is not as it was written; an earlier kit's has no checksum.
    """
    tensors, metadata = read_file(path)
    if (checksum := metadata.get("checksum")) and checksum != _checksum(tensors, metadata):
        raise Damaged(f"{storage.place(path)}: expected the weights as they were written; got others: {MEND}")
    with storage.reading(path, "weights with their settings", MEND):
        return tensors, json.loads(metadata.get("settings", "{}"))


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """A checksum of tensors by name, and of the settings."""
    checksum = zlib.crc32(metadata.get("settings", "").encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def misfit(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], optional: Iterable[str] = ()
) -> str:
    """Describe how the weights `state` differ from the expected ones, "" if they fit.

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
    """A network that can be saved to one file; `settings` holds the arguments of its construction."""

    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write weights and settings to one .safetensors file, atomically."""
        write(path, self.tensors(), self.settings)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a network written by `save`, in eval mode. Raises KitError for any other file."""
        tensors, settings = read(path)
        try:
            with torch.random.fork_rng(devices=[]):  # random weights are overwritten below
                network = cls.built(tensors, settings)
            network.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"expected a .safetensors file by {cls.__name__}.save; got {type(error).__name__}"
            raise KitError(f"{path} does not fit: {reason}") from error
        return network.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors to save."""
        return self.state_dict()

    @classmethod
    def built(cls, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Self:
        """Build the network before its weights are loaded; a subclass may pop further tensors."""
        return cls(**settings)


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Merge LoRA updates, if any, and write only the weights that were trained."""
    names = lora.merge(encoder) or [name for name, weight in encoder.named_parameters() if weight.requires_grad]
    state = encoder.state_dict()
    write(path, {name: state[name] for name in names})


def load_encoder(encoder: Encoder, path: Path) -> None:
    """Load weights written by `save_encoder`. Raises KitError if they do not fit the encoder."""
    tensors, _ = read(path)
    expected = encoder.state_dict()
    if fault := misfit(expected, tensors, optional=expected):
        raise KitError(
            f"{path} does not fit encoder {encoder.spec!r}: expected weights that were trained in it; "
            f"got {len(tensors)}, of which {fault}"
        )
    encoder.load_state_dict(tensors, strict=False)
