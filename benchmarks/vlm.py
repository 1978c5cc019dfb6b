"""Whether a vision-language model learns here: fine-tuning makes its answers parse, then rewards make them better.

The tiny Qwen2.5-VL, on the colour-coded toy set (`kitlib.toy`) and on the drawn sample competition, in one turn and
telescoping, each with several seeds. All figures are of places that a fold holds out,
those that parse after fine-tuning with replies as sampled for guesses, rewards with replies as sampled in training.

    OMP_NUM_THREADS=1 python benchmarks/vlm.py                             # about 40 minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/vlm.py --data toy --seeds 0        # one seed of the toy set: 7 minutes
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kitlib import places, sample, toy, vlm
from kitlib.runs import Run
from kitlib.tables import Places

TOY = vlm.Config(
    model="tiny",
    lora_rank=0,
    gradient_checkpointing=False,
    max_side=28,
    digits=1,
    batch=16,
    device_batch=16,
    rate=2e-3,
    steps=300,
    radii_km="3000,1000",
    reply_tokens=24,
    samples=4,
    tau_schedule="fixed",
    tau_last_km=2000.0,
    reward_region=0.25,
    eval_steps=0,
    eval_places=80,
)
# Four views a place, and a harder one: states and a few hundred kilometres.
SAMPLE = dataclasses.replace(TOY, max_side=96, radii_km="500,200", tau_last_km=500.0)
REWARDED: dict[str, Any] = {"method": "grpo", "rate": 5e-4, "batch": 64, "device_batch": 64, "group": 8}
REWARDED["guess_temperature"] = 1.0  # as in training: the reward that is being raised


def evaluations(run: Run, method: str) -> pd.DataFrame:
    history = pd.read_csv(run.checkpoints / "fold_0" / method / "history.csv")
    return history.dropna(subset=["eval_reward"])


def learn(config: vlm.Config, data: Places, steps: int, name: str) -> dict[str, float]:
    """One seed: parsed after fine-tuning, reward and km before and after reinforcement learning."""
    started = time.perf_counter()
    tuned = vlm.train(config, data, f"{name}-sft")
    rewarded = dataclasses.replace(config, steps=steps, start_from=f"{name}-sft", **REWARDED)
    run = vlm.train(rewarded, data, f"{name}-grpo")
    after_sft, looks = evaluations(tuned, "sft").iloc[-1], evaluations(run, "grpo")
    first, last = looks.iloc[0], looks.iloc[-1]
    found = {
        "parsed_sft": after_sft.eval_parsed,
        "before": first.eval_reward,
        "after": last.eval_reward,
        "gain": last.eval_reward - first.eval_reward,
        "km_before": first.eval_mean_km,
        "km_after": last.eval_mean_km,
        "parsed_after": last.eval_parsed,
        "seconds": time.perf_counter() - started,
    }
    print(f"  {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("both", "toy", "sample"), default="both")
    parser.add_argument("--environment", choices=("both", "single", "telescoping"), default="both")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=150, help="of reinforcement learning")
    parser.add_argument("--rate", type=float, default=REWARDED["rate"], help="of reinforcement learning")
    asked = parser.parse_args()
    REWARDED["rate"] = asked.rate
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    quiet()
    with tempfile.TemporaryDirectory() as home:
        os.environ["KITLIB_HOME"] = home
        for name, config in (("toy", TOY), ("sample", SAMPLE)):
            if asked.data not in ("both", name):
                continue
            data = places.read(
                toy.draw(Path(home) / "toy", n_train=400)
                if name == "toy"
                else sample.draw(Path(home) / "drawn", n_train=400, n_test=20, size=96) / "kaggle_dataset"
            )
            for environment in ("single", "telescoping"):
                if asked.environment not in ("both", environment):
                    continue
                print(f"{name}, {environment}, {asked.steps} steps of GRPO after {config.steps} of SFT")
                chosen = dataclasses.replace(config, environment=environment)
                told = [
                    learn(dataclasses.replace(chosen, seed=seed), data, asked.steps, f"{name}-{environment}-{seed}")
                    for seed in seeds
                ]
                gains = np.array([one["gain"] for one in told])
                spread = f" +- {gains.std(ddof=1):.3f}" if len(gains) > 1 else ""
                parsed = min(one["parsed_sft"] for one in told)
                print(f"  reward {gains.mean():+.3f}{spread} over {len(gains)} seeds; after SFT {parsed:.1%} parse")


def quiet() -> None:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
