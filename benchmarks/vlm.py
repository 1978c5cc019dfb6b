"""Measure the gain of a vision-language model: fine-tuning makes its replies parse, then GRPO raises their reward.

The tiny Qwen2.5-VL, on the colour-coded toy set (`toy.py`) and on the drawn sample competition,
in one turn and telescoping, each with several seeds. All numbers are means over the 200 held-out places of a fold and
four replies to each. Rewards are of replies as sampled in training, at temperature 1. Parsed shares and "cool" rewards
are of replies as sampled for guesses, at 0.7 and top-p 0.95, and show how much of the gain cooling alone gives. The
curves are evaluations on fewer places, so that they do not take longer than the training.

    OMP_NUM_THREADS=1 python benchmarks/vlm.py                             # all of it
    OMP_NUM_THREADS=1 python benchmarks/vlm.py --data toy --seeds 0        # one seed of the toy set
    OMP_NUM_THREADS=1 python benchmarks/vlm.py --data sample --environment ranked  # five states, paid as scored
    python benchmarks/vlm.py --more '{"curriculum": 1.0}'                  # GRPO with other settings
    python benchmarks/vlm.py --more '{"method": "sft", "batch": 16, "device_batch": 16}'  # fine-tuning again
    python benchmarks/vlm.py --home FOLDER --figure curves.png             # keeps runs there, reads existing ones

Each mean is printed beside that of one constant reply: the commonest region and the middle of the training places.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
import toy
from matplotlib.ticker import MaxNLocator

from kitlib.data import readers
from kitlib.data.places import Places
from kitlib.data.sample import competition as sample
from kitlib.evaluation import fold_files, runs
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
# A reply as the competition's row, five states and a point, which earns the competition's score.
RANKED: dict[str, Any] = {"fields": "states,point", "reply_tokens": 48, "reward_distance": 0.0, "reward_score": 1.0}
# Steps of fine-tuning, whose examples are one turn each.
STEPS = {
    ("sample", "ranked"): 300,
    ("toy", "single"): 300,
    ("toy", "telescoping"): 600,
    ("sample", "single"): 500,
    ("sample", "telescoping"): 600,
}
# Of GRPO, whose steps are all turns.
GRPO: dict[tuple[str, str], dict[str, Any]] = {
    ("toy", "single"): {"steps": 150, "rate": 5e-4},
    ("sample", "ranked"): {"steps": 60, "rate": 2e-4, "guess_temperature": 0.7, "guess_top_p": 0.95},
    ("toy", "telescoping"): {"steps": 100, "rate": 2e-4},
    ("sample", "single"): {"steps": 200, "rate": 2e-4},
    ("sample", "telescoping"): {"steps": 300, "rate": 2e-4, "credit": "talk"},
}
REWARDED: dict[str, Any] = {"method": "grpo", "batch": 64, "device_batch": 64, "group": 8}
REWARDED |= {"guess_temperature": 1.0, "guess_top_p": 1.0}  # as in training, whose reward GRPO raises


def evaluations(run: Run, method: str) -> pd.DataFrame:
    """The scores of held-out places at each evaluation, by step."""
    history = pd.read_csv(run.checkpoints / "fold_0" / method / "history.csv")
    return history.dropna(subset=["eval_reward"]).set_index("step")


def learn(config: vlm_config.Config, more: dict[str, Any], data: Places, name: str, kind: str) -> pd.DataFrame:
    """One seed: the evaluations of reinforcement learning after fine-tuning; an existing run is read, not repeated.

    more: its settings. kind: end of its run's name.
    """
    began = time.perf_counter()
    tuned = vlm.train(config, data, f"{name}-sft")
    rewarded = dataclasses.replace(config, start_from=f"{name}-sft", **(REWARDED | more))
    run = vlm.train(rewarded, data, f"{name}-{kind}")
    trained = time.perf_counter() - began
    both = {"before": reply_scores(tuned, data), "after": reply_scores(run, data)}
    scores = {f"{kind}_{when}": values[kind] for when, values in both.items() for kind in values}
    scores |= {"score_before": tuned.metrics["oof"]["final"], "score_after": run.metrics["oof"]["final"]}
    print(
        f"  {name}: {scores['parsed_before']:.1%} parse after fine-tuning;"
        f" reward {scores['reward_before']:.3f} to {scores['reward_after']:.3f},"
        f" cool {scores['cool_before']:.3f} to {scores['cool_after']:.3f},"
        f" score {scores['score_before']:.4f} to {scores['score_after']:.4f} (trained for {trained:.0f} s)",
        flush=True,
    )
    return evaluations(run, rewarded.method).assign(seed=config.seed, **scores)


def reply_scores(run: Run, data: Places) -> dict[str, float]:
    """The mean reward of held-out places as sampled in training and as for guesses, and the latter's parsed share."""
    session = Session.open(run, data)
    cases = session.cases("train", session.fold_rows(0)[1])
    model, processor = loading.reload(run.settings["model"], fold_files.folder(run, 0), torch.float32)
    scores = {}
    for kind, temperature, top_p in (("reward", 1.0, 1.0), ("cool", TOY.guess_temperature, TOY.guess_top_p)):
        sampler = Sampler(model, processor, session.config.reply_tokens, temperature, top_p)
        torch.manual_seed(session.config.seed)
        rows = guessing.generate(cases, session.task, sampler, TOY.samples, 320).dialogues
        dialogues = [dialogue for row in rows for dialogue in row]
        scores[kind] = float(np.mean([dialogue.reward for dialogue in dialogues]))
        scores["parsed"] = float(np.mean([dialogue.metrics[-1]["parsed"] for dialogue in dialogues]))
    return scores


