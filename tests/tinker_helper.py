"""A client with canned replies and a plain renderer, as tinker-cookbook's, for several test files."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle
from types import SimpleNamespace

from PIL import Image

RIGHT = "State: Ohio\nLatitude: 40.0000\nLongitude: -83.0000"


WRONG = "State: Kansas\nLatitude: 38.0000\nLongitude: -98.0000"


REPLIES = (RIGHT, "I do not know.", WRONG, "Geohash: dp", "State: Ohio")


STOP = 0


class Letters:
    """A token for every character, and one that ends a reply."""

    def encode(self, text: str) -> list[int]:
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


class Canned:
    """A sampling client whose replies are known; asked for as tinker's is."""

    def __init__(self, replies=REPLIES):
        self.replies, self.asked = cycle(replies), []

    async def sample(self, prompt, num_samples, sampling_params):
        self.asked.append((prompt, sampling_params))
        tokens = [[*Letters().encode(next(self.replies)), STOP] for _ in range(num_samples)]
        return SimpleNamespace(sequences=[SimpleNamespace(tokens=t, logprobs=[-0.5] * len(t)) for t in tokens])
