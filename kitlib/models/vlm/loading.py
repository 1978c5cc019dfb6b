"""Load vision-language models by name, choose their trainable weights, and save or merge adapters.

    tiny, tiny:qwen3, …         built by `tiny_model`, no download; for the sample competition and for tests
    hf:REPO_OR_FOLDER           of the transformers library: Qwen/Qwen3-VL-4B-Instruct, Qwen/Qwen3.5-4B
    tinker:NAME                 on Tinker's machines (`tinker`): one that the service offers when the run begins

LoRA (Hu et al. 2021, arXiv:2106.09685) trains the language model's projections; a fold's adapter/ holds its weights, to
be loaded onto the published model or merged into it. Without LoRA all weights are trained.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, one_line
from kitlib.models.vlm import tiny_model
from kitlib.models.vlm.config import EXPECTED, check_name
from kitlib.vision import licences

# trl and peft still call gradient checkpointing by the name that transformers has deprecated.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)

log = logging.getLogger(__name__)

ATTENTION = "q_proj|k_proj|v_proj|o_proj|in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj"  # the latter: linear
PROJECTIONS = f"{ATTENTION}|gate_proj|up_proj|down_proj"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def lora_targets(attention_only: bool = False) -> str:
    """A regular expression of LoRA's targets: the language model's projections, not its head or the vision tower.

    Those of linear attention (Qwen3.5) count as attention's.

    >>> import re
    >>> bool(re.fullmatch(lora_targets(), "model.language_model.layers.0.self_attn.q_proj"))
    True
    >>> [bool(re.fullmatch(lora_targets(), name)) for name in ("lm_head", "model.visual.blocks.0.attn.q_proj")]
    [False, False]
    """
    return rf".*language_model\.(?:.*\.)?(?:{ATTENTION if attention_only else PROJECTIONS})"


def check(name: str, four_bit: bool = False, vllm: bool = False) -> None:
    """Raise KitError for an unknown name, and for options whose libraries are not installed."""
    check_name(name)
    kind = name.partition(":")[0]
    if four_bit and not importlib.util.find_spec("bitsandbytes"):
        raise KitError("four_bit needs the library bitsandbytes: pip install bitsandbytes, or set it to False")
    if four_bit and kind in ("tiny", "tinker"):
        raise KitError(f"four_bit: expected False with {name}; got True")
    if four_bit:
        logging.getLogger("bitsandbytes").setLevel("WARNING")  # see vision/lora.py
    if vllm and not (importlib.util.find_spec("vllm") and torch.cuda.is_available()):
        raise KitError("vllm needs the library vllm and a CUDA device: pip install vllm, or set it to False")


def check_published(name: str, lora_rank: int, attention_only: bool) -> None:
    """Raise KitError for a model of the transformers library that cannot be trained here; its weights are not read."""
    import transformers as hf

    source = _source(name)
    with _readable(name):
        hf.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            config = hf.AutoConfig.from_pretrained(source, trust_remote_code=False)
            model = hf.AutoModelForImageTextToText.from_config(config)
        if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
            raise ValueError("its weights are not in .safetensors files, and no other file is opened")
    _check_architecture(name, model)
    targets = re.compile(lora_targets(attention_only))
    if lora_rank and not any(targets.fullmatch(module) for module, _ in model.named_modules()):
        raise KitError(f"lora_rank {lora_rank}: expected a model whose language_model has {PROJECTIONS}")


def load(name: str, dtype: torch.dtype | Literal["auto"], four_bit: bool = False) -> tuple[Any, Any]:
    """The published model, on the CPU or on the device that 4-bit weights need, and its processor.

    dtype: the number type of its weights, "auto" for the published one; tiny models are always float32. Raises KitError
    for a model that cannot be loaded.
    """
    check(name, four_bit)
    kind, _, rest = name.partition(":")
    if kind == "tiny":
        return tiny_model.build(rest or "qwen2.5")
    if kind == "tinker":
        raise KitError(f"model: expected tiny, tiny:qwen3 or hf:REPO_OR_FOLDER; the weights of {name} are at Tinker")
    licences.tell(name)
    return _published(rest, dtype, four_bit)


def _published(name: str, dtype: torch.dtype | Literal["auto"], four_bit: bool = False) -> tuple[Any, Any]:
    import transformers as hf

    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if four_bit:
        options["quantization_config"] = hf.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    source = _source(name)
    with _readable(name):
        processor = hf.AutoProcessor.from_pretrained(source, padding_side="left", trust_remote_code=False)
        model = hf.AutoModelForImageTextToText.from_pretrained(source, use_safetensors=True, **options)
    _check_architecture(name, model)
    if four_bit:
        _disable_packing(model)
    return model, processor


def _source(name: str) -> str:
    """The folder of a model, seen from here or from home, or its name on the hub."""
    folders = [root / Path(name).expanduser() for root in (Path(), paths.home())]
    folders += [folder] if (folder := paths.attached_weights(name)) else []
    return next((str(folder) for folder in folders if folder.is_dir()), name)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Convert what the transformers library raises for a model that it cannot read to a KitError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = one_line(error).rstrip(".")
        raise KitError(f"model hf:{name} cannot be loaded: {reason}; {EXPECTED}") from error


def _check_architecture(name: str, model: nn.Module) -> None:
    if position_module(model) is None:
        kind = type(model).__name__
        raise KitError(f"model: expected the architecture of Qwen2.5-VL, Qwen3-VL or Qwen3.5; hf:{name} is a {kind}")


def _disable_packing(model: nn.Module) -> None:
    """Stop bitsandbytes from packing 4-bit weights for AVX512-BF16, so that every CPU computes the same.

    On such a CPU a layer is packed at its first pass without gradients. A packed layer never has a gradient again, and
    accepts only matrices of complete blocks.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def position_module(model: nn.Module) -> Any:
    """The part of a model with positions in time, height and width, as in Qwen; None for other models."""
    return next((part for part in model.modules() if hasattr(part, "rope_deltas")), None)


