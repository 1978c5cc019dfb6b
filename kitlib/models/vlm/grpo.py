"""Group relative policy optimisation of conversations about places, by TRL's trainer (Shao et al. 2024, 2402.03300).

A group is G conversations about one place; each is worth its reward less the group's mean. One reply a conversation
goes through a plain reward function, several through TRL's rollout function; there each turn's words can have the
credit of what they added (`rewards.turn_advantages`). A group in which all earned the same says nothing: it
is left out of the loss and counted as `groups/constant`. Every step's conversations go to a `Recorder`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from kitlib.models.vlm.conversation import dialogue
from kitlib.models.vlm.conversation.dialogue import Talk, Tokens
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.models.vlm.conversation.recorder import Recorder, Row
from kitlib.models.vlm.conversation.replies import Answer
from kitlib.models.vlm.conversation.rewards import turn_advantages
from kitlib.models.vlm.conversation.tasks import Task


class TrainerReading:
    """A `vlm_talk.Reading` that uses the trainer's own generation: the model itself, or vLLM."""

    def __init__(self, trainer: GRPOTrainer, prompts: Sequence[list[Message]]) -> None:
        self.trainer = trainer
        self.tokens, self.images, self.fields = trainer._tokenize_prompts(list(prompts))

    def speak(self, said: list[Tokens]) -> tuple[list[Tokens], Any]:
        """As `Reading.speak`."""
        context = [[*prompt, *more] for prompt, more in zip(self.tokens, said, strict=True)]
        return self.trainer._generate_single_turn(context, self.images, self._fields(context), 1)

    def _fields(self, context: list[Tokens]) -> dict[str, Any]:
        """What goes along with each token, 0 for the tokens after the prompt, which are never of a picture."""
        return {
            name: [list(row) + [0] * (len(ids) - len(row)) for row, ids in zip(value, context, strict=True)]
            if isinstance(value, list) and value and isinstance(value[0], list)
            else value
            for name, value in self.fields.items()
        }


class PlaceTrainer(GRPOTrainer):
    """TRL's trainer for rows of `vlm_data` with a prompt: it knows which place a conversation is about."""

    def __init__(
        self, *, task: Task, views: Sequence[str], seed: int, recorder: Recorder, by_turn: bool, **options: Any
    ) -> None:
        self.task, self.views, self.talk_seed, self.recorder = task, views, seed, recorder
        self.by_turn = by_turn and task.multi_turn  # whether a turn's words have their own credit
        self.group = options["args"].num_generations
        self.cases: list[Row] = []
        self.talks: list[Talk] = []
        rollout: Any = converse if task.multi_turn else None
        earned: Any = self.earned
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)  # an experiment of TRL's
            super().__init__(reward_funcs=[earned], rollout_func=rollout, **options)

    @property
    def tau_km(self) -> float:
        """The tau of this step, by its number alone."""
        return self.task.tau_km(self.state.global_step, self.state.max_steps)

    def open(self, truth: Answer, number: int) -> Environment:
        """The environment of conversation `number` of this step."""
        step, n_steps = self.state.global_step, self.state.max_steps
        seed = np.random.SeedSequence([self.talk_seed, step, self.accelerator.process_index, number])
        return self.task.open(self.views, truth, step, n_steps, int(seed.generate_state(1)[0]))

    def earned(self, completions: list[list[Message]], log_metric: Any, **_: Any) -> list[float]:
        """TRL's reward function: what each conversation earned. One reply is heard here, several were before."""
        if not self.talks:
            for number, (case, completion) in enumerate(zip(self.cases, completions, strict=True)):
                talk = Talk(self.open(case["truth"], number), [])
                talk.hear(text_of(completion[0]["content"]))
                self.talks.append(talk)
        log_metric("tau_km", self.tau_km)
        for name in ("parsed", "km"):
            if values := [talk.metrics[-1][name] for talk in self.talks if name in talk.metrics[-1]]:
                log_metric(name, float(np.mean(values)))
        return [talk.reward for talk in self.talks]

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Keep what TRL does not hand to rollout functions, leave constant groups out, record."""
        self.cases, self.talks = inputs, []
        output = super()._generate_and_score_completions(inputs)
        each: list[list[float]] = gather_object([talk.rewards for talk in self.talks])
        earned = np.array([sum(rewards) for rewards in each]).reshape(-1, self.group)
        constant = np.ptp(earned, axis=1) < 1e-6
        self._metrics["train"]["groups/constant"].append(float(constant.sum()))
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        silent = torch.tensor(np.repeat(constant, self.group)[mine], device=self.args.device)
        advantages = torch.where(silent, 0.0, output["advantages"])
        output["advantages"] = advantages
        if self.by_turn:
            of_tokens = self._of_tokens(each, mine, output["completion_ids"])
            output["advantages"] = torch.where(silent[:, None], 0.0, of_tokens)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather((mask * ~silent[:, None]).sum()).sum()
        self._record(advantages.tolist())
        return output

    def _of_tokens(self, earned: list[list[float]], mine: slice, tokens: torch.Tensor) -> torch.Tensor:
        """The advantage of each token (B, L), that of its turn, from what every turn of all conversations earned."""
        turns = max(map(len, earned))
        padded = np.array([rewards + [0.0] * (turns - len(rewards)) for rewards in earned])
        groups = turn_advantages(padded.reshape(-1, self.group, turns), self.scale_rewards)
        found = torch.zeros(tokens.shape, device=tokens.device)
        for row, talk, of_turns in zip(found, self.talks, groups.reshape(-1, turns)[mine], strict=True):
            row[: len(talk.said)] = torch.tensor(of_turns[talk.turn_of])
        return found

    def _record(self, advantages: list[float]) -> None:
        step = self.state.global_step
        rows = gather_object(self.recorder.rows(step, "train", self.cases, self.talks, self.tau_km, advantages))
        if self.accelerator.is_main_process:
            self.recorder.write(step, rows, self.group)


def converse(prompts: list[list[Message]], trainer: PlaceTrainer) -> dict[str, Any]:
    """TRL's rollout function: play every prompt's conversation to its end."""
    envs = [trainer.open(case["truth"], i) for i, case in enumerate(trainer.cases)]
    talks = dialogue.converse(envs, TrainerReading(trainer, prompts), trainer.processing_class)
    trainer.talks = talks
    return {
        "prompt_ids": [talk.prompt for talk in talks],
        "completion_ids": [talk.said for talk in talks],
        "logprobs": [talk.logprobs for talk in talks] if trainer.use_vllm else None,
        "env_mask": [talk.own for talk in talks],
    }


def text_of(content: Any) -> str:
    """A message's text, whether it comes as such or in parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
