"""Tinker's service with canned replies, as far as the kit and tinker-cookbook call it, and a plain renderer.

test_client.py compares the methods' parameters with the real client's where that is installed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import cycle
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image

from kitlib.models.vlm.conversation.dialogue import with_pictures
from kitlib.models.vlm.conversation.prompts import COMPETITION
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Weights
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.dataset import Cases
from kitlib.models.vlm.tinker import client

VIEWS = ("north", "east")
TRUTHS = [Reply((40.0 + i, -83.0), region="Ohio") for i in range(5)]
TASK = Task(COMPETITION, {"region": Labels(["Kansas", "Ohio"])}, Weights(region=0.5))
SECRET = "tml-never-to-be-seen"
MODEL = "Lab/Sees-1"  # what the service below offers, with one that sees nothing and one that it only samples

RIGHT = "State: Ohio\nLatitude: 40.0000\nLongitude: -83.0000"


WRONG = "State: Kansas\nLatitude: 38.0000\nLongitude: -98.0000"


REPLIES = (RIGHT, "I do not know.", WRONG, "Geohash: dp", "State: Ohio")


STOP = 0


class Letters:
    """A token for every character, and one that ends a reply."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(token) for token in tokens if not (skip_special_tokens and token == STOP))


@dataclass
class Prompt:
    chunks: list

    @property
    def length(self) -> int:
        return sum(1 if isinstance(chunk, Image.Image) else len(chunk) for chunk in self.chunks)

    def text(self) -> str:
        return "".join("#" if isinstance(chunk, Image.Image) else Letters().decode(chunk) for chunk in self.chunks)


@dataclass
class Plain:
    """Messages one after the other, as a cookbook's renderer has them."""

    tokenizer: Letters = field(default_factory=Letters)

    def build_generation_prompt(self, messages: list) -> Prompt:
        chunks = []
        for message in messages:
            chunks += [self.tokenizer.encode(f"<{message['role']}>")]
            chunks += [
                p["image"] if p["type"] == "image" else self.tokenizer.encode(p["text"]) for p in message["content"]
            ]
        return Prompt([*chunks, self.tokenizer.encode("<assistant>")])

    def get_stop_sequences(self) -> list[int]:
        return [STOP]


