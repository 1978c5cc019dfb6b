"""Build a tiny vision-language model with Qwen's architecture and random weights, without a download.

It cannot even write before `vlm.train` with method "sft" teaches it, as it teaches a real model. Its vocabulary has the
words of the kit's questions and, like Qwen's, one token per digit, so that parsing, suppression, masking and merging
work as with the real model. It comes in three generations: Qwen2.5-VL, Qwen3-VL and Qwen3.5. The last has linear
attention in every second layer (the published one in three of four), and its template opens or closes a thought.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from kitlib.core.errors import KitError
from kitlib.geo import outlines
from kitlib.models.vlm.config import TINY as KINDS
from kitlib.models.vlm.conversation import prompts

NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SPECIAL = [f"<|{name}|>" for name in NAMES]
VOCABULARY = 1200
PATCH = {"qwen2.5": 14, "qwen3": 16, "qwen3.5": 16}
PATCHES = 16  # of a picture at most; four of them become one token
SPREAD = 0.06  # of new weights: with the usual 0.02 a picture's colour hardly affects the first replies
MROPE = [4, 2, 2]  # of a head's 8 pairs of numbers: for order, height, width
# Qwen's format of messages: parts in order, a picture as one token that the processor repeats.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3.5 thinks unless it is told not to, and its last reply has a thought, if only an empty one.
NO_THOUGHT = "{{ '<think>\\n\\n</think>\\n\\n' }}"
THINKING = TEMPLATE.replace(
    "{{ message.role }}\n",
    "{{ message.role }}\n{% if loop.last and message.role == 'assistant' %}" + NO_THOUGHT + "{% endif %}",
)
THINKING += (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}" + NO_THOUGHT
    + "{% elif add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
)  # fmt: skip


def build(kind: str = "qwen2.5", seed: int = 0, hidden: int = 128, layers: int = 2) -> tuple[Any, Any]:
    """A model of about half a million weights and its processor; the same seed makes the same weights.

    kind: qwen2.5, qwen3 or qwen3.5. hidden: width of the language model, a multiple of 32. Raises KitError for another
    kind.
    """
    if kind not in KINDS:
        raise KitError(f"tiny model: expected {', '.join(KINDS)}; got {kind!r}")
    processor = _processor(kind)
    tokenizer = processor.tokenizer
    model = _model(kind, tokenizer, seed, hidden, layers)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, processor


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\p{N}|[^\s\p{L}\p{N}]+| ?\p{L}+|\s+")  # one digit a piece, words with the space before them
    split = pre_tokenizers.Split(pieces, behavior="isolated")
    tokens = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokens])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        padding_side="left",
    )
    fast.chat_template = TEMPLATE
    return fast


def _corpus() -> Iterable[str]:
    """The kit's questions and the names of states, so that their words become single tokens."""
    for form in (prompts.WORLD, prompts.COMPETITION):
        yield from [form.question(), prompts.REASONING] * 4
    yield from ["system user assistant\n", "Facing north: east: south: west:", "Geohash: characters"] * 4
    yield from ["You said. Look again and refine it, within 200 km, in the same lines."] * 4
    yield from ["A first guess is enough. Go on from, or correct it. Allowed for State Region"] * 4
    yield from [f" {name}" for name in outlines.state_shapes()] * 4


def _processor(kind: str) -> Any:
    import transformers as hf

    tokenizer, patch = _tokenizer(), PATCH[kind]
    images = hf.Qwen2VLImageProcessor(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (2 * patch) ** 2, "longest_edge": PATCHES * patch**2 + 1},
    )
    if kind != "qwen2.5":
        template = THINKING if kind == "qwen3.5" else TEMPLATE
        videos: Any = hf.Qwen3VLVideoProcessor()
        return hf.Qwen3VLProcessor(images, tokenizer, videos, chat_template=template)
    videos = hf.Qwen2VLVideoProcessor()
    return hf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE)


def picture_tokens(tokenizer: Any) -> dict[str, Any]:
    """The picture tokens by their names in Qwen's configs."""
    names = {"image_pad": "image", "video_pad": "video", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name, key in names.items()}


def _model(kind: str, tokenizer: Any, seed: int, hidden: int, layers: int) -> Any:
    import transformers as hf

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": max(1, hidden // 32),
        "max_position_embeddings": 4096,
        "initializer_range": SPREAD,
        "rope_parameters": rope,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"out_hidden_size": hidden}
    vision |= {"patch_size": PATCH[kind], "initializer_range": SPREAD}
    ids = picture_tokens(tokenizer)
    if kind == "qwen3.5":
        text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}}
        text |= {"layer_types": ["linear_attention", "full_attention"] * ((layers + 1) // 2)}
        text["layer_types"] = text["layer_types"][:layers]
        text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": hidden // 32}
        text |= {"linear_num_value_heads": hidden // 16}
        more: dict[str, Any] = {"num_position_embeddings": 64}
        config: Any = hf.Qwen3_5Config(text_config=text, vision_config=vision | more, tie_word_embeddings=False, **ids)
        build: Any = hf.Qwen3_5ForConditionalGeneration
    elif kind == "qwen3":
        text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
        more = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        config = hf.Qwen3VLConfig(text_config=text, vision_config=vision | more, tie_word_embeddings=False, **ids)
        build = hf.Qwen3VLForConditionalGeneration
    else:
        more = {"window_size": 4 * PATCH[kind], "fullatt_block_indexes": [1]}
        config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision | more, tie_word_embeddings=False, **ids)
        build = hf.Qwen2_5_VLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)
