"""Published two-head models of the competition as runs of the kit: the weights of a `best_finetune.pt`.

Their layout: StreetCLIP's vision tower (beside the rest of CLIP, which is left out), the mean of the views, a head of
linear layers with GELU between for the states, and another for a point, tanh scaled to a box of latitudes and
longitudes. Classes are the states in the order of their state_idx.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError, shorten
from kitlib.data.places import Places
from kitlib.evaluation.guesses import Guesses
from kitlib.evaluation.runs import Run
from kitlib.models.multiview.heads import Classes, HeadOutputs, Heads
from kitlib.models.multiview.run import Config, Session
from kitlib.vision import encoders, weights
from kitlib.vision.encoders import Encoder

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

LEFT_OUT = r"text_model\.|text_projection|visual_projection|logit_scale|position_ids"  # of CLIP, and not of its tower
WRAPPERS = r"^(?:module\.|_orig_mod\.)+"
LAYER = re.compile(r"(?P<head>.+?)(?:\.(?P<place>\d+))?\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class Parts:
    """The tensors of a published file: of the vision tower, by their names in it, and of the heads."""

    tower: Tensors
    states: list[tuple[torch.Tensor, torch.Tensor]]  # weight and bias of each linear layer
    gps: list[tuple[torch.Tensor, torch.Tensor]]
    box: torch.Tensor  # (2, 2): least and greatest latitude, least and greatest longitude


class TwoHeads(weights.Saved):
    """The published heads: features (B, V, D) to `HeadOutputs` without geocells."""

    box: torch.Tensor

    def __init__(self, classes: Classes, state_widths: Sequence[int], gps_widths: Sequence[int]) -> None:
        super().__init__()
        self.classes, self.settings = classes, {"state_widths": list(state_widths), "gps_widths": list(gps_widths)}
        self.states, self.gps = _stack(state_widths), _stack(gps_widths)
        self.register_buffer("box", torch.zeros(2, 2))

    def forward(self, features: torch.Tensor, keep: torch.Tensor | None = None) -> HeadOutputs:
        """Outputs for features (B, V, D), of the views in keep (B, V) bool, of all when None; in float32."""
        with torch.autocast(features.device.type, enabled=False):
            views = features.float()
            share = torch.ones(views.shape[:2], device=views.device) if keep is None else keep.float()
            mean = (views * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp(min=1)
            low, high = self.box.T
            point = torch.deg2rad((low + high) / 2 + torch.tanh(self.gps(mean)) * (high - low) / 2)
            lat, lon = point.T
            vector = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1)
            none = views.new_zeros(len(views), 0)
            return HeadOutputs(self.states(mean), none, none[..., None].expand(-1, -1, 2), vector)

    @torch.no_grad()
    def guess(self, sample_id: np.ndarray, outputs: Sequence[HeadOutputs], n_points: int, gps_share: float) -> Guesses:
        """Guesses from the averaged outputs for B places: the states, and the one point of the GPS head."""
        probs = torch.stack([o.states.softmax(1) for o in outputs]).mean(0).cpu().numpy()
        points = geo.from_unit_vectors(torch.stack([o.gps for o in outputs]).mean(0).cpu().double().numpy())
        n = len(sample_id)
        return Guesses(sample_id, self.classes.state_idx, probs, points[:, None], np.ones((n, 1)), np.ones(n, bool))

    def tensors(self) -> Tensors:
        """The weights and the classes."""
        arrays = {name: torch.from_numpy(np.array(a, order="C")) for name, a in asdict(self.classes).items()}
        return self.state_dict() | {f"classes.{name}": tensor for name, tensor in arrays.items()}

    @classmethod
    def built(cls, tensors: Tensors, settings: dict[str, Any]) -> Self:
        """Heads for the classes among `tensors`."""
        classes = Classes(**{field.name: tensors.pop(f"classes.{field.name}").numpy() for field in fields(Classes)})
        return cls(classes, **settings)


def read(path: Path) -> Parts:
    """The parts of a published file, without executing anything in it.

    Raises KitError for another file, and for one whose weights are not all known, naming them.
    """
    state = {re.sub(WRAPPERS, "", name): tensor for name, tensor in _state(path).items()}
    tower: Tensors = {}
    layers: dict[str, dict[int, Tensors]] = {}
    box: Tensors = {}
    left = []
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        if re.search(LEFT_OUT, name):
            continue
        if "vision_model." in name:
            tower[name.rpartition("vision_model.")[2]] = tensor
        elif tensor.shape == (2,) and (axis := re.search(r"(lat|lon)\w*$", name)):
            box[axis[1]] = tensor
        elif match and tensor.ndim == (2 if match["kind"] == "weight" else 1):
            layers.setdefault(match["head"], {}).setdefault(int(match["place"] or 0), {})[match["kind"]] = tensor
        else:
            left.append(name)
    heads = {head: [by_kind[place] for place in sorted(by_kind)] for head, by_kind in layers.items()}
    chains = {head: _chain(parts) for head, parts in heads.items()}
    left += [head for head, chain in chains.items() if chain is None]
    known = {head: chain for head, chain in chains.items() if chain}
    gps = {head: chain for head, chain in known.items() if len(chain[-1][1]) == 2}
    states = {head: chain for head, chain in known.items() if head not in gps}
    expected = "expected a vision_model, a head of states, a head of 2 coordinates and its box (lat, lon)"
    if left or len(gps) != 1 or len(states) != 1 or set(box) != {"lat", "lon"} or not tower:
        what = shorten([*left, *(known if not left else [])], 8) if state else "no tensors"
        raise KitError(f"{path.name}: {expected}; not mapped: {what}")
    [state_layers], [gps_layers] = states.values(), gps.values()
    return Parts(tower, state_layers, gps_layers, torch.stack([box["lat"], box["lon"]]).float())


def load_heads(path: Path) -> Heads | TwoHeads:
    """The heads of a fold: the kit's own, or published ones."""
    return (TwoHeads if "gps_widths" in weights.read(path)[1] else Heads).load(path)


