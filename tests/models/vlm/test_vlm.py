"""The vision-language family: dialogues token by token, training, resume, guesses and refusals.

One file, as transformers and trl take twenty seconds to import.
"""

from __future__ import annotations

import dataclasses
import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
pytest.importorskip("trl")

import toy

from kitlib import __main__ as cli
from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError
from kitlib.data import pictures, readers
from kitlib.evaluation import fold_files, metrics, runs
from kitlib.models.vlm import analysis, dataset, guessing, loading, reply_cache, tiny_model, trainer
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.conversation import prompts, rollouts
from kitlib.models.vlm.conversation.dialogue import converse, thinking_options, with_pictures
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.conversation.rewards import Weights, turn_advantages
from kitlib.models.vlm.conversation.tasks import Task, TaskOptions
from kitlib.models.vlm.conversation.vocabulary import Labels
from kitlib.models.vlm.curriculum import Curriculum
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.grpo import PlaceTrainer
from kitlib.models.vlm.session import Session
from kitlib.vision import device

TYPES = (torch.float32, torch.bfloat16)
VIEWS = ("north", "east", "south", "west")
STATES = Labels(["Iowa", "New Mexico", "Ohio"])
TRUTH = Reply((40.0, -83.0), region="Ohio")
SFT = Config(
    model="tiny",
    lora_rank=0,
    gradient_checkpointing=False,
    max_side=28,
    digits=1,
    steps=80,
    batch=16,
    device_batch=16,
    rate=3e-3,
    radii_km="3000,500",
    reply_tokens=24,
    samples=2,
    eval_steps=0,
    eval_places=6,
    tau_last_km=2000.0,
    checkpoint_steps=1000,
)
GRPO = dataclasses.replace(
    SFT, method="grpo", start_from="sft", steps=4, batch=8, device_batch=8, group=4, rate=1e-3, tau_first_km=8000.0
)

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module", params=tiny_model.KINDS)
def tiny(request):
    return tiny_model.build(request.param)


@pytest.fixture(scope="module")
def data(shared_home, tmp_path_factory):
    return readers.read(toy.draw(tmp_path_factory.mktemp("toy") / "toy", n_train=60, n_test=6))


@pytest.fixture(scope="module")
def sft(data):
    return vlm.train(SFT, data, "sft")


def shown(seed: int, n: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)) for _ in range(n)]


def task(environment: str = "single") -> Task:
    options = TaskOptions(environment=environment, radii_km="2000,200")
    return Task(prompts.COMPETITION, {"region": STATES}, Weights(region=0.5), options)


def learned(run) -> dict[str, torch.Tensor]:
    return loading.reload(run.settings["model"], fold_files.folder(run, 0), torch.float32)[0].state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_conversation_is_what_the_chat_template_makes_of_its_messages(tiny):
    model, processor = tiny
    envs = [task("telescoping").open_final(VIEWS, TRUTH) for _ in range(2)]
    messages = [with_pictures(env.messages(), shown(i)) for i, env in enumerate(envs)]
    dialogues = converse(envs, Sampler(model, processor, 6).prefill(messages), processor)
    tokenizer = processor.tokenizer
    suppressed = set(loading.suppressed_tokens(tokenizer))
    for dialogue, env in zip(dialogues, envs, strict=True):
        own = [token for token, mine in zip(dialogue.continuation, dialogue.model_mask, strict=True) if mine]
        assert len(dialogue.replies) == env.turns == 2 and 2 <= len(own) <= 12 and not suppressed & set(own)
        message = "Your reply did not say where. Look again and refine it, within 200 km, in the same lines."
        messages = [*env.messages(), prompts.assistant("@1"), prompts.user(message)]
        options = thinking_options(processor, False)
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        text = text.split("@1")[1]
        rest = [token for token, mine in zip(dialogue.continuation, dialogue.model_mask, strict=True) if not mine]
        assert tokenizer.decode(rest) in (text, text.removeprefix("<|im_end|>"))  # where the model said the end itself
        assert (
            dialogue.prompt.count(processor.image_token_id) >= 4
            and processor.image_token_id not in dialogue.continuation
        )


