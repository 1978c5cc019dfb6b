"""The settings of a run with a vision-language model, and the task that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kitlib.core.errors import KitError
from kitlib.core.settings import Names, Settings
from kitlib.models.vlm import loading
from kitlib.models.vlm.conversation import tasks
from kitlib.models.vlm.conversation.prompts import Form
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.schedules import SCHEDULES
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.conversation.vocabulary import Labels

METHODS = ("sft", "grpo")
RATES = {"sft": 1e-4, "grpo": 1e-5}


@dataclass(frozen=True)
class Config(Settings):
    """What decides the result; travels with the run in params.json."""

    model: str = loading.QWEN  # hf:NAME, tinker:NAME, tiny or tiny:qwen3; see vlm_models.py
    method: str = "sft"  # sft: learns right replies; grpo: learns by what its replies earn
    start_from: str = ""  # run with the same model to go on from; "": the model as published
    max_side: int = 448  # px of a picture's longest side; 0: as it is
    fields: str = "region,point"  # lines of a reply, of city, region, country, point, commas between
    digits: int = 4  # decimals of the degrees that sft teaches; 4 are 11 m
    label: str = "region"  # the line that names the data's states: region or country
    environment: str = "single"  # single, telescoping, geohash, hierarchical
    radii_km: str = "2000,200,25"  # how close each turn of telescoping is asked to come
    lengths: str = "2,4,6"  # characters of each turn of geohash
    forcing: float = 0.5  # share of the geohash turns that a teacher sets right at the first step, falling to 0
    bonus: float = 1.0  # weight of improving in geohash
    reasoning: bool = False  # whether grpo invites the model to think before it answers
    list_states: bool = False  # whether the question lists all states
    stream: str = ""  # Hugging Face data set to learn from instead of the places, streamed
    stream_split: str = "train"  # of the stream
    shuffle_buffer: int = 1000  # rows of the stream that are mixed
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
    kl: float = 0.0  # weight of the distance from the model that grpo began with
    scale: str = "group"  # by what spread advantages are divided: group, batch, none
    credit: str = "turn"  # for a turn of several: what it added to what was expected (turn), or the whole (talk)
    vllm: bool = False  # generate by vLLM, which is faster
    tau_schedule: str = "geometric"  # of grpo: fixed, geometric, linear, stepped
    tau_first_km: float = 2000.0  # km at which a reward falls to 1/e, at the first step
    tau_last_km: float = 25.0  # at the last step, and in evaluations
    reward_distance: float = 1.0  # weights of what a reply earns: exp(-km / tau)
    reward_geoscore: float = 0.0  # the game's points
    reward_form: float = 0.1  # exactly the lines asked for
    reward_city: float = 0.0  # the right city
    reward_region: float = 0.5  # the right region
    reward_country: float = 0.0  # the right country
    samples: int = 8  # replies that make a guess
    guess_temperature: float = 0.7  # of them
    guess_top_p: float = 0.95  # of them: only the likeliest tokens that come to this share are said
    smoothing: float = 0.02  # share of the state probabilities that goes by how common states are
    eval_steps: int = 100  # steps between evaluations on held-out places; 0: at the ends only
    eval_places: int = 64  # held-out places that are looked at then
    checkpoint_steps: int = 100  # steps between checkpoints
    seed: int = 0  # of new weights, order, replies and choices

    CHOICES: ClassVar = {"method": METHODS, "environment": tasks.ENVIRONMENTS, "label": ("region", "country"),
                         "tau_schedule": SCHEDULES, "scale": ("group", "batch", "none"),
                         "credit": ("turn", "talk")}  # fmt: skip
    POSITIVE: ClassVar[Names] = ("steps", "batch", "device_batch", "group", "reply_tokens", "temperature",
                                 "tau_first_km", "tau_last_km", "samples", "eval_places", "checkpoint_steps",
                                 "shuffle_buffer")  # fmt: skip
    SHARES: ClassVar[Names] = ("forcing", "warmup", "smoothing", "guess_top_p")
    PRESETS: ClassVar = {
        "sample": {"model": "tiny", "max_side": 96, "digits": 1, "lora_rank": 0, "gradient_checkpointing": False,
                   "reply_tokens": 24, "samples": 4},
        "sample sft": {"steps": 500, "batch": 16, "device_batch": 16, "rate": 2e-3},
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
        """Check every field, and that they go together. Raises KitError."""
        super().__post_init__()
        loading.check(self.model)
        if self.method == "grpo" and (self.group < 2 or self.batch % self.group):
            raise KitError(f"batch {self.batch} with group {self.group}: wanted is a multiple of a group of at least 2")
        if self.batch % self.device_batch:
            raise KitError(f"batch {self.batch} with device_batch {self.device_batch}: wanted is a multiple")
        if self.vllm and self.method != "grpo":
            raise KitError("vllm with method 'sft': allowed is False, nothing is generated in training")
        if self.four_bit and not self.lora_rank:
            raise KitError("four_bit with lora_rank 0: allowed is a rank above 0, weights in 4 bits do not learn")
        if self.kl and not self.lora_rank:
            raise KitError("kl with lora_rank 0: allowed is 0, or the model that it began with would be kept as well")
        if self.model.startswith("tinker:"):
            self._check_remote()
        self.task("Region", {})

    def _check_remote(self) -> None:
        """Raise KitError for what Tinker does not do; what is left is GRPO of LoRA, group-centred and unscaled."""
        fixed = {"method": "grpo", "start_from": "", "stream": "", "kl": 0.0, "vllm": False, "four_bit": False}
        for name, allowed in fixed.items():
            if getattr(self, name) != allowed:
                raise KitError(f"{name}={getattr(self, name)!r} with {self.model}: allowed is {allowed!r}")
        if not self.lora_rank:
            raise KitError(f"lora_rank 0 with {self.model}: allowed is a rank above 0")

    def task(self, region: str, labels: dict[str, Labels]) -> Task:
        """The task of these settings. region: what the data calls one. Raises KitError where they make none."""
        fields = tuple(name.strip() for name in self.fields.split(","))
        weights = {name: getattr(self, f"reward_{name}") for name in ("distance", "geoscore", "form")}
        weights |= {name: getattr(self, f"reward_{name}") for name in fields if name != "point"}
        if "point" not in fields:
            weights |= {"distance": 0.0, "geoscore": 0.0}
        return Task(
            Form(fields, region, self.digits),
            labels,
            Weights(**weights),
            self.environment,
            reasoning=self.reasoning,
            listed=[self.label] if self.list_states and self.label in labels else [],
            radii_km=[float(km) for km in numbers("radii_km", self.radii_km)],
            lengths=[int(length) for length in numbers("lengths", self.lengths)],
            forcing=self.forcing,
            bonus=self.bonus,
            tau_schedule=self.tau_schedule,
            tau_first_km=self.tau_first_km,
            tau_last_km=self.tau_last_km,
        )


def numbers(name: str, text: str) -> list[float]:
    """Numbers with commas between. Raises KitError for anything else.

    >>> numbers("radii_km", "2000, 25")
    [2000.0, 25.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise KitError(f"{name}={text!r}: wanted are numbers with commas between") from None
