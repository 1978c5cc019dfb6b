"""Whether a vision-language model learns here: fine-tuning makes its answers parse, then rewards make them better.

The tiny Qwen2.5-VL, on the colour-coded toy set (`kitlib.data.sample.toy`) and on the drawn sample competition,
in one turn and telescoping, each with several seeds. All figures are of the 200 places that a fold holds out and four
replies to each: rewards with replies as sampled in training, at temperature 1; what parses after fine-tuning, and
"cool" rewards, with replies as sampled for guesses, at 0.7 and top-p 0.95: how much of the gain cooling alone gives.
The curves are evaluations on fewer places, so that they do not take longer than the training.

    OMP_NUM_THREADS=1 python benchmarks/vlm.py                             # all of it
    OMP_NUM_THREADS=1 python benchmarks/vlm.py --data toy --seeds 0        # one seed of the toy set
    python benchmarks/vlm.py --home FOLDER --figure curves.png             # runs are kept there; what is there is read

Beside each mean stands that of one constant reply: the commonest region and the point in the middle of the map.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
import warnings
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator

from kitlib.data import readers
from kitlib.data.places import Places
from kitlib.data.sample import competition as sample
from kitlib.data.sample import toy
from kitlib.evaluation import crossval, runs
from kitlib.evaluation.runs import Run
from kitlib.figures import style
from kitlib.models.vlm import config as vlm_config
from kitlib.models.vlm import guessing, loading
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.conversation.replies import Reply
from kitlib.models.vlm.generation import Sampler
from kitlib.models.vlm.session import Session

TOY = vlm_config.Config(
    model="tiny",
    lora_rank=0,
    gradient_checkpointing=False,
    max_side=28,
    digits=1,
    batch=16,
    device_batch=16,
    rate=2e-3,
    radii_km="3000,1000",
    reply_tokens=24,
    samples=4,
    tau_schedule="fixed",
    tau_last_km=2000.0,
    reward_region=0.25,
    eval_steps=50,
    eval_places=80,
)
# Four views a place, and a harder one: states and a few hundred kilometres.
SAMPLE = dataclasses.replace(TOY, max_side=96, radii_km="500,200", tau_last_km=500.0)
# Steps of fine-tuning, whose lessons are one turn each.
STEPS = {("toy", "single"): 300, ("toy", "telescoping"): 600, ("sample", "single"): 500, ("sample", "telescoping"): 600}
# Of GRPO, whose steps are all turns.
GRPO: dict[tuple[str, str], dict[str, Any]] = {
    ("toy", "single"): {"steps": 150, "rate": 5e-4},
    ("toy", "telescoping"): {"steps": 100, "rate": 2e-4},
    ("sample", "single"): {"steps": 200, "rate": 2e-4},
    ("sample", "telescoping"): {"steps": 300, "rate": 2e-4, "credit": "talk"},
}
REWARDED: dict[str, Any] = {"method": "grpo", "batch": 64, "device_batch": 64, "group": 8}
REWARDED |= {"guess_temperature": 1.0, "guess_top_p": 1.0}  # as in training: the reward that is being raised


def looks(run: Run, method: str) -> pd.DataFrame:
    """Held-out places at each look, with the step."""
    history = pd.read_csv(run.checkpoints / "fold_0" / method / "history.csv")
    return history.dropna(subset=["eval_reward"]).set_index("step")


def learn(config: vlm_config.Config, more: dict[str, Any], data: Places, name: str) -> pd.DataFrame:
    """One seed: the looks of reinforcement learning after fine-tuning; a run that is there is not repeated."""
    began = time.perf_counter()
    tuned = vlm.train(config, data, f"{name}-sft")
    rewarded = dataclasses.replace(config, start_from=f"{name}-sft", **REWARDED, **more)
    run = vlm.train(rewarded, data, f"{name}-grpo" + f"-{rewarded.credit}" * (config.environment != "single"))
    trained = time.perf_counter() - began
    said = {"before": replies(tuned, data), "after": replies(run, data)}
    found = {f"{kind}_{when}": of[kind] for when, of in said.items() for kind in of}
    print(
        f"  {name}: {found['parsed_before']:.1%} parse after fine-tuning;"
        f" reward {found['reward_before']:.3f} to {found['reward_after']:.3f},"
        f" cool {found['cool_before']:.3f} to {found['cool_after']:.3f} (trained for {trained:.0f} s)",
        flush=True,
    )
    return looks(run, "grpo").assign(seed=config.seed, **found)


def replies(run: Run, data: Places) -> dict[str, float]:
    """The mean reward about all held-out places as sampled in training and as for guesses, and what of these parses."""
    session = Session.open(run, data)
    cases = session.cases("train", session.parts(0)[1])
    model, processor = loading.reload(run.settings["model"], crossval.folder(run, 0), torch.float32)
    found = {}
    for kind, temperature, top_p in (("reward", 1.0, 1.0), ("cool", TOY.guess_temperature, TOY.guess_top_p)):
        speaker = Sampler(model, processor, session.config.reply_tokens, temperature, top_p)
        torch.manual_seed(session.config.seed)
        dialogues = [
            dialogue
            for row in guessing.generate(cases, session.task, speaker, TOY.samples, 320).dialogues
            for dialogue in row
        ]
        found[kind] = float(np.mean([dialogue.reward for dialogue in dialogues]))
        found["parsed"] = float(
            np.mean([dialogue.metrics[-1]["parsed"] for dialogue in dialogues])
        )  # of the cool ones at last
    return found


def constant(data: Places, run: str) -> float:
    """The mean reward of one reply to all held-out places: the commonest region, the middle of the training places."""
    session = Session.open(runs.open_run(run), data)
    prior, held_out = session.prior(0), session.parts(0)[1]
    region = prior.states.names[int(prior.common.argmax())]
    reply = session.task.form.write(Reply(tuple(prior.middle.tolist()), region=region))
    cases, rewards = session.cases("train", held_out), []
    for truth in cases.truths:
        env = session.task.last(cases.views, truth)
        rewards.append(sum(env.step(reply).reward for _ in range(env.turns)))
    return float(np.mean(rewards))


@style.house
def draw(curves: dict[str, pd.DataFrame], baseline: dict[str, float], path: Path) -> None:
    """Held-out reward over steps, a line a seed, a panel for each data set and environment."""
    figure = style.new(2.8, width=2.6 * len(curves))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, seen) in zip(panels, curves.items(), strict=True):
        for colour, (seed, one) in zip(cycle(style.PALETTE), seen.groupby("seed"), strict=False):
            axes.plot(one.index, one["eval_reward"], color=colour, marker="o", ms=3, label=f"seed {seed}")
        axes.axhline(baseline[name], color="0.5", ls=":", label="one constant reply")
        axes.set(title=name, xlabel="step of GRPO")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0].set_ylabel("mean held-out reward")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="toy,sample")
    parser.add_argument("--environment", default="single,telescoping")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--credit", help="of several turns: turn or dialogue, by default as GRPO has it")
    parser.add_argument("--home", help="where runs are kept, and gone on with; without it they are not")
    parser.add_argument("--figure", type=Path, help="where the curves are drawn")
    asked = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(asked.home or temporary).absolute()
        os.environ["KITLIB_HOME"] = str(home)
        curves, baseline = {}, {}
        for name, environment in product(asked.data.split(","), asked.environment.split(",")):
            data = readers.read(drawn(home, name))
            steps, more = STEPS[name, environment], GRPO[name, environment]
            more = more | ({"credit": asked.credit} if asked.credit else {})
            print(f"{name}, {environment}: {steps} steps of fine-tuning; GRPO {more}")
            config = dataclasses.replace(TOY if name == "toy" else SAMPLE, environment=environment, steps=steps)
            each = [
                learn(dataclasses.replace(config, seed=int(seed)), more, data, f"{name}-{environment}-{seed}")
                for seed in asked.seeds.split(",")
            ]
            title = f"{name}, {environment}"
            curves[title] = pd.concat(each)
            baseline[title] = constant(data, f"{name}-{environment}-{asked.seeds.split(',')[0]}-sft")
            tell(each, baseline[title])
        if asked.figure:
            draw(curves, baseline, asked.figure)


def tell(each: list[pd.DataFrame], baseline: float) -> None:
    """What the seeds come to together."""
    found = pd.DataFrame([seen.iloc[0] for seen in each])
    gains = found["reward_after"] - found["reward_before"]
    spread = f" +- {gains.std():.3f}" if len(gains) > 1 else ""
    mean = found.mean(numeric_only=True)
    print(
        f"  reward {mean.reward_before:.3f} to {mean.reward_after:.3f}, gain {gains.mean():+.3f}{spread},"
        f" cool {mean.cool_before:.3f} to {mean.cool_after:.3f} (one constant reply {baseline:.3f});"
        f" {found.parsed_before.min():.1%} to {found.parsed_before.max():.1%} parse after fine-tuning",
        flush=True,
    )


def drawn(home: Path, name: str) -> Path:
    """Where a data set is, drawn when it is not there yet."""
    folder = home / name
    there = folder / ("metadata.csv" if name == "toy" else "kaggle_dataset")
    if not there.exists():
        if name == "toy":
            toy.draw(folder, n_train=1000)
        else:
            sample.draw(folder, n_train=1000, n_test=20, size=96)
    return folder if name == "toy" else there


def quiet() -> None:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
