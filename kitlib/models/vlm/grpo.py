"""Group relative policy optimisation (GRPO) of dialogues about places, by TRL's trainer (Shao et al. 2024, 2402.03300).

A group is G dialogues about one place; the advantage of each is its reward less the group's mean. Dialogues of one
reply use a plain reward function, longer ones TRL's rollout function, where each turn's tokens can have an advantage of
their own (`rewards.turn_advantages`). A group with equal rewards has no signal: it is left out of the loss and counted
as `groups/constant`. A `Recorder` gets the dialogues of every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens, converse
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.models.vlm.conversation.recorder import Recorder, Row
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import turn_advantages
from kitlib.models.vlm.conversation.tasks import Task


class TrainerPrompts:
    """A `PromptBatch` that uses the trainer's own generation: the model itself, or vLLM."""

    def __init__(self, trainer: PlaceTrainer, prompts: Sequence[list[Message]]) -> None:
        self.trainer = trainer
        self.tokens, self.images, self.fields = trainer._tokenize_prompts(list(prompts))

    @property
    def thinking(self) -> bool:
        """As `PromptBatch.thinking`."""
        return self.trainer.task.options.reasoning

    def generate(self, continuations: list[Tokens]) -> tuple[list[Tokens], Any]:
        """As `PromptBatch.generate`."""
        context = [[*prompt, *tokens] for prompt, tokens in zip(self.tokens, continuations, strict=True)]
        return self.trainer._generate_single_turn(context, self.images, self._fields(context), 1)

    def _fields(self, context: list[Tokens]) -> dict[str, Any]:
        """The fields of each token, 0 after the prompt, where no token belongs to a picture."""
        return {
            name: [list(row) + [0] * (len(ids) - len(row)) for row, ids in zip(value, context, strict=True)]
            if isinstance(value, list) and value and isinstance(value[0], list)
            else value
            for name, value in self.fields.items()
        }


class PlaceTrainer(GRPOTrainer):
    """TRL's trainer for rows of `dataset` with a prompt; it gives each dialogue the environment of its place."""

    def __init__(
        self, *, task: Task, views: Sequence[str], seed: int, recorder: Recorder, credit_turns: bool, **options: Any
    ) -> None:
        self.task, self.views, self.env_seed, self.recorder = task, views, seed, recorder
        self.credit_turns = credit_turns and task.multi_turn  # whether each turn has an advantage of its own
        self.group = options["args"].num_generations
        self.cases: list[Row] = []
        self.dialogues: list[Dialogue] = []
        rollout: Any = play_dialogues if task.multi_turn else None
        reward: Any = self.dialogue_rewards
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)  # TRL calls it experimental
            super().__init__(reward_funcs=[reward], rollout_func=rollout, **options)

    @property
    def tau_km(self) -> float:
        """The tau of the current step."""
        return self.task.tau_km(self.state.global_step, self.state.max_steps)

    def open_env(self, truth: Reply, number: int) -> Environment:
        """The environment of dialogue `number` of the current step."""
        step, n_steps = self.state.global_step, self.state.max_steps
        seed = np.random.SeedSequence([self.env_seed, step, self.accelerator.process_index, number])
        return self.task.open(self.views, truth, step, n_steps, int(seed.generate_state(1)[0]))

    def dialogue_rewards(self, completions: list[list[Message]], log_metric: Any, **_: Any) -> list[float]:
        """TRL's reward function. Dialogues of one reply are graded here; longer ones were played before."""
        if not self.dialogues:
            for number, (case, completion) in enumerate(zip(self.cases, completions, strict=True)):
                dialogue = Dialogue(self.open_env(case["truth"], number), [])
                dialogue.add_reply(text_of(completion[0]["content"]))
                self.dialogues.append(dialogue)
        log_metric("tau_km", self.tau_km)
        last = [dialogue.metrics[-1] for dialogue in self.dialogues]
        for name in ("parsed", "km"):
            if values := [metrics[name] for metrics in last if name in metrics]:
                log_metric(name, float(np.mean(values)))
        return [dialogue.reward for dialogue in self.dialogues]

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Keep the rows, which TRL does not pass to rollout functions; leave constant groups out; record."""
        self.cases, self.dialogues = inputs, []
        output = super()._generate_and_score_completions(inputs)
        rewards: list[list[float]] = gather_object([dialogue.rewards for dialogue in self.dialogues])
        totals = np.array([sum(turns) for turns in rewards]).reshape(-1, self.group)
        constant = np.ptp(totals, axis=1) < 1e-6
        self._metrics["train"]["groups/constant"].append(float(constant.sum()))
        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        ignored = torch.tensor(np.repeat(constant, self.group)[own], device=self.args.device)
        advantages = torch.where(ignored, 0.0, output["advantages"])
        output["advantages"] = advantages
        if self.credit_turns:
            token_advantages = self._token_advantages(rewards, own, output["completion_ids"])
            output["advantages"] = torch.where(ignored[:, None], 0.0, token_advantages)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather((mask * ~ignored[:, None]).sum()).sum()
        self._record(advantages.tolist())
        return output

    def _token_advantages(self, rewards: list[list[float]], own: slice, tokens: torch.Tensor) -> torch.Tensor:
        """The advantage of each token (B, L), which is that of its turn, from the rewards of all processes' turns."""
        turns = max(map(len, rewards))
        padded = np.array([row + [0.0] * (turns - len(row)) for row in rewards])
        by_turn = turn_advantages(padded.reshape(-1, self.group, turns), self.scale_rewards).reshape(-1, turns)[own]
        by_token = torch.zeros(tokens.shape, device=tokens.device)
        for row, dialogue, advantages in zip(by_token, self.dialogues, by_turn, strict=True):
            row[: len(dialogue.continuation)] = torch.tensor(advantages[dialogue.token_turns])
        return by_token

    def _record(self, advantages: list[float]) -> None:
        step = self.state.global_step
        rows = gather_object(self.recorder.rows(step, "train", self.cases, self.dialogues, self.tau_km, advantages))
        if self.accelerator.is_main_process:
            self.recorder.write(step, rows, self.group)


def play_dialogues(prompts: list[list[Message]], trainer: PlaceTrainer) -> dict[str, Any]:
    """TRL's rollout function: play every prompt's dialogue to its end."""
    envs = [trainer.open_env(case["truth"], i) for i, case in enumerate(trainer.cases)]
    dialogues = converse(envs, TrainerPrompts(trainer, prompts), trainer.processing_class)
    trainer.dialogues = dialogues
    return {
        "prompt_ids": [dialogue.prompt for dialogue in dialogues],
        "completion_ids": [dialogue.continuation for dialogue in dialogues],
        "logprobs": [dialogue.logprobs for dialogue in dialogues] if trainer.use_vllm else None,
        "env_mask": [dialogue.model_mask for dialogue in dialogues],
    }


def text_of(content: Any) -> str:
    """The text of a message's content, a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