def import_weights(
    file: Path, run: str, places: Places, settings: Mapping[str, Any], encoder: Path | None = None
) -> Run:
    """A run of the family multiview, with one fold, that answers as a published model does.

    settings: of the Config; `encoder` is the model that the file was trained from, StreetCLIP by default. encoder:
    a new folder for the vision tower alone, from which training goes on by `-p encoder=hf:FOLDER`. Its score is not
    out of fold, as nobody knows here which places the model was trained on. Raises KitError for a file of another
    layout, and for places with another number of states.
    """
    if encoder is not None and encoder.exists():
        raise KitError(f"encoder: expected a new folder; {encoder.name} exists")
    read(file)  # which refuses a file before the encoder is loaded
    config = Config.from_dict({"encoder": encoders.STREETCLIP, "mirror": False, "finetune_epochs": 1, **settings})
    imported = Import.train(config, places, run, only_folds=[0], file=file)
    if encoder is not None:
        loaded = encoders.load(config.encoder, config.image_size or None)
        _fill(loaded, read(file).tower, file)
        _save_tower(loaded, encoder)
    log.info("%s: the score is that of the published weights on places that may be among those they learned from", run)
    return imported


class Import(Session):
    """A session whose fold is read from a published file."""

    OPTIONS: ClassVar = ("file",)

    @classmethod
    def check(cls, config: Config, places: Places, *args: Any, **options: Any) -> dict[str, str]:
        """Refuse a file that does not fit the places; returns its checksum."""
        file: Path = options["file"]
        states, n = places.rows("train")["state_idx"].nunique(), len(read(file).states[-1][1])
        if n != states:
            raise KitError(f"{file.name}: expected a head of the {states} states of {places.name}; it has {n}")
        return {"published weights": storage.digest(file)}

    def fit_fold(self, fold: int) -> None:
        """Write the tower and the heads in the kit's own form."""
        file, folder = self.options["file"], self.folder(fold)
        parts, encoder = read(file), self.encoder()
        _fill(encoder, parts.tower, file)
        classes = Classes.from_places(self.places, np.arange(len(self.places.rows("train"))), 10**9)
        widths = [[chain[0][0].shape[1], *(len(bias) for _, bias in chain)] for chain in (parts.states, parts.gps)]
        if widths[0][0] != encoder.dim:
            raise KitError(f"{file.name}: expected heads for {encoder.dim} features; they take {widths[0][0]}")
        heads = TwoHeads(classes, *widths)
        heads.box.copy_(parts.box)
        for stack, chain in ((heads.states, parts.states), (heads.gps, parts.gps)):
            linear = [layer for layer in stack if isinstance(layer, nn.Linear)]
            for layer, (weight, bias) in zip(linear, chain, strict=True):
                layer.load_state_dict({"weight": weight, "bias": bias})
        folder.mkdir(parents=True, exist_ok=True)
        heads.save(folder / "heads.safetensors")
        weights.save_encoder(encoder, folder / "encoder.safetensors")

    def metrics(self) -> dict[str, Any]:
        """That the score is not out of fold."""
        return {"imported": f"{self.options['file'].name}: its training places are unknown, so no score is out of fold"}


