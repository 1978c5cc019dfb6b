"""Tinker as the kit asks it: which models it trains, which checkpoints it has, and how the cookbook renders messages.

It needs the extra `tinker` (tinker 0.38, tinker-cookbook 0.6.1), imported on first use, and TINKER_API_KEY in the
environment, where the library reads it; the kit neither stores nor writes the key.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from kitlib.core.errors import KitError, shown
from kitlib.models.vlm.tinker.environments import Renderer

T = TypeVar("T")

KEY = "TINKER_API_KEY"


def library(name: str) -> Any:
    """A module of tinker or of its cookbook. Raises KitError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        command = "in the kit's folder, pip install -e '.[tinker]' (or uv pip install)"
        raise KitError(f"{name.split('.')[0]} is not installed: {command}") from None


def check() -> None:
    """Raise KitError without the library, and without TINKER_API_KEY in the environment."""
    library("tinker")
    if not os.environ.get(KEY):
        raise KitError(
            f"{KEY} is not set: make a key in Tinker's console and put it into the environment, nowhere else"
        )


def connect() -> Any:
    """Tinker's ServiceClient. Raises KitError without the library, and without TINKER_API_KEY in the environment."""
    check()
    return library("tinker").ServiceClient()


def check_model(model: str) -> None:
    """Raise KitError for a model that the service does not train or that sees no pictures; it lists those that do."""
    check()

    async def ask() -> Any:
        return await library("tinker").RestClient().get_server_capabilities()

    offered = [one.model_name for one in _asked(ask()).supported_models if one.trainable is not False]
    seeing = sorted(name for name in offered if name and (known := _attributes(name)) and known.is_vl and known.is_chat)
    if model not in seeing:
        raise KitError(
            f"model: expected tinker: and one of the vision-language models that Tinker trains, "
            f"{', '.join(seeing) or 'now none'}; got {shown(model)}"
        )


def check_checkpoint(address: str, model: str, lora_rank: int) -> None:
    """Raise KitError for a checkpoint that does not exist, or is of another model or LoRA rank."""
    check()

    async def ask() -> Any:
        return await library("tinker").RestClient().get_weights_info_by_tinker_path(address)

    found = _asked(ask())
    for name, own, saved in (("model", model, found.base_model), ("lora_rank", lora_rank, found.lora_rank)):
        if own != saved:
            raise KitError(f"{name}: expected {saved!r} as in {address}; got {own!r}")


def _asked(question: Coroutine[Any, Any, T]) -> T:
    """The service's answer. Raises KitError with its words where it refuses."""
    try:
        return run_in_thread(question)
    except library("tinker").TinkerError as error:
        raise KitError(f"Tinker: {str(error).splitlines()[0]}") from None


def _attributes(model: str) -> Any:
    """The entry of a model in the cookbook's table, None without one."""
    table = library("tinker_cookbook.model_info")
    try:
        return table.get_model_attributes(model)
    except (KeyError, ValueError):  # ValueError: of another form of name, or its ConfigurationError
        return None


def renderer(model: str, thinking: bool = False) -> Renderer:
    """The cookbook's renderer of a vision-language model; its tokenizer comes from the hub.

    It is the first of those recommended whose replies think or not, as asked, else the first of all. Raises KitError
    without the library, and for a model without vision or that the cookbook does not know.
    """
    cookbook, tokenizers = library("tinker_cookbook.renderers"), library("tinker_cookbook.tokenizer_utils")
    images, attributes = library("tinker_cookbook.image_processing_utils"), _attributes(model)
    if attributes is None or not attributes.is_vl:
        raise KitError(f"model: expected a vision-language model that tinker-cookbook knows; got {shown(model)}")
    names = attributes.recommended_renderers
    fitting = [name for name in names if name.endswith("disable_thinking") != thinking]
    tokenizer, processor = tokenizers.get_tokenizer(model), images.get_image_processor(model)
    return cookbook.get_renderer((fitting or names)[0], tokenizer, processor, model)


def newest(folder: Path, kind: str = "sampler_path") -> str:
    """The address of the newest checkpoint of the training in `folder`, "" before the first.

    kind: sampler_path, of weights to sample from, or state_path, of weights to go on with.
    """
    saved = last_checkpoint(folder, kind)
    return "" if saved is None else saved.get(kind)


def last_checkpoint(folder: Path, kind: str) -> Any:
    """The cookbook's record of the newest checkpoint with an address of this kind, None before the first."""
    if not folder.is_dir():
        return None
    return library("tinker_cookbook.checkpoint_utils").get_last_checkpoint(str(folder), kind)


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a new thread because a notebook's own thread already runs an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