def constant(data: Places, run: str) -> float:
    """The mean reward of one reply to all held-out places: the commonest region, the middle of the training places."""
    session = Session.open(runs.open_run(run), data)
    prior, held_out = session.prior(0), session.fold_rows(0)[1]
    commonest = [prior.states.names[i] for i in np.argsort(-prior.state_shares)[:5]]
    middle = Reply(tuple(prior.middle.tolist()), region=commonest[0], states=tuple(commonest))
    reply = session.task.form.write(middle)
    cases, rewards = session.cases("train", held_out), []
    for truth in cases.truths:
        env = session.task.open_final(cases.views, truth)
        rewards.append(sum(env.step(reply).reward for _ in range(env.turns)))
    return float(np.mean(rewards))


@style.house
def draw(curves: dict[str, pd.DataFrame], baseline: dict[str, float], path: Path) -> None:
    """Held-out reward over steps, a line a seed, a panel for each data set and environment."""
    figure = style.new(2.8, width=2.6 * len(curves))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, table) in zip(panels, curves.items(), strict=True):
        for colour, (seed, one) in zip(cycle(style.PALETTE), table.groupby("seed"), strict=False):
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
    parser.add_argument("--places", type=int, default=1000, help="training places, a fifth of them held out")
    parser.add_argument("--more", type=json.loads, default={}, help="settings of GRPO in place of the above, as JSON")
    parser.add_argument("--home", help="folder in which runs are kept and resumed; without it they are deleted")
    parser.add_argument("--figure", type=Path, help="file for the curves")
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(args.home or temporary).absolute()
        os.environ["KITLIB_HOME"] = str(home)
        curves, baseline = {}, {}
        for name, environment in product(args.data.split(","), args.environment.split(",")):
            data = readers.read(drawn(home, name, args.places))
            steps, more = STEPS[name, environment], GRPO[name, environment]
            more, kind = more | args.more, "-".join(["grpo", *(f"{key}{value}" for key, value in args.more.items())])
            print(f"{name}, {environment}: {steps} steps of fine-tuning; GRPO {more}")
            changes = RANKED if environment == "ranked" else {"environment": environment}
            config = dataclasses.replace(TOY if name == "toy" else SAMPLE, steps=steps, **changes)
            each = [
                learn(dataclasses.replace(config, seed=int(seed)), more, data, f"{name}-{environment}-{seed}", kind)
                for seed in args.seeds.split(",")
            ]
            title = f"{name}, {environment}"
            curves[title] = pd.concat(each)
            baseline[title] = constant(data, f"{name}-{environment}-{args.seeds.split(',')[0]}-sft")
            summarise(each, baseline[title])
        if args.figure:
            draw(curves, baseline, args.figure)


def summarise(each: list[pd.DataFrame], baseline: float) -> None:
    """Print the mean over the seeds."""
    scores = pd.DataFrame([table.iloc[0] for table in each])
    gains = scores["reward_after"] - scores["reward_before"]
    spread = f" +- {gains.std():.3f}" if len(gains) > 1 else ""
    scored = scores["score_after"] - scores["score_before"]
    mean = scores.mean(numeric_only=True)
    print(
        f"  reward {mean.reward_before:.3f} to {mean.reward_after:.3f}, gain {gains.mean():+.3f}{spread},"
        f" cool {mean.cool_before:.3f} to {mean.cool_after:.3f},"
        f" out-of-fold score {mean.score_before:.4f} to {mean.score_after:.4f} ({scored.mean():+.4f}"
        f"{f' +- {scored.std():.4f}' if len(scored) > 1 else ''}) (one constant reply {baseline:.3f});"
        f" {scores.parsed_before.min():.1%} to {scores.parsed_before.max():.1%} parse after fine-tuning",
        flush=True,
    )


def drawn(home: Path, name: str, places: int = 1000) -> Path:
    """The folder of a data set, drawn on first use with so many training places."""
    folder = home / name
    path = folder / ("metadata.csv" if name == "toy" else "kaggle_dataset")
    if not path.exists():
        if name == "toy":
            toy.draw(folder, n_train=places)
        else:
            sample.draw(folder, n_train=places, n_test=20, size=96)
    return folder if name == "toy" else path


def quiet() -> None:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