def adapt(model: Any, rank: int, attention_only: bool = False) -> Any:
    """The model with LoRA of that rank as its only trainable weights; rank 0 returns the model unchanged.

    Raises KitError for a model whose language model has no projections of these names.
    """
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=lora_targets(attention_only), task_type="CAUSAL_LM")
    reached, all_of_them = lora_reach(model, attention_only)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise KitError(f"lora_rank {rank}: expected a model whose language_model has {PROJECTIONS}") from error
    log.info("LoRA of rank %d on %d of the %d projections of the language model", rank, reached, all_of_them)
    return adapted


def lora_reach(model: nn.Module, attention_only: bool = False) -> tuple[int, int]:
    """The number of LoRA's targets, and of all linear layers of the language model."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and "language_model." in name]
    targets = re.compile(lora_targets(attention_only))
    return sum(targets.fullmatch(name) is not None for name in linear), len(linear)


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write the trained weights to adapter/ or model/ in `folder`, atomically."""
    kind = "adapter" if _is_adapted(model) else "model"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        new = Path(beside) / kind
        if kind == "model":
            model.save_pretrained(new)
            processor.save_pretrained(new)
        else:
            model.save_pretrained(new, selected_adapters=["default"])  # "ref" is the initial adapter of a KL term
        remove_local_paths(new)
        storage.seal(new)
        shutil.rmtree(folder / kind, ignore_errors=True)
        new.rename(folder / kind)


def remove_local_paths(folder: Path) -> None:
    """Remove this machine's folders from saved weights: the model card, the trainer's arguments, the base's folder."""
    for name in ("README.md", "training_args.bin"):  # a template with gaps; never read, not even to resume
        (folder / name).unlink(missing_ok=True)
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            if Path(base := content.get(key) or "").is_dir():
                (folder / name).write_text(json.dumps(content | {key: Path(base).name}, indent=2) + "\n")


def saved(folder: Path) -> Path | None:
    """The folder of a fold's trained weights; None before they are saved."""
    return next((folder / kind for kind in ("adapter", "model") if (folder / kind).is_dir()), None)


def reload(
    name: str,
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    *,
    four_bit: bool = False,
    trainable: bool = False,
) -> tuple[Any, Any]:
    """The trained model of a fold and its processor; trainable: for further training.

    dtype: of the frozen weights below an adapter; trained weights are float32, as they were saved. Raises KitError for
    a folder without saved weights.
    """
    if name.startswith("tinker:"):
        return load(name, dtype)  # which refuses it
    path = saved(folder)
    if path is None:
        raise KitError(f"{paths.relative(folder)} holds no trained model yet: train it to the end first")
    storage.check_seal(path, f"delete {paths.relative(folder)} and train that fold again")
    if path.name == "model":
        return _published(str(path), torch.float32)
    from peft import PeftModel

    model, processor = load(name, dtype, four_bit)
    adapted = PeftModel.from_pretrained(model, path, is_trainable=trainable)
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path  # or peft asks the hub for a folder
    return adapted, processor


def merge(name: str, folder: Path, out: Path) -> Path:
    """Write the model of a fold with its adapter merged to `out`, in the format of transformers and vLLM.

    The weights have the published number type on every machine. Raises KitError for a folder without saved weights, and
    for an `out` that exists.
    """
    if out.exists():
        raise KitError(f"out: expected a new folder for the merged model; {out.name} exists")
    model, processor = reload(name, folder, "auto")
    model = model.merge_and_unload() if _is_adapted(model) else model
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merging-") as beside:
        model.save_pretrained(Path(beside) / "merged")
        processor.save_pretrained(Path(beside) / "merged")
        remove_local_paths(Path(beside) / "merged")
        storage.seal(Path(beside) / "merged")
        (Path(beside) / "merged").rename(out)
    return out


def suppressed_tokens(tokenizer: Any) -> list[int]:
    """The picture tokens, which a reply must not contain: the next pass would expect a picture for each."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in VISION if token in vocabulary]


def count_weights(model: nn.Module) -> tuple[int, int]:
    """The number of trainable weights, and of all weights."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def _is_adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)
