"""LoRA on the attention projections of a transformer (Hu et al. 2021, arXiv:2106.09685): add and merge adapters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from kitlib.core.errors import KitError

if TYPE_CHECKING:
    from kitlib.vision.encoders import Encoder

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value", "o_proj"]  # in transformers' towers


# peft imports bitsandbytes, which warns there of a kernel for 4-bit weights that no encoder here has.
logging.getLogger("bitsandbytes").setLevel("ERROR")


def add(encoder: Encoder, rank: int) -> list[list[nn.Parameter]]:
    """Freeze `encoder` and add trainable low-rank updates to its attention projections, grouped as by `Encoder.layers`.

    Raises KitError for an encoder without such projections, such as timm's and the tiny one.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets(encoder, rank))
    inject_adapter_in_model(config, encoder.backbone)
    learning = ([parameter for parameter in layer if parameter.requires_grad] for layer in encoder.layers())
    return [layer for layer in learning if layer]


def targets(encoder: Encoder, rank: int) -> list[str]:
    """The names of an encoder's attention projections. Raises KitError if it has none."""
    names = {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    if not (found := sorted(names.intersection(PROJECTIONS))):
        raise KitError(
            f"lora_rank {rank}: expected an hf: encoder with attention projections named as in the transformers "
            f"library; got {encoder.spec!r}; lora_rank 0 trains the blocks themselves"
        )
    return found


def merge(encoder: Encoder) -> list[str]:
    """Add the updates to the weights, which restores the encoder's structure; return the names of these weights."""
    from peft.tuners.lora.layer import LoraLayer

    adapted = [(name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        parent, _, child = name.rpartition(".")
        module.merge()
        setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    return [f"{name}.weight" for name, _ in adapted]
