"""The settings that all families with an encoder share; without torch, so that they are checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kitlib.core.checks import names
from kitlib.core.errors import KitError
from kitlib.core.settings import LARGEST_PICTURE, Names, Settings

CROPS = ("centre", "bottomless")  # those of vision/augment.py, which imports torch


def crop_names(text: str) -> list[str]:
    """The crops in a text with commas. Raises KitError for an unknown one."""
    found = names("crops", text)
    if unknown := [name for name in found if name not in CROPS]:
        raise KitError(f"crops: expected some of {', '.join(CROPS)}; got {', '.join(unknown)}")
    return found


@dataclass(frozen=True)
class EncoderOptions(Settings):
    """What all families with an encoder can be set to; a family's Config inherits it."""

    encoder: str = "hf:geolocal/StreetCLIP"  # tiny, timm:NAME, timm:NAME@WEIGHTS or hf:REPO_OR_FOLDER
    image_size: int = 0  # px of the square that the encoder sees; 0: its own
    mirror: bool = True  # learn from mirrored places too, and average over both when guessing; no gain if frozen
    crops: str = ""  # centre, bottomless: parts of the pictures that guess beside the whole, if the encoder is frozen
    vary: float = 1.0  # how far light and zoom of pictures vary in training an encoder; 0: not at all
    erase: float = 0.0  # share of pictures of which a rectangle is blotted out in training an encoder
    gradient_checkpointing: bool = False  # a tenth of the activations' memory for 23 % more work
    refit: bool = False  # after the folds a model of all training places, which alone guesses the test places
    seed: int = 0  # of weights, order, dropout, augmentation and choices

    LIMITS: ClassVar = {"image_size": LARGEST_PICTURE}
    SHARES: ClassVar[Names] = ("erase",)
    PARSERS: ClassVar = {"crops": crop_names}


def learns(settings: Mapping[str, Any]) -> bool:
    """Whether an encoder with these settings of a family learns too."""
    return bool(settings.get("finetune_epochs") or settings.get("finetune"))


@dataclass(frozen=True)
class TrainingOptions(EncoderOptions):
    """How a network on an encoder is trained; what it is trained to do is for the dataclasses derived from this one."""

    view_dropout: float = 0.3  # share of views left out in training
    weight_decay: float = 0.05  # of matrices; biases, norms and other vectors have none
    warmup: float = 0.1  # share of the steps in which the rates rise; then they fall along a cosine
    finetune_blocks: int = 6  # last blocks of the encoder that learn; -1: all of it
    lora_rank: int = 0  # rank of LoRA on the attention instead (hf: encoders); 0: without
    drop_path: float = 0.0  # share of pictures for which a branch of the encoder's top block is left out in training
    finetune_rate: float = 2e-5  # learning rate of the encoder's top layer
    layer_decay: float = 0.9  # factor from each layer's rate of the encoder to the one below it

    LIMITS: ClassVar = {"lora_rank": 1024}
    SHARES: ClassVar[Names] = ("view_dropout", "warmup", "drop_path", "layer_decay")
    MINUS_ONE: ClassVar[Names] = ("finetune_blocks",)
