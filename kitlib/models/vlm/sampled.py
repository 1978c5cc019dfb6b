"""Compare the log-probabilities of tokens as they were sampled with those that training computes for them.

GRPO treats its replies as samples of the model that it trains. That fails silently: vLLM with old weights or with
pictures in the wrong places, a training pass with other pictures or other positions. The log-probabilities show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.dialogue import Tokens

# Mean difference of a token. New tiny models differ by 0.007, as they give suppressed tokens as much probability as
# others; without these by less than 1e-5 in float32. bfloat16 adds 0.002 to them, hundredths to published models.
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.1, torch.float16: 0.1}


class SampledLogprobs:
    """The log-probabilities of tokens that a model of transformers samples within the block, from its own logits.

    suppressed: tokens that are never sampled. Only the last logits are kept, as all of a batch are gigabytes.
    """

    def __init__(self, model: Any, temperature: float, suppressed: Sequence[int]) -> None:
        self.model, self.temperature, self.suppressed = model, temperature, list(suppressed)
        self.last: torch.Tensor | None = None  # (B, vocabulary)
        self.values: list[torch.Tensor] = []  # (B,) of each token but the last

    def __enter__(self) -> SampledLogprobs:
        self.hook = self.model.register_forward_hook(self._record, with_kwargs=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hook.remove()

    def _record(self, model: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        if self.last is not None:
            self.values.append(self._of(inputs["input_ids"][:, -1]))
        logits = output.logits[:, -1].float() / self.temperature
        logits[:, self.suppressed] = -torch.inf
        self.last = logits.log_softmax(dim=-1)

    def _of(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.last is not None
        return self.last.gather(1, tokens[:, None])[:, 0]

    def of(self, replies: Sequence[Tokens]) -> list[list[float]]:
        """The log-probability of each token of the B replies sampled."""
        length = len(self.values) + 1
        final = torch.tensor([reply[-1] if len(reply) == length else 0 for reply in replies])
        values = torch.stack([*self.values, self._of(final.to(self.model.device))], dim=1).tolist()
        return [row[: len(reply)] for row, reply in zip(values, replies, strict=True)]


def check(difference: float, dtype: torch.dtype, step: int) -> None:
    """Raise KitError when tokens' log-probabilities in training differ from those sampled by more than rounding."""
    if not difference <= TOLERANCE[dtype]:
        raise KitError(
            f"step {step}: what is trained is not what was sampled; expected log-probabilities that differ by at most "
            f"{TOLERANCE[dtype]} a token in {str(dtype).removeprefix('torch.')}; got {difference:.3g}"
        )
