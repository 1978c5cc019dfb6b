"""The parts of GRPO one by one, with TRL's trainer and the tiny models: what is sampled, taught, and shown to vLLM."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("trl")

from kitlib.core.errors import KitError
from kitlib.models.vlm import dataset, sampled, tiny_model, trainer
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.conversation.dialogue import with_pictures
from kitlib.models.vlm.conversation.recorder import Recorder
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.grpo import PlaceTrainer
from kitlib.models.vlm.sampled import SampledLogprobs

VIEWS = ("north", "east")
TRUTHS = [Reply((40.0, -83.0), region="Ohio"), Reply((42.0, -93.5), region="Iowa")]
CONFIG = Config(model="tiny", method="grpo", lora_rank=0, gradient_checkpointing=False, max_side=80, digits=1, steps=1,
                batch=8, device_batch=4, group=4, rate=1e-3, reply_tokens=12, radii_km="2000,200",
                temperature=0.9)  # fmt: skip


def shown(i: int) -> list[Image.Image]:
    rng = np.random.default_rng(i)
    return [Image.fromarray(rng.integers(0, 255, (80, 80, 3)).astype(np.uint8)) for _ in VIEWS]


CASES = dataset.Cases(["a", "b"], TRUTHS, VIEWS, shown)


@pytest.fixture
def opened(tmp_path):
    def open_trainer(kind: str = "qwen2.5", **changes) -> PlaceTrainer:
        config = dataclasses.replace(CONFIG, **changes)
        settings = vars(config) | {"precision": "float32"}
        model, processor = tiny_model.build(kind)
        task = config.task("Region", {"region": Labels(["Iowa", "Ohio"])})
        source = trainer.TrainingSource(CASES, "", VIEWS)
        return trainer.grpo(settings, model, processor, task, source, tmp_path, 1, Recorder(None, "single"))

    return open_trainer


@pytest.mark.parametrize("environment", ["single", "telescoping"])
@pytest.mark.parametrize("kind", tiny_model.KINDS)
def test_what_is_trained_is_what_was_sampled(opened, kind, environment, monkeypatch):
    monkeypatch.setattr("kitlib.models.vlm.grpo.SampledLogprobs", lambda *args: SampledLogprobs(*args[:2], []))
    grpo = opened(kind, environment=environment)
    grpo.train()
    line = grpo.state.log_history[0]
    assert 0 < line["sampling/logp_difference"] < line["sampling/logp_difference_max"] < 1e-4


def test_tokens_that_are_never_sampled_count_as_a_difference(opened):
    grpo = opened()
    grpo.train()
    assert 0.002 < grpo.state.log_history[0]["sampling/logp_difference"] < 0.01  # 5 of 1200 tokens, as likely as others


def test_training_on_other_pictures_than_were_shown_is_stopped(opened, monkeypatch):
    generate = PlaceTrainer._generate_and_score_completions

    def mistaken(self, inputs):
        output = generate(self, inputs)
        return output | {"pixel_values": output["pixel_values"].flip(0)}

    monkeypatch.setattr(PlaceTrainer, "_generate_and_score_completions", mistaken)
    message = r"step 0: what is trained is not what was sampled; .* at most 0.02 a token in float32; got 0\.[1-9]"
    with pytest.raises(KitError, match=message):
        opened().train()


@pytest.mark.parametrize("difference", [0.11, float("nan")])
def test_half_precision_may_differ_more(difference):
    sampled.check(0.09, torch.bfloat16, 3)
    with pytest.raises(KitError, match=r"step 3: .* 0\.1 a token in bfloat16"):
        sampled.check(difference, torch.bfloat16, 3)


def test_target_replies_are_taught_beside_the_rewards(opened):
    grpo = opened(sft_weight=1.0, temperature=1.0, steps=3)
    sampler, tokenizer = Sampler(grpo.model, grpo.processing_class, 12), grpo.processing_class.tokenizer
    likelihood = n_tokens = 0.0
    for i, truth in enumerate(TRUTHS):
        reply = [*tokenizer.encode(grpo.task.form.write(truth)), tokenizer.eos_token_id]
        messages = with_pictures(grpo.task.open_final(VIEWS, truth).messages(), shown(i))
        likelihood += sampler.prefill([messages]).log_likelihood([reply])[0, 0]
        n_tokens += len(reply)
    grpo.train()
    losses = [line["sft_loss"] for line in grpo.state.log_history if "sft_loss" in line]
    assert losses[0] == pytest.approx(-likelihood / n_tokens, rel=1e-4)
    assert losses[0] > losses[1] > losses[2]


def test_a_place_without_a_target_reply_is_rewarded_alone(opened):
    grpo = opened(sft_weight=1.0)
    grpo.cases = [{"reply": None}] * 4 + [{"reply": "Region: Iowa"}] * 4
    targets = grpo._targets(0)
    assert (targets >= 0).any(dim=1).tolist() == [False] * 4 + [True] + [False] * 3
    # In the middle of a group, which another process began.
    assert (grpo._targets(2) >= 0).any(dim=1).tolist() == [False] * 6 + [True, False]


def test_processes_share_the_groups_that_a_curriculum_draws(opened):
    grpo, rows = opened(curriculum=1.0, batch=24, device_batch=12, group=12), []
    for process in range(3):
        grpo.accelerator = SimpleNamespace(num_processes=3, process_index=process)
        rows += grpo._drawn(8)
    assert [row["sample_id"] for row in rows] == [CASES.sample_id[place] for place in grpo.places for _ in range(12)]
    assert sorted(grpo.places) == [0, 1] and rows[0] is not rows[1]  # TRL adds to rows


def test_vllm_gets_one_token_for_each_picture(opened):
    grpo = opened()
    asked = []

    def generate(prompts, images, num_generations, profiler):
        asked.extend(zip(prompts, images, strict=True))
        return None, [[5, 6]] * len(prompts), [[[-1.0], [-2.0]]] * len(prompts), None

    grpo.use_vllm, grpo._last_loaded_step = True, 0
    grpo.vllm_generation = SimpleNamespace(generate=generate)
    messages = with_pictures(grpo.task.open_final(VIEWS, TRUTHS[0]).messages(), shown(0))
    tokens, images, fields = grpo._tokenize_prompts([messages])
    picture = grpo.processing_class.image_token_id
    assert tokens[0].count(picture) > 2
    assert grpo._generate_single_turn(tokens, images, fields, 1) == ([[5, 6]], [[-1.0, -2.0]])
    [(prompt, pictures)] = asked
    assert prompt.count(picture) == len(pictures) == 2
    assert [token for token in prompt if token != picture] == [token for token in tokens[0] if token != picture]


def test_pictures_of_several_sizes_are_refused_for_vllm():
    def split(*sizes):
        return SimpleNamespace(split="train", sizes=list(sizes))

    dataset.check_one_size(split((480, 640)), 0)
    dataset.check_one_size(split((480, 640), (960, 1280)), 448)
    with pytest.raises(
        KitError, match=r"expected train pictures of one size, .*; got 2 sizes, 448 x 336, 448 x 448, …"
    ):
        dataset.check_one_size(split((480, 640), (960, 960)), 448)
