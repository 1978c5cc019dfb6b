"""The settings of a vision-language run, and the task that they define; without torch, to be checked at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kitlib.core import paths
from kitlib.core.checks import numbers
from kitlib.core.errors import KitError, shown
from kitlib.core.settings import LARGEST_PICTURE, Names
from kitlib.models.vlm.conversation.prompts import ReplyForm
from kitlib.models.vlm.conversation.replies import NAMES
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.tasks import Task, TaskOptions
from kitlib.models.vlm.conversation.vocabulary import Labels

QWEN = "hf:Qwen/Qwen3-VL-4B-Instruct"  # Apache-2.0; Qwen2.5-VL-3B is for research only
EXPECTED = "expected tiny, tiny:qwen3, tiny:qwen3.5, hf:REPO_OR_FOLDER or tinker:NAME"
TINY = ("qwen2.5", "qwen3", "qwen3.5")  # the kinds of tiny_model.py
ADDRESS = "tinker://"  # begins the address of a checkpoint at Tinker
METHODS = ("sft", "grpo", "judge")
RATES = {"sft": 1e-4, "grpo": 1e-5, "judge": 1e-4}


def check_start(text: str) -> None:
    """Raise KitError for a text that names neither a run nor a checkpoint at Tinker to learn from."""
    if text.startswith(ADDRESS):
        if not re.fullmatch(ADDRESS + r"[^/\s]+/weights/[^/\s]+", text):
            raise KitError(f"start_from: expected {ADDRESS}RUN/weights/NAME; got {shown(text)}")
    elif text:
        paths.file_name(text, "start_from")


def check_name(name: str) -> None:
    """Raise KitError for a name that is none of a model."""
    kind, _, rest = name.partition(":")
    if not (name == "tiny" or (kind == "tiny" and rest in TINY) or (kind in ("hf", "tinker") and rest)):
        raise KitError(f"model: {EXPECTED}; got {name!r}")


@dataclass(frozen=True)
class Config(TaskOptions):
    """All settings that decide the result; they are saved with the run in params.json."""

    model: str = QWEN  # hf:NAME, tinker:NAME, tiny, tiny:qwen3 or tiny:qwen3.5; see loading.py
    method: str = "sft"  # sft: learns target replies; grpo: from rewards of its own; judge: how far candidates are
    start_from: str = ""  # run with the same model to continue from, or tinker://…; "": the model as published
    candidates: str = ""  # of judge: the finished run whose guesses it weighs again
    n_candidates: int = 8  # of judge: the best-weighted points of a guess that it judges
    bands_km: str = "50,200,500,1000,2500"  # of judge: upper ends of the distances that its replies tell apart
    max_side: int = 448  # px of a picture's longest side; 0: as it is
    fields: str = "region,point"  # lines of a reply: some of city, region, country, states (ranked), point
    digits: int = 4  # decimals of the degrees that sft teaches; 4 are 11 m
    label: str = "region"  # the line that names the data's states: region or country
    list_states: bool = False  # whether the question lists all states
    stream: str = ""  # Hugging Face data set to learn from instead of the places, streamed
    stream_split: str = "train"  # of the stream
    shuffle_buffer: int = 1000  # rows of the stream that are shuffled at once
    steps: int = 1000  # optimizer steps
    batch: int = 32  # replies a step, gathered over devices and turns; of grpo a multiple of group
    device_batch: int = 4  # replies that fit on one device at once
    rate: float = 0.0  # learning rate; 0: 1e-4 of sft, 1e-5 of grpo
    warmup: float = 0.05  # share of the steps in which the rate rises; then it falls along a cosine
    weight_decay: float = 0.0  # of all that learns
    lora_rank: int = 16  # rank of LoRA on the language model's projections; 0: all weights learn
    lora_attention_only: bool = False  # LoRA on the attention's projections alone
    four_bit: bool = False  # the frozen weights in 4 bits (bitsandbytes)
    gradient_checkpointing: bool = True  # less memory for about a fifth more time
    group: int = 8  # replies to one place that grpo compares
    reply_tokens: int = 64  # of a reply at most
    temperature: float = 1.0  # of replies that grpo learns from
    kl: float = 0.0  # weight of the KL divergence from the model that grpo started with
    sft_weight: float = 0.0  # weight in grpo of the cross-entropy of target replies, which sft learns
    curriculum: float = 0.0  # grpo draws a place by the spread of its rewards to this power; 0: each once a pass
    scale: str = "group"  # the deviation that divides advantages: of the group, of the batch, none
    credit: str = "turn"  # advantage of a turn: its own (turn), or that of the whole dialogue (talk)
    vllm: bool = False  # generate by vLLM, which is faster
    reward_distance: float = 1.0  # weights of the reward's terms: exp(-km / tau)
    reward_geoscore: float = 0.0  # the game's points
    reward_form: float = 0.1  # exactly the lines of the form
    reward_city: float = 0.0  # the right city
    reward_region: float = 0.5  # the right region
    reward_country: float = 0.0  # the right country
    reward_score: float = 0.0  # the competition's score of the reply; with fields "states,point" all of it
    samples: int = 8  # replies that make a guess
    guess_temperature: float = 0.7  # of these replies
    guess_top_p: float = 0.95  # of these replies: only the likeliest tokens of this total probability are sampled
    smoothing: float = 0.02  # share of the state probabilities that comes from the states' frequencies
    eval_steps: int = 100  # steps between evaluations on held-out places; 0: at the ends only
    eval_places: int = 64  # held-out places of an evaluation
    checkpoint_steps: int = 100  # steps between checkpoints
    seed: int = 0  # of new weights, order, replies and choices

    CHOICES: ClassVar = {"method": METHODS, "label": ("region", "country"),
                         "scale": ("group", "batch", "none"), "credit": ("turn", "talk")}  # fmt: skip
    POSITIVE: ClassVar[Names] = ("steps", "batch", "device_batch", "group", "reply_tokens", "temperature",
                                 "samples", "eval_places", "checkpoint_steps", "n_candidates",
                                 "shuffle_buffer")  # fmt: skip
    SHARES: ClassVar[Names] = ("warmup", "smoothing", "guess_top_p")
    LIMITS: ClassVar = {"max_side": LARGEST_PICTURE, "digits": 15, "lora_rank": 1024, "group": 1024, "samples": 1024,
                        "reply_tokens": 2**15, "shuffle_buffer": 10**6, "n_candidates": 1024}  # fmt: skip
    PARSERS: ClassVar = {"model": check_name, "fields": lambda text: ReplyForm(_split(text)),
                         "start_from": check_start,
                         "candidates": lambda text: text and paths.file_name(text, "candidates")}  # fmt: skip
    PRESETS: ClassVar = {
        "sample": {"model": "tiny", "max_side": 96, "digits": 1, "lora_rank": 0, "gradient_checkpointing": False,
                   "reply_tokens": 24, "samples": 4},
        "sample sft": {"steps": 500, "batch": 16, "device_batch": 16, "rate": 2e-3},
        "sample judge": {"steps": 1000, "batch": 16, "device_batch": 16, "rate": 2e-3},
        "sample grpo": {"steps": 200, "batch": 64, "device_batch": 64, "rate": 2e-4, "eval_steps": 50,
                        "tau_schedule": "fixed", "tau_last_km": 500.0},
    }  # fmt: skip

    @classmethod
    def preset(cls, name: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a preset, some of them for one method only; none for a published model."""
        method = settings.get("method", cls.method)
        if not str(settings.get("model", "tiny")).startswith("tiny"):
            return {}
        return {**super().preset(name, settings), **super().preset(f"{name} {method}", settings)}

    def __post_init__(self) -> None:
        """Check every field, and that they fit together. Raises KitError."""
        super().__post_init__()
        if self.method == "grpo" and (self.group < 2 or self.batch % self.group):
            raise KitError(
                f"batch: expected a multiple of a group of at least 2; got {self.batch} with group {self.group}"
            )
        if self.batch % self.device_batch:
            raise KitError(f"batch: expected a multiple of device_batch {self.device_batch}; got {self.batch}")
        if self.method == "grpo" and self.environment != "geohash" and not any(vars(self._weights()).values()):
            raise KitError(f"reward_distance, …: expected a weight above 0 for one of {self.fields}, form; got none")
        if self.vllm and self.method != "grpo":
            raise KitError(f"vllm: expected False with {self.method!r}, which generates nothing in training; got True")
        if (self.method == "judge") != bool(self.candidates):
            needs = "a run with method 'judge', which judges its candidates, and '' with any other"
            raise KitError(f"candidates: expected {needs}; got {self.candidates!r} with {self.method!r}")
        if (ends := numbers("bands_km", self.bands_km)) != sorted(set(ends)) or len(ends) > 8:
            raise KitError(f"bands_km: expected at most 8 increasing numbers; got {self.bands_km!r}")
        if self.method == "judge" and self.stream:
            raise KitError(f"stream: expected '' with method 'judge', which learns from places; got {self.stream!r}")
        if self.four_bit and not self.lora_rank:
            raise KitError(
                "lora_rank: expected more than 0 with four_bit, as weights in 4 bits cannot be trained; got 0"
            )
        if self.kl and not self.lora_rank:
            raise KitError(
                f"kl: expected 0 with lora_rank 0, which would need a second copy of the model; got {self.kl}"
            )
        if self.sft_weight and (self.environment != "single" or self.reasoning):
            raise KitError(
                f"sft_weight: expected 0 with several turns or reasoning, which targets lack; got {self.sft_weight}"
            )
        if self.stream and self.curriculum:
            raise KitError(f"curriculum: expected 0 with stream, whose places come once; got {self.curriculum}")
        if self.stream and self.vllm:
            raise KitError("vllm: expected False with stream, whose pictures may differ in size; got True")
        if self.model.startswith("tinker:"):
            self._check_remote()
        elif self.start_from.startswith(ADDRESS):
            raise KitError(f"start_from: expected a run with {self.model}; got {shown(self.start_from)}")
        self.task("Region", {})

    def _check_remote(self) -> None:
        """Raise KitError for what Tinker's loops do not do; their GRPO is group-centred and unscaled."""
        if self.method == "judge":
            raise KitError(f"method: expected 'sft' or 'grpo' with {self.model}; got 'judge'")
        fixed = {
            "kl": 0.0,
            "sft_weight": 0.0,
            "curriculum": 0.0,
            "vllm": False,
            "four_bit": False,
            "lora_attention_only": False,
            "weight_decay": 0.0,
        }
        for name, allowed in fixed.items():
            if getattr(self, name) != allowed:
                raise KitError(f"{name}: expected {allowed!r} with {self.model}; got {getattr(self, name)!r}")
        if not self.lora_rank:
            raise KitError(f"lora_rank: expected more than 0 with {self.model}; got 0")

    def _weights(self) -> Weights:
        """The weights of the rewards for the fields of a reply."""
        fields = _split(self.fields)
        weights = {name: getattr(self, f"reward_{name}") for name in ("distance", "geoscore", "form", "score")}
        weights |= {name: getattr(self, f"reward_{name}") for name in fields if name in NAMES}
        if "point" not in fields:
            weights |= {"distance": 0.0, "geoscore": 0.0}
        return Weights(**weights)

    @property
    def ranked(self) -> bool:
        """Whether a reply ranks states."""
        return "states" in _split(self.fields)

    def task(self, region: str, labels: dict[str, Labels]) -> Task:
        """The task of these settings; region: the data's word for a region. Raises KitError for an invalid form."""
        return Task(
            ReplyForm(_split(self.fields), region, self.digits),
            labels,
            self._weights(),
            TaskOptions.from_run(vars(self)),
            [name for name in ("states", self.label) if name in labels][:1] if self.list_states else [],
        )


def _split(fields: str) -> tuple[str, ...]:
    """The names of fields with commas between."""
    return tuple(name.strip() for name in fields.split(","))
