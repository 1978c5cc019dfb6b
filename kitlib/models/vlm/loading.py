"""Vision-language models by name, what of them learns, and where that is kept.

    tiny, tiny:qwen3            made here (`tiny_vlm`), no download; for the sample competition and for tests
    hf:REPO_OR_FOLDER           of the transformers library: Qwen/Qwen2.5-VL-3B-Instruct, Qwen/Qwen3-VL-4B-Instruct
    tinker:NAME                 on Tinker's machines (`vlm_remote`): Qwen/Qwen3-VL-30B-A3B-Instruct

With LoRA (Hu et al. 2021, arXiv:2106.09685) the projections of the language model learn, and adapter/ of a fold holds
what they learned, to be loaded onto the published model or merged into it. Without it the whole model learns.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kitlib.core import paths
from kitlib.core.errors import KitError
from kitlib.models.vlm import tiny_model

# trl and peft still call gradient checkpointing by the name that transformers has deprecated.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)

QWEN = "hf:Qwen/Qwen2.5-VL-3B-Instruct"
ALLOWED = "allowed are tiny, tiny:qwen3, hf:REPO_OR_FOLDER and tinker:NAME"
PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def targets(attention_only: bool = False) -> str:
    """What LoRA adapts, as a regular expression: the language model's projections, never its head or the vision tower.

    >>> import re
    >>> bool(re.fullmatch(targets(), "model.language_model.layers.0.self_attn.q_proj"))
    True
    >>> [bool(re.fullmatch(targets(), name)) for name in ("lm_head", "model.visual.blocks.0.attn.q_proj")]
    [False, False]
    """
    names = "q_proj|k_proj|v_proj|o_proj" if attention_only else PROJECTIONS
    return rf".*language_model\.(?:.*\.)?(?:{names})"


def check(name: str, four_bit: bool = False, vllm: bool = False) -> None:
    """Raise KitError for a name that stands for no model, and for options whose libraries are not installed."""
    kind, _, rest = name.partition(":")
    if not (name == "tiny" or (kind == "tiny" and rest in tiny_model.KINDS) or (kind in ("hf", "tinker") and rest)):
        raise KitError(f"vision-language model {name!r}: {ALLOWED}")
    if four_bit and not importlib.util.find_spec("bitsandbytes"):
        raise KitError("four_bit needs the library bitsandbytes: pip install bitsandbytes, or leave it False")
    if four_bit and kind in ("tiny", "tinker"):
        raise KitError(f"four_bit with {name}: allowed is False")
    if vllm and not (importlib.util.find_spec("vllm") and torch.cuda.is_available()):
        raise KitError("vllm needs the library vllm and a CUDA device: pip install vllm, or leave it False")


def load(name: str, dtype: torch.dtype | Literal["auto"], four_bit: bool = False) -> tuple[Any, Any]:
    """The model as it was published, on the CPU or wherever 4-bit weights must be, and its processor.

    dtype: the number type of its weights, "auto" for the one they were published in; tiny models are float32 in any
    case. Raises KitError for a model that cannot be had.
    """
    check(name, four_bit)
    kind, _, rest = name.partition(":")
    if kind == "tiny":
        return tiny_model.build(rest or "qwen2.5")
    if kind == "tinker":
        raise KitError(f"the weights of {name} are at Tinker: allowed here are tiny, tiny:qwen3 and hf:REPO_OR_FOLDER")
    return _published(rest, dtype, four_bit)


def _published(name: str, dtype: torch.dtype | Literal["auto"], four_bit: bool = False) -> tuple[Any, Any]:
    import transformers as hf

    options: dict[str, Any] = {"dtype": dtype}
    if four_bit:
        options["quantization_config"] = hf.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        processor = hf.AutoProcessor.from_pretrained(name, padding_side="left")
        model = hf.AutoModelForImageTextToText.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise KitError(f"vision-language model hf:{name} cannot be had: {reason}; {ALLOWED}") from error
    if positions(model) is None:
        raise KitError(
            f"hf:{name} is a {type(model).__name__}: allowed are models built as Qwen2.5-VL and Qwen3-VL are"
        )
    if four_bit:
        _never_pack(model)
    return model, processor


def _never_pack(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for AVX512-BF16, so that they compute alike on every CPU.

    On such a CPU a layer is packed when it first computes without gradients. The packed product has no gradient, in
    later steps of training either, and it takes only matrices of whole blocks.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def positions(model: nn.Module) -> Any:
    """The part of a model that counts positions in time, height and width, as Qwen's do; None where there is none."""
    return next((part for part in model.modules() if hasattr(part, "rope_deltas")), None)


