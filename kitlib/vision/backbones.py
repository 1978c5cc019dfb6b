"""The sources of encoders: this kit, timm, and the transformers library.

Each function returns the network from normalised pixels (B, 3, size, size) to features (B, D), its repeated blocks from
input to output, and the preprocessing of its own configuration.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.vision import weights as weight_files
from kitlib.vision.preprocess import Preprocess

Parts = tuple[nn.Module, list[nn.Module], Preprocess]

TOWERS = {  # model_type in config.json: class of the vision tower, arguments that let it interpolate its positions
    "clip": ("CLIPVisionModel", {"interpolate_pos_encoding": True}),
    "clip_vision_model": ("CLIPVisionModel", {"interpolate_pos_encoding": True}),
    "siglip": ("SiglipVisionModel", {"interpolate_pos_encoding": True}),
    "siglip_vision_model": ("SiglipVisionModel", {"interpolate_pos_encoding": True}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "dinov3_vit": ("DINOv3ViTModel", {}),
}


def tiny(image_size: int | None) -> Parts:
    """The kit's own tiny encoder."""
    from kitlib.vision.tiny_encoder import Tiny

    backbone = Tiny()
    size = image_size or 96
    return backbone, list(backbone.blocks), Preprocess(size=size, resize=size, std=(0.25, 0.25, 0.25))


def timm_model(name: str, image_size: int | None) -> Parts:
    """A timm model without its classifier: NAME, NAME@WEIGHTS or NAME?option=value&option=value@WEIGHTS."""
    import timm
    from timm.data import resolve_data_config

    spec = f"timm:{name}"
    name, _, weights = name.partition("@")
    name, _, query = name.partition("?")
    weights = weights or str(paths.attached_weights(name) or "")
    state, notes = weight_files.read_file(_find_weights(spec, weights)) if weights else ({}, {})
    options = _options(spec, notes.get("create_kwargs", "").split(",")) | _options(spec, query.split("&"))
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise KitError(f"encoder {spec!r}: expected a model of timm, such as {similar}; got {name!r}")
    model: Any
    try:
        model = timm.create_model(name, pretrained=not weights, num_classes=0, **options)
    except TypeError as error:
        raise KitError(f"encoder {spec!r} with options {options}: {error}") from error
    except Exception as error:  # a refusing proxy, a model without published weights, and more
        raise KitError(
            f"encoder {spec!r}: its weights could not be loaded ({type(error).__name__}: {first_line(error)}); "
            f"without the internet, name a file: timm:{name}@WEIGHTS.safetensors"
        ) from error
    cfg = model.pretrained_cfg
    if weights:
        _load_state(spec, model, state, classifiers=np.atleast_1d(cfg.get("classifier") or []).tolist())
    data = resolve_data_config(_options(spec, notes.get("norm", "").split(), to_tuple=True), pretrained_cfg=cfg)
    size = data["input_size"][-1]
    preprocess = Preprocess(
        size=size,
        resize=math.floor(size / data["crop_pct"]),
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
        squash=data["crop_mode"] == "squash",
    )
    if image_size and image_size != size:
        preprocess = preprocess.at(image_size)
        if cfg.get("fixed_input_size"):
            try:
                model.set_input_size(img_size=(image_size, image_size))
            except (AssertionError, AttributeError) as error:
                raise KitError(f"encoder {spec!r} cannot take pictures of {image_size} px: {error}") from error
    children = dict(model.named_children())
    containers = [children[name] for name in ("blocks", "stages", "layers") if name in children]
    blocks = [block for container in containers for block in container.children()]
    blocks = blocks or [child for name, child in children.items() if re.fullmatch(r"layer\d+", name)]  # ResNet
    return model, blocks, preprocess