def _state(path: Path) -> Tensors:
    """The state dict in a file, by itself or as an entry of a checkpoint."""
    if not path.is_file():
        raise KitError(f"{path.name}: expected a file of weights such as best_finetune.pt; there is none")
    if path.suffix == ".safetensors":
        return weights.read_file(path)[0]
    scalar = np.float64(0).__reduce__()[0]  # a checkpoint's metrics are often numpy's numbers
    kinds: list[Any] = [np.dtype, *{type(np.dtype(code)) for code in "?ilqfd"}, scalar]
    kinds.append((scalar, "numpy.core.multiarray.scalar"))  # their name before numpy 2
    try:
        with torch.serialization.safe_globals(kinds):
            # mapped, as the optimizer's state takes twice the room of the weights
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or foreign file fails in any of a dozen ways
        code = re.search("unsupported (global|class)", str(error), re.IGNORECASE)
        reason = "it holds more than tensors and plain values" if code else type(error).__name__
        raise KitError(f"{path.name}: expected a checkpoint that torch loads with weights_only; {reason}") from error
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise KitError(f"{path.name}: expected tensors by name; got a {type(content).__name__}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _chain(layers: list[Tensors]) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Weights and biases of linear layers, each of which takes what the one before gives; None for anything else."""
    if any(set(layer) != {"weight", "bias"} or layer["weight"].ndim != 2 for layer in layers):
        return None
    chain = [(layer["weight"].float(), layer["bias"].float()) for layer in layers]
    fits = all(a.shape[0] == b.shape[1] for (a, _), (b, _) in pairwise(chain))
    return chain if fits else None


def _stack(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from the first width to the last, with GELU between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.GELU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


def _fill(encoder: Encoder, tower: Tensors, file: Path) -> None:
    """Load the weights of a vision tower. Raises KitError naming those that are missing, left over or misshapen."""
    expected = encoder.backbone.state_dict()
    names = {re.sub(r"^(?:tower\.)?(?:vision_model\.)?", "", name): name for name in expected}
    state = {names.get(name, name): tensor.to(torch.float32) for name, tensor in tower.items()}
    optional = [name for name in expected if name.endswith("position_ids")]
    if fault := weights.misfit(expected, state, optional=optional):
        raise KitError(f"{file.name}: the vision tower does not fit encoder {encoder.name!r}: {fault}")
    encoder.backbone.load_state_dict(state, strict=False)


def _save_tower(encoder: Encoder, folder: Path) -> None:
    """Write a vision tower and its preprocessing as the transformers library reads them."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(encoder.backbone.tower.name_or_path)
    beside = folder.with_name(f".{folder.name}.new")
    encoder.backbone.tower.save_pretrained(beside)
    processor.save_pretrained(beside)
    beside.rename(folder)