def adapt(model: Any, rank: int, attention_only: bool = False) -> Any:
    """The model with LoRA of that rank, the only weights that learn; rank 0 leaves it as it is, and all weights learn.

    Raises KitError for a model whose language model has no projections by these names.
    """
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets(attention_only), task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise KitError(f"lora_rank {rank}: this model has no language_model with {PROJECTIONS}") from error


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write what was learned to adapter/ or model/ in `folder`: all of it appears at once."""
    kind = "adapter" if _is_adapted(model) else "model"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        new = Path(beside) / kind
        if kind == "model":
            model.save_pretrained(new)
            processor.save_pretrained(new)
        else:
            model.save_pretrained(new, selected_adapters=["default"])  # "ref" is what it began with
        (new / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
        _forget_machine(new / "adapter_config.json")
        shutil.rmtree(folder / kind, ignore_errors=True)
        new.rename(folder / kind)


def _forget_machine(config: Path) -> None:
    """Keep folders of this machine out of an adapter's config."""
    if config.is_file():
        import json

        content = json.loads(config.read_text())
        base = content.get("base_model_name_or_path") or ""
        content["base_model_name_or_path"] = Path(base).name if Path(base).is_dir() else base
        config.write_text(json.dumps(content, indent=2) + "\n")


def saved(folder: Path) -> Path | None:
    """Where in a fold's folder what was learned is; None where nothing is yet."""
    return next((folder / kind for kind in ("adapter", "model") if (folder / kind).is_dir()), None)


def reload(
    name: str,
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    *,
    four_bit: bool = False,
    learn: bool = False,
) -> tuple[Any, Any]:
    """The model of a fold with what was learned, and its processor; learn: to be trained on.

    dtype: of the frozen weights below an adapter; weights that have learned are float32, as they were saved. Raises
    KitError for a folder where nothing was saved.
    """
    if name.startswith("tinker:"):
        return load(name, dtype)  # which says that nothing is here
    found = saved(folder)
    if found is None:
        raise KitError(f"{paths.relative(folder)} holds no trained model yet: train it to the end first")
    if found.name == "model":
        return _published(str(found), torch.float32)
    from peft import PeftModel

    model, processor = load(name, dtype, four_bit)
    adapted = PeftModel.from_pretrained(model, found, is_trainable=learn)
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path  # or peft asks the hub for a folder
    return adapted, processor


def merge(name: str, folder: Path, out: Path) -> Path:
    """Write the model of a fold with its adapter merged into the weights to `out`, as transformers and vLLM load it.

    The weights are in the number type that the model was published in, whatever machine merges them. Raises KitError
    where nothing was saved, and for an `out` that exists.
    """
    if out.exists():
        raise KitError(f"{out.name} exists: give a new folder for the merged model")
    model, processor = reload(name, folder, "auto")
    model = model.merge_and_unload() if _is_adapted(model) else model
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merging-") as beside:
        model.save_pretrained(Path(beside) / "merged")
        processor.save_pretrained(Path(beside) / "merged")
        (Path(beside) / "merged").rename(out)
    return out


def silent_tokens(tokenizer: Any) -> list[int]:
    """The tokens that stand for pictures, which a reply must not contain: the next pass would look for a picture."""
    known = tokenizer.get_vocab()
    return [known[token] for token in VISION if token in known]


def n_learning(model: nn.Module) -> tuple[int, int]:
    """How many weights learn, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)


def _is_adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)