def _options(spec: str, texts: list[str], to_tuple: bool = False) -> dict[str, Any]:
    """Parse `name=value` texts to keyword arguments; a value is a Python literal or else a string."""
    options: dict[str, Any] = {}
    for name, equals, value in (text.partition("=") for text in texts if text):
        if not equals:
            raise KitError(f"encoder {spec!r}: expected option=value, joined by &; got {name!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
        if to_tuple:
            options[name] = (options[name],)
    return options


def _find_weights(spec: str, weights: str) -> Path:
    """The path of a weights file, or of model.safetensors in a folder. Raises KitError if there is none."""
    named = Path(weights).expanduser()
    files = [root / named for root in (Path(), paths.home())]
    files += [folder / named.name, folder] if (folder := paths.attached_weights(weights)) else []
    candidates = files + [file / "model.safetensors" for file in files]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        tried = ", ".join(str(path) for path in dict.fromkeys(candidates))
        raise KitError(f"encoder {spec!r}: no weights found; looked for {tried}. A run keeps only their name: "
                       "say where they are with -p encoder=timm:NAME@FILE")  # fmt: skip
    return path


def _load_state(spec: str, model: nn.Module, state: dict[str, torch.Tensor], classifiers: list[str]) -> None:
    """Load weights. Raises KitError if one is missing, or one that is not the classifier's is left over."""
    expected = model.state_dict()
    state = {k: v for k, v in state.items() if k in expected or not k.startswith(tuple(f"{c}." for c in classifiers))}
    counters = [name for name in expected if name.endswith("num_batches_tracked")]
    if fault := weight_files.misfit(expected, state, optional=counters):
        raise KitError(f"encoder {spec!r}: the weights do not fit the model: {fault}")
    model.load_state_dict(state, strict=False)


class _Tower(nn.Module):
    """Wrap a vision tower of the transformers library: pixels (B, 3, H, W) to pooled features (B, D)."""

    def __init__(self, tower: Any, options: dict[str, bool]) -> None:
        super().__init__()
        self.tower, self.options = tower, options

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values=pixels, **self.options).pooler_output

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.tower.gradient_checkpointing_enable({"use_reentrant": False})


def vision_tower(name: str, image_size: int | None) -> Parts:
    """Load the vision tower of a repository on the Hugging Face hub or of a folder, and none of its other weights."""
    import transformers

    spec = f"hf:{name}"
    folders = [root / Path(name).expanduser() for root in (Path(), paths.home())]
    folders += [folder] if (folder := paths.attached_weights(name)) else []
    name = next((str(folder) for folder in folders if folder.is_dir()), name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).is_dir():
        raise KitError(f"encoder {spec!r}: no folder found; looked for {', '.join(map(str, dict.fromkeys(folders)))}")
    with _quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
            if config.model_type not in TOWERS:
                raise KitError(f"encoder {spec!r}: expected one of {', '.join(TOWERS)}; got a {config.model_type!r}")
            tower_class, options = TOWERS[config.model_type]
            tower, report = getattr(transformers, tower_class).from_pretrained(
                name,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below by name
            )
        except KitError:
            raise
        except Exception as error:  # a damaged, foreign or unsafe file fails in many ways
            raise KitError(
                f"encoder {spec!r} could not be loaded ({first_line(error)}); expected a repository of the Hugging "
                "Face hub or a folder with config.json, preprocessor_config.json and model.safetensors"
            ) from error
    if unfit := {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}:
        first = ", ".join(sorted(unfit)[:3])
        raise KitError(f"encoder {spec!r}: {len(unfit)} weights are missing or of another shape ({first})")
    preprocess = _hugging_face_preprocess(processor)
    if image_size and image_size % tower.config.patch_size:
        raise KitError(
            f"image_size: {spec!r} takes multiples of its {tower.config.patch_size} px patch; got {image_size}"
        )
    # The longest list of modules is the list of transformer blocks, in every version of the library.
    blocks = max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)
    return _Tower(tower, options), list(blocks), preprocess.at(image_size or preprocess.size)


def _hugging_face_preprocess(processor: dict[str, Any]) -> Preprocess:
    """The preprocessing in preprocessor_config.json as the library reads it (sizes are one number in older files)."""
    squash = "height" in processor["size"]
    resize = processor["size"]["height" if squash else "shortest_edge"]
    return Preprocess(
        size=processor["crop_size"]["height"] if processor.get("do_center_crop") else resize,
        resize=resize,
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
        interpolation={2: "bilinear", 3: "bicubic"}.get(int(processor["resample"]), str(processor["resample"])),
        squash=squash,
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the library's report on the text weights, which are left out on purpose."""
    from transformers.utils import logging as library

    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        library.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    return str(error).strip().partition("\n")[0]