class Done:
    """A future of the service that is done."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from ()
        return self.value

    def result(self, timeout=None):
        return self.value


def plain_response(replies: list[list[int]]) -> SimpleNamespace:
    return SimpleNamespace(sequences=[SimpleNamespace(tokens=t, logprobs=[-0.5] * len(t)) for t in replies])


def real_response(replies: list[list[int]]):
    from tinker.types import SampledSequence, SampleResponse

    arrays = [(np.array(tokens), np.full(len(tokens), -0.5)) for tokens in replies]
    return SampleResponse([SampledSequence("stop", "1", *given) for given in arrays])


class Canned:
    """A sampling client whose replies are known."""

    def __init__(self, replies=REPLIES, tokenizer=None, stop=STOP, response=plain_response):
        self.replies, self.asked, self.tokenizer, self.stop = cycle(replies), [], tokenizer or Letters(), stop
        self.response = response

    def sample(self, prompt, num_samples, sampling_params, include_prompt_logprobs=False):
        self.asked.append((prompt, sampling_params))
        return Done(
            self.response([[*self.tokenizer.encode(next(self.replies)), self.stop] for _ in range(num_samples)])
        )


class Training:
    """A training client, whose weights are a number: of optimizer steps made."""

    def __init__(self, away: Away, steps: int = 0):
        self.away, self.steps = away, steps

    def forward_backward(self, data, loss_fn, loss_fn_config=None):
        from tinker.types import ForwardBackwardOutput, TensorData

        self.away.batches.append((loss_fn, data))
        outputs = [{"logprobs": TensorData([-0.5] * d.model_input.length, "float32")} for d in data]
        return Done(ForwardBackwardOutput("array", outputs, {}))

    def optim_step(self, optim_params=None):
        self.steps += 1
        if self.steps == self.away.dies_at:
            self.away.dies_at = 0
            raise ConnectionError("the service is gone")
        self.away.rates.append(optim_params.learning_rate)
        return Done(SimpleNamespace(metrics={}))

    def save_state(self, name, ttl_seconds=None):
        return self.away.save(f"weights/{name}", self.steps)

    def save_weights_for_sampler(self, name, ttl_seconds=None):
        return self.away.save(f"sampler_weights/{name}", self.steps)

    def save_weights_and_get_sampling_client(self, record_stability_info=False):
        return Done(self.away.sampler())

    def create_sampling_client(self, model_path, record_stability_info=False):
        assert model_path in self.away.saved
        return Done(self.away.sampler())


class Rest:
    """Questions about models and checkpoints."""

    def __init__(self, away: Away):
        self.away = away

    def get_server_capabilities(self):
        offered = [("Lab/Sees-1", True), ("Lab/Sees-2:peft:262144", None), ("Lab/Blind", True), ("Lab/Sees-3", False)]
        offered += [("Unknown/Model", True), (None, None)]
        return Done(SimpleNamespace(supported_models=[SimpleNamespace(model_name=n, trainable=t) for n, t in offered]))

    def get_weights_info_by_tinker_path(self, tinker_path):
        if tinker_path not in self.away.saved:
            raise sys.modules["tinker"].TinkerError(f"no checkpoint {tinker_path}")
        return Done(SimpleNamespace(base_model=MODEL, lora_rank=16))

    def get_training_run_by_tinker_path(self, tinker_path):
        return Done(SimpleNamespace(user_metadata=None))

    def delete_checkpoint_from_tinker_path(self, tinker_path):
        return Done(None)


class Service:
    """A session with the service."""

    def __init__(self, away: Away):
        self.away = away

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def create_rest_client(self):
        return Rest(self.away)

    def create_lora_training_client(self, base_model, rank=32, user_metadata=None):
        self.away.begun.append(base_model)
        return Done(Training(self.away))

    def create_training_client_from_state(self, path, user_metadata=None):
        self.away.begun.append(path)
        return Done(Training(self.away))

    def create_training_client_from_state_with_optimizer(self, path, user_metadata=None):
        self.away.begun.append(f"{path} with optimizer")
        return Done(Training(self.away, self.away.saved[path]))

    def create_sampling_client(self, model_path=None, base_model=None):
        self.away.asked.append(model_path or base_model)
        return Done(self.away.sampler())


@dataclass
class Away:
    """The service: what was asked of it, and the checkpoints that it keeps, with the optimizer steps of each."""

    given: list = field(default_factory=list)  # arguments of ServiceClient
    begun: list = field(default_factory=list)  # what trainings began with
    asked: list = field(default_factory=list)  # weights that were sampled
    batches: list = field(default_factory=list)  # losses and examples
    rates: list = field(default_factory=list)
    saved: dict = field(default_factory=dict)
    dies_at: int = 0  # optimizer step
    sampler: object = Canned

    def save(self, name: str, steps: int) -> Done:
        path = f"tinker://run/{name}"
        self.saved[path] = steps
        return Done(SimpleNamespace(path=path))

    def install(self, monkeypatch, tinker=None) -> Away:
        """Take the place of the service in the real library, or without one of what is called of it."""
        fake = tinker or ModuleType("tinker")
        monkeypatch.setenv(client.KEY, SECRET)
        monkeypatch.setattr(fake, "ServiceClient", lambda **given: self.given.append(given) or Service(self), False)
        monkeypatch.setattr(fake, "RestClient", lambda: Rest(self), raising=False)
        if tinker is None:
            fake.SamplingParams, fake.TinkerError = SimpleNamespace, RuntimeError
            monkeypatch.setitem(sys.modules, "tinker", fake)
            monkeypatch.setitem(sys.modules, "tinker_cookbook.model_info", TABLE)
        return self


def _attributes(model):
    known = {"Lab/Sees-1": ("sees", "sees_disable_thinking"), "Lab/Sees-2": ("two",), "Lab/Sees-3": ("three",)}
    renderers = (known | {"Lab/Blind": ("blind",)})[model.split(":")[0]]
    return SimpleNamespace(is_vl="Sees" in model, is_chat=True, recommended_renderers=renderers)


TABLE = SimpleNamespace(get_model_attributes=_attributes)


def pictures(i: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (40 * i, 80 * v, 90)) for v in range(len(VIEWS))]


def cases(truths=TRUTHS) -> Cases:
    return Cases([f"place {i}" for i in range(len(truths))], list(truths), VIEWS, pictures)


def dialogue(text: str) -> list:
    """A question with pictures and its reply."""
    from kitlib.models.vlm.conversation.prompts import assistant, chat

    return [*with_pictures(chat(VIEWS, "Where?"), pictures(0)), assistant(text)]
