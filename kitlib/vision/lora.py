"""LoRA on the attention projections of a transformer (Hu et al. 2021, arXiv:2106.09685), and back to plain weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kitlib.core.errors import KitError

if TYPE_CHECKING:
    from kitlib.vision.encoders import Encoder

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value", "o_proj"]  # in transformers' towers


def add(encoder: Encoder, rank: int) -> list[list[nn.Parameter]]:
    """Freeze `encoder` but for new low-rank updates of its attention projections, which come as by `Encoder.layers`.

    Raises KitError for an encoder without such projections: timm's and the tiny one, which train their blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(names.intersection(PROJECTIONS))
    if not targets:
        raise KitError(
            f"lora_rank {rank}: encoder {encoder.spec!r} has no attention projections by the names of the transformers "
            "library; allowed are hf: encoders, or lora_rank 0 to train the blocks themselves"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder.backbone)
    learning = ([parameter for parameter in layer if parameter.requires_grad] for layer in encoder.layers())
    return [layer for layer in learning if layer]


def merge(encoder: Encoder) -> list[str]:
    """Add the updates to the weights, so that the encoder is built as before, and return those weights' names."""
    from peft.tuners.lora.layer import LoraLayer

    adapted = [(name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        parent, _, child = name.rpartition(".")
        module.merge()
        setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    return [f"{name}.weight" for name, _ in adapted]
