"""Group relative policy optimisation (GRPO) of dialogues about places, by TRL's trainer (Shao et al. 2024, 2402.03300).

A group is G dialogues about one place; the advantage of each is its reward less the group's mean. Dialogues of one
reply use a plain reward function, longer ones TRL's rollout function, where each turn's tokens can have an advantage of
their own (`rewards.turn_advantages`). A group with equal rewards has no signal: it is left out of the loss and counted
as `groups/constant`. A `Recorder` gets the dialogues of every step. `sampled` compares what is trained with what was
sampled, `curriculum` draws the places, and `sft_weight` keeps what fine-tuning has taught.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from kitlib.models.vlm import loading, sampled
from kitlib.models.vlm.conversation.dialogue import Dialogue, Tokens, converse
from kitlib.models.vlm.conversation.environments import Environment
from kitlib.models.vlm.conversation.prompts import Message
from kitlib.models.vlm.conversation.recorder import Recorder, Row
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import turn_advantages
from kitlib.models.vlm.conversation.tasks import Task
from kitlib.models.vlm.curriculum import Curriculum
from kitlib.models.vlm.sampled import SampledLogprobs

SPREADS = "curriculum.npz"  # in a checkpoint


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
    """TRL's trainer for rows of `dataset` with a prompt; it gives each dialogue the environment of its place.

    dtype: of matrix products. sft_weight: of the cross-entropy of the target replies, which rows then have as "reply".
    curriculum: draws the places from the data set; without it each comes once a pass.
    """

    def __init__(
        self,
        *,
        task: Task,
        views: Sequence[str],
        seed: int,
        recorder: Recorder,
        credit_turns: bool,
        dtype: torch.dtype,
        sft_weight: float,
        curriculum: Curriculum | None,
        **options: Any,
    ) -> None:
        self.task, self.views, self.env_seed, self.recorder = task, views, seed, recorder
        self.dtype, self.sft_weight, self.curriculum = dtype, sft_weight, curriculum
        self.tokenizer, self.rows = options["processing_class"].tokenizer, options["train_dataset"]
        self.picture = options["processing_class"].image_token_id
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

    def _generate_single_turn(
        self, prompt_ids: list[Tokens], images: Any, multimodal_fields: dict[str, Any], num_generations: int, *rest: Any
    ) -> tuple[list[Tokens], list[list[float]]]:
        """Generate with log-probabilities also without vLLM, and show vLLM each picture as it expects it."""
        generate = super()._generate_single_turn
        if self.use_vllm:
            prompt_ids = [one_token_a_picture(ids, self.picture) for ids in prompt_ids]
            return generate(prompt_ids, images, multimodal_fields, num_generations, *rest)
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        with SampledLogprobs(model, self.temperature, loading.suppressed_tokens(self.tokenizer)) as logprobs:
            replies, _ = generate(prompt_ids, images, multimodal_fields, num_generations, *rest)
        return replies, logprobs.of(replies)

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        """Keep the log-probabilities, which TRL's loss does not return."""
        values = super()._get_per_token_logps_and_entropies(*args, **options)
        self.trained = values[0].detach()
        return values

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, once it is known to be that of the sampled tokens, and the cross-entropy of target replies."""
        loss = super()._compute_loss(model, inputs)
        self._check_sampling(inputs)
        if self.sft_weight:
            target_loss = self._target_loss(model, inputs)
            mean = self.accelerator.reduce(target_loss.detach(), "mean") * self.current_gradient_accumulation_steps
            self._metrics["train"]["sft_loss"].append(mean.item())
            loss = loss + self.sft_weight * target_loss
        return loss

    def _check_sampling(self, inputs: dict[str, Any]) -> None:
        """Log how far the log-probabilities of training are from those sampled. Raises KitError if too far."""
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        difference = (self.trained - inputs["sampling_per_token_logps"]).abs()
        difference = difference[mask & ~difference.isnan()]  # vLLM has no value for some tokens
        largest = difference.max() if len(difference) else difference.sum()
        own = torch.stack([difference.sum(), torch.ones_like(difference).sum(), largest])
        total, count, largest = self.accelerator.gather(own[None]).unbind(dim=1)
        mean = (total.sum() / count.sum().clamp(min=1)).item()
        self._metrics["train"]["sampling/logp_difference"].append(mean)
        self._metrics["train"]["sampling/logp_difference_max"].append(largest.max().item())
        sampled.check(mean, self.dtype, self.state.global_step)

    def _target_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The cross-entropy of the target replies, as mean over the tokens of all processes and turns of the step."""
        taught = (inputs["target_ids"][:, 0] >= 0).nonzero()[:, 0]
        if not len(taught):
            return torch.zeros((), device=taught.device)
        rows = rows_of(inputs, taught)
        target = rows["target_ids"]
        prompt, known = rows["prompt_mask"], (target >= 0).long()
        fields: dict[str, Any] = {
            name: rows[name] for name in ("pixel_values", "image_grid_thw", "num_images") if name in rows
        }
        if "mm_token_type_ids" in rows:
            before = rows["mm_token_type_ids"][:, : prompt.shape[1]]
            fields["mm_token_type_ids"] = torch.cat([before, torch.zeros_like(target)], dim=1)
        logprobs, *_ = super()._get_per_token_logps_and_entropies(
            model,
            torch.cat([rows["prompt_ids"], target.clamp(min=0)], dim=1),
            torch.cat([prompt, known], dim=1),
            target.shape[1],
            **fields,
        )
        return -(logprobs * known).sum() / inputs["target_items"] * self.accelerator.num_processes

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Keep the rows, which TRL does not pass to rollout functions; leave constant groups out; record."""
        if self.curriculum:
            inputs = self._drawn(len(inputs))
        self.cases, self.dialogues = inputs, []
        output = super()._generate_and_score_completions(inputs)
        rewards: list[list[float]] = gather_object([dialogue.rewards for dialogue in self.dialogues])
        totals = np.array([sum(turns) for turns in rewards]).reshape(-1, self.group)
        constant = np.ptp(totals, axis=1) < 1e-6
        if self.curriculum:
            self.curriculum.update(self.places, totals.std(axis=1))
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
        if self.sft_weight:
            output["target_ids"] = self._targets(own.start)
            output["target_items"] = self.accelerator.gather((output["target_ids"] >= 0).sum()).sum()
        self._record(advantages.tolist())
        return output

    def _drawn(self, count: int) -> list[Row]:
        """This process's rows (count,) of the groups that the curriculum draws."""
        assert self.curriculum is not None
        start = self.accelerator.process_index * count
        self.places = self.curriculum.draw(self.state.global_step, count * self.accelerator.num_processes // self.group)
        own = np.repeat(self.places, self.group)[start : start + count]
        rows = {place: self.rows[int(place)] for place in np.unique(own)}
        return [dict(rows[place]) for place in own]

    def _targets(self, start: int) -> torch.Tensor:
        """The tokens (B, L) of the target reply in the first row of each group, -1 elsewhere; start: of these rows."""
        tokenizer, none = self.tokenizer, torch.tensor([-1])
        return pad_sequence(
            [
                none
                if (start + i) % self.group or case["reply"] is None
                else torch.tensor([*tokenizer.encode(case["reply"], add_special_tokens=False), tokenizer.eos_token_id])
                for i, case in enumerate(self.cases)
            ],
            batch_first=True,
            padding_value=-1,
        ).to(self.args.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.curriculum and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            self.curriculum.save(folder / SPREADS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.curriculum and checkpoint:
            self.curriculum.load(Path(checkpoint) / SPREADS)

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
        "logprobs": [dialogue.logprobs for dialogue in dialogues],
        "env_mask": [dialogue.model_mask for dialogue in dialogues],
    }


def rows_of(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch of TRL's, with their pictures."""
    split = split_pixel_values_by_grid(batch)
    return unsplit_pixel_values_by_grid(
        {
            name: [value[i] for i in rows.tolist()] if isinstance(value, list) else value[rows] if value.ndim else value
            for name, value in split.items()
        }
    )


def one_token_a_picture(tokens: Tokens, picture: int) -> Tokens:
    """Tokens with each run of the picture's token as one, which vLLM expands, even where it was expanded before.

    >>> one_token_a_picture([1, 7, 7, 7, 2, 7, 7, 3], 7)
    [1, 7, 2, 7, 3]
    """
    return [token for i, token in enumerate(tokens) if token != picture or i == 0 or tokens[i - 1] != picture]


def text_of(content: Any) -> str:
    """The text of a message's content, a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