def test_replies_after_a_prefilled_prompt_are_those_after_the_whole_text(tiny):
    model, processor = tiny
    sampler = Sampler(model.eval(), processor, 5, 0.0)
    wide = [image.resize((120, 60)) for image in shown(1)]  # more tokens, so that the others are padded
    prompted = [[with_pictures(prompts.chat(VIEWS, "?"), images)] for images in (shown(0), wide, shown(2))]
    prefilled = sampler.prefill([messages for (messages,) in prompted], copies=2)
    tails = [[41, 42, 43], [], [44], [45, 46], [47], []]
    replies, _ = prefilled.generate(tails)
    for i, reply in enumerate(replies):
        inputs = sampler.inputs(prompted[i // 2])
        assert inputs["input_ids"][0].tolist() == prefilled.tokens[i]
        more = {"input_ids": tails[i], "attention_mask": [1] * len(tails[i]), "mm_token_type_ids": [0] * len(tails[i])}
        whole = {
            name: torch.cat([inputs[name], torch.tensor([tail], dtype=torch.long)], dim=1)
            for name, tail in more.items()
        }
        [alone] = sampler.generate(**inputs | whole)
        assert reply == alone
    assert len({*map(tuple, replies)}) > 1


@pytest.mark.parametrize("dtype", TYPES)
def test_the_likelihood_of_names_is_that_of_whole_replies(tiny, dtype):
    model, processor = tiny
    cases = dataset.Cases(["a"], [TRUTH], VIEWS, shown)
    sampler = Sampler(model, processor, 8, dtype=dtype)
    scores = guessing.generate(cases, task(), sampler, 1, 1, STATES, "region").log_likelihood[0]
    prompt = sampler.inputs([with_pictures(task().open_final(VIEWS, TRUTH).messages(), shown(0))])
    length = prompt["input_ids"].shape[1]
    for name, score in zip(STATES.names, scores, strict=True):
        reply = processor.tokenizer.encode(f"State: {name}\n", add_special_tokens=False)
        more = {"input_ids": reply, "attention_mask": [1] * len(reply), "mm_token_type_ids": [0] * len(reply)}
        whole = {name: torch.cat([prompt[name], torch.tensor([tail])], dim=1) for name, tail in more.items()}
        with torch.no_grad(), device.autocast(torch.device("cpu"), dtype):
            logits = model.eval()(**prompt | whole).logits.float().log_softmax(-1)[0]
        direct = sum(logits[length - 1 + i, token].item() for i, token in enumerate(reply))
        assert score == pytest.approx(direct, abs=max(1e-4, 2 * torch.finfo(dtype).eps * len(reply)))


@pytest.mark.parametrize("dtype", TYPES)
def test_lora_is_kept_merged_and_never_on_the_head_or_the_eyes(tmp_path, dtype):
    model, processor = loading.load("tiny", dtype)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    model = loading.adapt(model, 2)
    learns = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learns and all("language_model" in name and "lora_" in name for name in learns)
    assert loading.count_weights(model)[0] < loading.count_weights(model)[1] / 10
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    loading.save(model, processor, tmp_path)
    assert loading.saved(tmp_path) == tmp_path / "adapter"
    inputs = Sampler(model, processor, 4).inputs([with_pictures(prompts.chat(VIEWS, "?"), shown(0))])
    again, _ = loading.reload("tiny", tmp_path, dtype)
    merged = loading.merge("tiny", tmp_path, tmp_path / "merged")
    whole, _ = loading.load(f"hf:{merged}", "auto")
    assert whole.dtype == torch.float32  # as it was published, whatever this machine computes in
    with torch.no_grad(), device.autocast(torch.device("cpu"), dtype):
        logits = [one.eval()(**inputs).logits.float() for one in (model, again, whole)]
    close = 16 * torch.finfo(dtype).eps * logits[0].abs().max().item()
    assert torch.equal(logits[0], logits[1]) and torch.allclose(logits[0], logits[2], atol=close)
    changed = [name for name, value in whole.state_dict().items() if not torch.equal(value, plain[name])]
    assert changed and all("language_model" in name for name in changed)
    with pytest.raises(KitError, match="exists"):
        loading.merge("tiny", tmp_path, merged)


@pytest.mark.parametrize(("kind", "targets"), [("qwen2.5", 14), ("qwen3", 14), ("qwen3.5", 15)])
def test_lora_reaches_every_projection_and_says_how_many(kind, targets, caplog):
    model, _ = loading.load(f"tiny:{kind}", torch.float32)
    assert loading.lora_reach(model) == (targets, targets)
    assert loading.lora_reach(model, attention_only=True) == (targets - 6, targets)
    with caplog.at_level("INFO"):
        model = loading.adapt(model, 2)
    assert f"LoRA of rank 2 on {targets} of the {targets} projections" in caplog.text
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == targets


def test_a_model_that_can_think_does_so_only_when_asked():
    model, processor = tiny_model.build("qwen3.5")
    messages = with_pictures(task().open_final(VIEWS, TRUTH).messages(), shown(0))
    for thinking, end in ((False, "assistant\n<think>\n\n</think>\n\n"), (True, "assistant\n<think>\n")):
        ids = Sampler(model, processor, 4, thinking=thinking).inputs([messages])["input_ids"][0]
        assert processor.tokenizer.decode(ids).endswith(end)


def test_pictures_are_capped_and_truths_come_from_the_metadata(data, tmp_path):
    pack = pictures.pack(data, "train")
    cases = dataset.places_cases(data, pack, np.array([3, 5]), 20)
    row = cases.row(1)
    assert row["images"][0].size == (20, 20) and row["sample_id"] == "5"
    true = data.rows("train").iloc[5]
    assert row["truth"] == Reply((true.latitude, true.longitude), region=true.state)
    folder = toy.draw(tmp_path / "named", 4, 1)
    table = pd.read_csv(folder / "metadata.csv").assign(country=["Chad", "", "Peru", "", ""], city="Lima")
    table.to_csv(folder / "metadata.csv", index=False)
    named = dataset.truths_of(readers.read(folder, "state"), "train")
    assert [truth.country for truth in named] == ["Chad", None, "Peru", None] and named[0].city == "Lima"


@pytest.fixture(autouse=True, scope="module")
def no_rest():
    """datasets rests 5 seconds at the end of every pass over a stream, for the sake of slow networks."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
        yield


def shards(folder, columns, n=30):
    """Local parquet shards as the hub serves them."""
    import datasets

    def picture(i: int) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (64, 32), (i, 2 * i, 3 * i)).save(out, "PNG")
        return out.getvalue() if i != 7 else b"no picture"

    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(n)]}
    rows |= {columns[0]: [float(i) for i in range(n)], columns[1]: [None if i == 3 else float(-i) for i in range(n)]}
    rows |= {"country": [f"C{i}" if i % 2 else "" for i in range(n)]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    folder.mkdir()
    for part in range(3):
        table.shard(3, part).to_parquet(str(folder / f"train-{part}.parquet"))
    return str(folder)


def test_a_stream_comes_mixed_capped_and_without_what_is_broken(tmp_path):
    source = shards(tmp_path / "world", ("lat", "lon"))

    def taken(seed: int, n: int) -> list:
        stream = iter(dataset.streamed(source, max_side=16, buffer=8, seed=seed))
        return [next(stream) for _ in range(n)]

    rows = taken(0, 28)
    lats = [row["truth"].point[0] for row in rows]
    assert sorted(lats) == [i for i in range(30) if i not in (3, 7)] and lats != sorted(lats)
    assert rows[0]["images"][0].size == (16, 8) and dataset.stream_views(source) == ("only",)
    assert {row["truth"].country for row in rows} >= {None, "C1"}
    assert [row["sample_id"] for row in taken(0, 5)] == [row["sample_id"] for row in rows[:5]]
    assert [row["truth"] for row in taken(1, 5)] != [row["truth"] for row in rows[:5]]
    assert len(taken(0, 60)) == 60  # goes round
    with pytest.raises(KitError, match=r"expected an Image column, latitude or lat"):
        dataset.streamed(shards(tmp_path / "none", ("north", "east")), max_side=16)
    for wrong, split, message in ((tmp_path / "nowhere", "train", "cannot be streamed"), (source, "best", "best")):
        with pytest.raises(KitError, match=message):
            dataset.streamed(str(wrong), split, max_side=16)


def test_fine_tuning_guesses_what_it_did_not_see_and_records_it(sft, data):
    oof, test = sft.guesses("oof"), sft.guesses("test")
    assert len(oof) == 12 and sorted(test.sample_id) == sorted(data.sample_id("test"))
    assert sft.metrics["oof"] == metrics.score_guesses(oof, data).as_dict()
    chosen = sft.metrics["states_by"]["0"]
    assert chosen["state_scores"][chosen["chosen"]] == max(chosen["state_scores"].values())
    assert np.array_equal(vlm.predict("sft", data).points, test.points)
    history = fold_files.history(sft)
    assert history["loss"].iloc[1] > 2 * history["loss"].dropna().iloc[-1]
    evaluated = history.dropna(subset=["eval_reward"]).set_index("step")
    assert evaluated.index.tolist() == [0, 80] and evaluated["eval_parsed"][0] == 0 < evaluated["eval_parsed"][80]
    frame = rollouts.read(sft.dir / "rollouts")
    assert set(frame["phase"]) == {"eval"} and len(frame) == 2 * 6 * 2
    assert not list(fold_files.folder(sft, 0).glob("sft/checkpoint-*"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fine_tuning_goes_on_to_the_same_weights(data, precision, monkeypatch):
    monkeypatch.setenv("KITLIB_PRECISION", precision)
    config = dataclasses.replace(SFT, steps=3, checkpoint_steps=1, eval_steps=2)
    whole = vlm.train(config, data, f"whole-{precision}")
    for _ in range(3):
        run = vlm.train(config, data, f"parts-{precision}", max_hours=1e-9)
    assert run.settings["precision"] == precision
    assert run.finished and same(learned(whole), learned(run))
    assert len(fold_files.history(run)) == len(fold_files.history(whole))


def test_guessing_goes_on_where_it_was_stopped(sft, data, monkeypatch):
    monkeypatch.setattr(reply_cache, "PLACES", 5)
    config = dataclasses.replace(SFT, method="grpo", start_from="sft", steps=1, batch=4, device_batch=4, group=4)
    whole = vlm.train(config, data, "said-whole")
    sizes, generate = [], guessing.generate

    def counted(cases, *rest):
        sizes.append(len(cases))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return generate(cases, *rest)

    def learn(max_hours=None):
        return vlm.train(config, data, "said-parts", max_hours=max_hours)

    learn(1e-9)  # the step, and the first part of 12 held-out places
    monkeypatch.setattr("kitlib.models.vlm.session.generate", counted)
    learn(1e-9)  # the second
    assert sizes == [5]
    with pytest.raises(KeyboardInterrupt):
        learn()
    run = learn()
    assert sizes == [5, 2, 5, 5, 1] and run.finished  # of 6 test places the first part was stopped
    for split in ("oof", "test"):
        a, b = whole.guesses(split), run.guesses(split)
        assert np.array_equal(a.points, b.points, equal_nan=True) and np.array_equal(a.state_probs, b.state_probs)


@pytest.fixture(scope="module")
def grpo(sft, data):
    return vlm.train(GRPO, data, "grpo")


def test_groups_are_centred_tau_follows_the_steps_and_constant_groups_are_counted(grpo):
    frame = rollouts.read(grpo.dir / "rollouts")
    train = frame[frame["phase"] == "train"]
    assert len(train) == 4 * 8 and train["rollout"].tolist() == [0, 1, 2, 3] * 8
    assert train.groupby("step")["tau_km"].first().round().tolist() == [8000, 5040, 3175, 2000]
    constant = 0
    for _, group in train.groupby(["step", "sample_id"]):
        assert abs(group["advantage"].sum()) < 1e-3
        assert (group["advantage"].rank() == group["reward"].rank()).all()
        constant += int(group["reward"].nunique() == 1)
    history = fold_files.history(grpo)
    assert history["groups/constant"].sum() == constant
    assert history["tau_km"].dropna().round().tolist() == [8000, 5040, 3175, 2000]
    assert all((grpo.dir / "rollouts/pictures" / name).is_file() for names in train["pictures"] for name in names)


def flip(file):
    """Change a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_damaged_weights_are_refused_and_damaged_replies_generated_anew(grpo, data, tmp_path, caplog):
    whole, fold = grpo.guesses("test"), fold_files.folder(grpo, 0)
    for part in (fold / "said").glob("test-*.json"):
        saved = part.read_bytes()
        part.write_bytes(saved.replace(b'"replies": [[["', b'"replies": [[["x', 1))
        assert np.array_equal(vlm.predict("grpo", data).points, whole.points) and part.read_bytes() == saved
    assert "its replies are generated anew" in caplog.text
    shutil.copytree(fold / "model", tmp_path / "model")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {storage.MODE}
    flip(tmp_path / "model/model.safetensors")
    with pytest.raises(Damaged, match=r"model\.safetensors in model: expected the file as it was written.*delete"):
        loading.reload("tiny", tmp_path, torch.float32)


def test_reinforcement_learning_goes_on_to_the_same_weights_and_tau(grpo, data):
    for _ in range(4):
        run = vlm.train(GRPO, data, "grpo-parts", max_hours=1e-9)
    assert run.finished and same(learned(grpo), learned(run))
    a, b = (rollouts.read(one.dir / "rollouts") for one in (grpo, run))
    assert a.drop(columns="pictures").equals(b.drop(columns="pictures"))


def test_a_curriculum_draws_by_the_rewards_so_far_and_goes_on_with_them(sft, data):
    config = dataclasses.replace(GRPO, curriculum=4.0, steps=3)
    whole = vlm.train(config, data, "curriculum")
    for _ in range(3):
        run = vlm.train(config, data, "curriculum-parts", max_hours=1e-9)
    assert run.finished and same(learned(whole), learned(run))
    ids = data.sample_id("train")[Session.open(run, data).fold_rows(0)[0]].astype(str)
    curriculum = Curriculum(len(ids), 4.0, seed=0)
    for step, rows in rollouts.read(run.dir / "rollouts").query("phase == 'train'").groupby("step"):
        places = curriculum.draw(step, 2)
        assert rows["sample_id"].tolist() == np.repeat(ids[places], 4).tolist()
        curriculum.update(places, rows["reward"].to_numpy(float).reshape(2, 4).std(axis=1))


def test_a_checkpoint_that_was_cut_short_is_passed_over(data):
    config = dataclasses.replace(GRPO, checkpoint_steps=1)
    run = vlm.train(config, data, "cut", max_hours=1e-9)
    inner = fold_files.folder(run, 0) / "grpo"
    shutil.copytree(inner / "checkpoint-1", inner / "checkpoint-2")
    (inner / "checkpoint-2/trainer_state.json").write_text('{"epoch":')
    vlm.train(config, data, "cut", max_hours=1e-9)
    assert sorted(path.name for path in inner.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not [*run.dir.rglob("README.md"), *run.dir.rglob("training_args.bin")]
    assert not [path for path in run.dir.rglob("*.json") if str(paths.home()) in path.read_text()]
    flip(inner / "checkpoint-2/model.safetensors")
    assert trainer.newest(inner) == str(inner / "checkpoint-1")
    assert sorted(path.name for path in inner.glob("checkpoint-*")) == ["checkpoint-1"]


@pytest.mark.parametrize("environment", ["telescoping", "hierarchical", "geohash"])
def test_several_turns_with_lora_on_the_other_generation(data, environment):
    config = dataclasses.replace(
        GRPO, model="tiny:qwen3", start_from="", lora_rank=2, environment=environment, steps=2, lengths="2,3"
    )
    run = vlm.train(config, data, environment)
    frame = rollouts.read(run.dir / "rollouts")
    assert {len(replies) for replies in frame["replies"]} <= {1, 2} and set(frame["environment"]) == {environment}
    assert loading.saved(fold_files.folder(run, 0)).name == "adapter"
    assert len(run.guesses("oof")) == 12


@pytest.mark.parametrize("environment", ["single", "telescoping"])
def test_linear_attention_is_taught_rewarded_and_guesses(data, environment):
    taught = dataclasses.replace(SFT, model="tiny:qwen3.5", lora_rank=2, environment=environment, steps=2)
    name = f"linear-{environment}"
    vlm.train(taught, data, name)
    rewarded = dataclasses.replace(
        GRPO, model="tiny:qwen3.5", start_from=name, lora_rank=2, environment=environment, steps=2
    )
    run = vlm.train(rewarded, data, f"{name}-grpo")
    assert len(run.guesses("oof")) == 12 and set(run.metrics["states_by"]["0"]["state_scores"]) == {
        "samples",
        "likelihood",
    }


def test_ranked_replies_are_taught_and_earn_the_score(data):
    ranked = {"fields": "states,point", "reply_tokens": 48, "reward_distance": 0.0, "reward_score": 1.0}
    vlm.train(dataclasses.replace(SFT, steps=2, **ranked), data, "ranked")
    run = vlm.train(dataclasses.replace(GRPO, start_from="ranked", steps=2, **ranked), data, "ranked-grpo")
    example = analysis.examples(dataclasses.replace(SFT, **ranked), data, 1)["reply"][0]
    first, second = example.splitlines()
    assert first.startswith("States: ") and second.startswith("Coordinates: ")
    names = first.removeprefix("States: ").split(", ")
    near = dataset.nearest_states(data)
    assert tuple(names) == near[names[0]] and names[0] == data.rows("train")["state"].iloc[0]
    assert len(run.guesses("oof")) == 12


def test_replies_that_would_always_be_cut_are_refused(data):
    with pytest.raises(
        KitError, match=r"reply_tokens: expected at least \d+ for replies such as '(State|Region): .*; got 8"
    ):
        vlm.train(dataclasses.replace(SFT, reply_tokens=8), data, "too-short")


def test_an_adapter_is_merged_by_command(data, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(SFT, model="tiny:qwen3", lora_rank=2, steps=2)
    run, out = vlm.train(config, data, "adapted"), tmp_path / "merged"
    monkeypatch.setattr("sys.argv", ["kitlib", "merge", "adapted", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and capsys.readouterr().out == f"{out}\n"
    model, processor = loading.load(f"hf:{out}", torch.float32)
    adapted, _ = loading.reload("tiny:qwen3", fold_files.folder(run, 0), torch.float32)
    messages = [with_pictures(task().open_final(VIEWS, TRUTH).messages(), shown(0))]
    merged, unmerged = (Sampler(m, processor, 8, 0.0).prefill(messages).generate([[]])[0] for m in (model, adapted))
    assert merged == unmerged
    with pytest.raises(KitError, match="merged exists"):
        vlm.merge("adapted", out)
    with pytest.raises(KitError, match="fold 3 is not trained"):
        vlm.merge("adapted", tmp_path / "other", 3)


def test_tokens_are_credited_turn_by_turn(sft, data, monkeypatch):
    steps, score = [], PlaceTrainer._generate_and_score_completions

    def recorded(trainer, inputs):
        output = score(trainer, inputs)
        steps.append((output["advantages"].numpy(), list(trainer.dialogues)))
        return output

    monkeypatch.setattr(PlaceTrainer, "_generate_and_score_completions", recorded)
    run = vlm.train(dataclasses.replace(GRPO, environment="telescoping", steps=2), data, "credited")
    frame = rollouts.read(run.dir / "rollouts").query("phase == 'train'")
    for step, (by_token, dialogues) in enumerate(steps):
        rewards = np.array([dialogue.rewards for dialogue in dialogues]).reshape(2, 4, 2)
        expected = turn_advantages(rewards).reshape(8, 2)
        expected[np.repeat(np.ptp(rewards.sum(2), axis=1) < 1e-6, 4)] = 0.0
        assert np.allclose(frame.loc[frame["step"] == step, "advantage"].astype(float), expected[:, 0], atol=1e-4)
        for row, dialogue, by_turn in zip(by_token, dialogues, expected, strict=True):
            own = np.array(dialogue.model_mask, bool)
            assert np.allclose(row[: len(own)][own], by_turn[dialogue.token_turns[own]], atol=1e-5)
            assert sorted(set(dialogue.token_turns[own])) == [0, 1] and not row[len(own) :].any()
    assert len(steps) == 2 and any(row.any() for row, _ in steps)


def test_an_adapter_is_learned_on_and_goes_on_to_the_same_weights(sft, data):
    taught = f"hf:{fold_files.folder(sft, 0) / 'model'}"  # a folder as any published model's
    lora = dataclasses.replace(SFT, model=taught, lora_rank=2, steps=2)
    before = vlm.train(lora, data, "lora")
    # With a KL term trl keeps a second adapter, of what it began with.
    config = dataclasses.replace(GRPO, model=taught, start_from="lora", lora_rank=2, kl=0.1, steps=3, rate=1e-2)
    whole = vlm.train(config, data, "lora-whole")
    for _ in range(3):
        run = vlm.train(config, data, "lora-parts", max_hours=1e-9)
    assert run.finished and same(learned(whole), learned(run)) and not same(learned(before), learned(run))
    assert not (fold_files.folder(run, 0) / "adapter/ref").exists()


@pytest.mark.parametrize(("precision", "packs"), [("float32", False), ("bfloat16", True)])
def test_weights_in_4_bits_are_adapted_rewarded_and_merged(sft, data, tmp_path, precision, packs, monkeypatch):
    """packs: as on a CPU with AVX512-BF16, where bitsandbytes would pack weights."""
    monkeypatch.setenv("KITLIB_PRECISION", precision)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: packs)
    bits = f"bits-{precision}-{packs}"
    taught = f"hf:{fold_files.folder(sft, 0) / 'model'}"
    config = dataclasses.replace(SFT, model=taught, four_bit=True, lora_rank=2, steps=3, gradient_checkpointing=True)
    vlm.train(config, data, bits)
    rewarded = dataclasses.replace(GRPO, model=taught, four_bit=True, lora_rank=2, start_from=bits, steps=2)
    run = vlm.train(rewarded, data, f"{bits}-grpo")
    model, _ = loading.reload(taught, fold_files.folder(run, 0), torch.float32, four_bit=True)
    kinds = {name.split(".")[-2]: type(part).__name__ for name, part in model.named_modules() if "base_layer" in name}
    assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit"
    assert fold_files.history(run)["loss"].notna().sum() == 2 and run.guesses("oof").answered.any()
    merged, _ = loading.load(f"hf:{vlm.merge(f'{bits}-grpo', tmp_path / 'merged')}", "auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_a_constant_group_changes_no_weights(data):
    config = dataclasses.replace(GRPO, start_from="", steps=1)
    run = vlm.train(config, data, "nothing")
    plain = loading.load("tiny", torch.float32)[0].state_dict()
    assert fold_files.history(run)["groups/constant"].sum() == 2
    assert all(torch.equal(plain[name], value) for name, value in learned(run).items())


def test_a_stream_is_learned_from_instead_of_the_places(data, tmp_path):
    source = shards(tmp_path / "world", ("latitude", "longitude"))
    config = dataclasses.replace(SFT, stream=source, shuffle_buffer=4, steps=2, batch=4, device_batch=4)
    assert vlm.train(config, data, "streamed").finished
    rewarded = dataclasses.replace(GRPO, stream=source, start_from="", steps=1)
    frame = rollouts.read(vlm.train(rewarded, data, "streamed-grpo").dir / "rollouts")
    assert set(frame.loc[frame["phase"] == "train", "truth"].str[1].round(4) <= 0) == {True}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "gpt"}, "expected tiny, tiny:qwen3, tiny:qwen3.5, hf:"),
        ({"model": "tiny:llama"}, "got 'tiny:llama'"),
        ({"method": "grpo", "group": 5}, "expected a multiple of a group of at least 2"),
        ({"batch": 10}, "expected a multiple of device_batch 16; got 10"),
        ({"four_bit": True}, "lora_rank: expected more than 0 with four_bit"),
        ({"vllm": True}, "which generates nothing in training"),
        ({"fields": "point,region"}, "in this order"),
        ({"kl": 0.1}, "kl: expected 0 with lora_rank 0"),
        ({"sft_weight": 1.0, "environment": "geohash"}, "sft_weight: expected 0 with several turns or reasoning"),
        ({"curriculum": 1.0, "stream": "x"}, "curriculum: expected 0 with stream"),
        ({"method": "grpo", "vllm": True, "stream": "x"}, "vllm: expected False with stream"),
        ({"radii_km": "far"}, "radii_km: expected numbers above 0"),
        ({"lengths": "2.7"}, "lengths: expected increasing values"),
        ({"fields": "x"}, "fields: expected some of city, region, country, states, point"),
        ({"fields": ""}, "fields: expected some of city, region, country, states, point"),
        ({"start_from": "../x"}, "start_from: expected 1 to 100 letters"),
        ({"samples": 10**6}, "samples: expected at most 1024"),
        (
            {"method": "grpo", "reward_distance": 0.0, "reward_form": 0.0, "reward_region": 0.0},
            "a weight above 0 for one",
        ),
        ({"environment": "dance"}, "expected one of single"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(KitError, match=message):
        dataclasses.replace(SFT, **wrong)


def test_what_is_not_installed_or_does_not_fit_is_refused_before_a_run_begins(sft, data, monkeypatch):
    for wrong, message in (
        ({"four_bit": True, "lora_rank": 4}, "four_bit: expected False with tiny; got True"),
        ({"vllm": True}, "vllm needs the library vllm"),
        ({"lora_rank": 4}, "lora_rank: expected 0 as in 'sft'; got 4"),
        ({"start_from": "nobody"}, "there is no run 'nobody'"),
    ):
        with pytest.raises(KitError, match=message):
            vlm.train(dataclasses.replace(GRPO, **wrong), data, "refused")
    with pytest.raises(KitError, match="on places that are held out here"):
        vlm.train(GRPO, data, "refused", folds_column="spatial")
    with pytest.raises(KitError, match="has no fold 1"):
        vlm.train(GRPO, data, "refused", only_folds=[1])
    with pytest.raises(KitError, match="cannot be loaded"):
        loading.load("hf:/nowhere/at-all", torch.float32)
    monkeypatch.setattr(loading, "check", lambda *_: None)
    monkeypatch.setattr(pictures.Pack, "sizes", [(28, 28), (20, 28)])
    with pytest.raises(KitError, match="vllm: expected train pictures of one size"):
        vlm.train(dataclasses.replace(GRPO, vllm=True), data, "refused")
    assert "refused" not in runs.list_runs()


def test_a_model_or_a_stream_that_cannot_be_read_leaves_no_run(data, tmp_path):
    model, processor = tiny_model.build("qwen2.5")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loading.check_published(str(tmp_path), 4, False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")  # where a pickle with code would be
    for wrong, message in (
        ({"model": f"hf:{tmp_path}"}, "its weights are not in .safetensors files"),
        ({"model": "hf:/nowhere/at-all"}, "hf:/nowhere/at-all cannot be loaded"),
        ({"stream": "/nowhere"}, "dataset nowhere .* cannot be streamed"),
    ):
        with pytest.raises(KitError, match=message):
            vlm.train(dataclasses.replace(SFT, **wrong), data, "unreadable")
    assert "unreadable" not in runs.list_runs()


def test_a_run_of_another_family_is_not_merged(data, tmp_path):
    runs.start("other", {"family": "multiview"}, data={})
    with pytest.raises(KitError, match="run other: expected a run of the family vlm; got one of multiview"):
        vlm.merge("other", tmp_path / "out")


def test_a_model_that_is_built_otherwise_is_refused(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, eyes = hf.LlamaConfig(vocab_size=1200, **small), hf.CLIPVisionConfig(image_size=28, patch_size=14, **small)
    hf.LlavaForConditionalGeneration(hf.LlavaConfig(text_config=text, vision_config=eyes)).save_pretrained(tmp_path)
    tiny_model.build("qwen2.5")[1].save_pretrained(tmp_path)
    with pytest.raises(
        KitError,
        match=r"expected the architecture of Qwen2.5-VL, Qwen3-VL or Qwen3.5; hf:.* is a LlavaForConditionalGeneration",
    ):
        loading.load(f"hf:{tmp_path}", torch.float32)


def test_the_preset_for_drawn_places():
    sft, grpo = (Config.from_dict({"method": method}, "sample") for method in ("sft", "grpo"))
    assert (sft.model, sft.rate, sft.lora_rank, grpo.rate, grpo.tau_schedule) == ("tiny", 2e-3, 0, 2e-4, "fixed")
    published = Config.from_dict({"method": "grpo", "model": "hf:Qwen/Qwen3-VL-4B-Instruct"}, "sample")
    assert (published.rate, published.lora_rank, published.digits) == (0.0, 16, 4)  # all weights at 2e-3 would ruin it
