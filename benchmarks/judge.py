"""Measure the judge: a tiny vision-language model weighs the neighbours of a retrieval run again.

On the held-out places of one fold of the drawn sample: the score and the mean km of the neighbours' vote, of the judge
(its power was chosen on other places), of a judge whose judgments are shuffled within each place, and of the learned
re-ranker of retrieval on the same neighbours. Differences to the vote have half of their 95 % interval over places.
How well the judge orders the candidates is also measured with the pictures of another place beside them: what remains
is what it knows of the candidates alone.

    OMP_NUM_THREADS=1 python benchmarks/judge.py                       # trains all runs: half an hour on a core
    python benchmarks/judge.py --home FOLDER --method knn --seeds 0    # keeps runs there, reads existing ones
    python benchmarks/judge.py --method toy --steps 450 --seeds 0      # colours tell the place; see `toy_candidates`
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import toy

from kitlib import geo
from kitlib.data import folds, readers
from kitlib.data.places import Places
from kitlib.evaluation import comparison, fold_files, guesses, metrics, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models import retrieval, vlm
from kitlib.models.vlm import dataset, judging
from kitlib.models.vlm.judge_session import JudgeSession

QUICK = {"eval_steps": 0, "eval_places": 8}
SHUFFLES = 20
TOY: dict[str, Any] = {"model": "tiny", "method": "judge", "candidates": "toy-random", "n_candidates": 7}
TOY |= {"bands_km": "1000,2000,3000,4500,7000", "lora_rank": 0, "gradient_checkpointing": False, "max_side": 28}
TOY |= {"digits": 1, "batch": 32, "device_batch": 32, "rate": 2e-3, "eval_steps": 0, "eval_places": 32}
TOY |= {"checkpoint_steps": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="metric", help="of retrieval, or toy")
    parser.add_argument("--seeds", default="0,1,2", help="of the judge; what it starts from is fine-tuned once")
    parser.add_argument("--steps", type=int, default=500, help="of the judge")
    parser.add_argument("--home", help="folder in which runs are kept and resumed; without it they are deleted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(args.home or temporary).absolute()
        os.environ["KITLIB_HOME"] = str(home)
        if args.method == "toy":
            folder = home / "toyset/toy"
            places = readers.read(folder if folder.is_dir() else toy.draw(folder, n_train=1000, n_test=2))
            vote = toy_candidates(places)
            for seed in map(int, args.seeds.split(",")):
                toy_config = vlm.Config(**TOY, steps=args.steps, seed=seed)
                measure(vlm.train(toy_config, places, f"toy-judge-{seed}-{args.steps}"), places, vote)
            return
        places, name = readers.load("sample"), f"sample-{args.method}"
        for more, suffix in (({}, ""), ({"rerank": True}, "-rerank")):
            config = retrieval.Config.from_dict({"method": args.method, **more}, places.preset)
            retrieval.train(config, places, name + suffix)
        tuned = {"method": "sft", "model": "tiny", "samples": 2, **QUICK}
        vlm.train(vlm.Config.from_dict(tuned, places.preset), places, "sft-0")
        vote = runs.open_run(name).guesses("oof")
        rows = []
        for seed in map(int, args.seeds.split(",")):
            judge = {"method": "judge", "model": "tiny", "candidates": name, "start_from": "sft-0", "steps": args.steps}
            judge_config = vlm.Config.from_dict({**judge, "seed": seed, **QUICK}, places.preset)
            run = vlm.train(judge_config, places, f"judge-{args.method}-{seed}")
            rows.append(measure(run, places, vote))
        held_out = run.guesses("oof").sample_id
        print(f"vote of {name}: {shown(vote.at(held_out), places)}")
        again = runs.open_run(f"{name}-rerank").guesses("oof").at(held_out)
        print(f"learned re-ranker: {shown(again, places, vote)}")
        print("mean over seeds:", ", ".join(f"{k} {np.mean([r[k] for r in rows]):.4f}" for k in rows[0]))


def toy_candidates(places: Places) -> Guesses:
    """A run that guesses 7 of the 200 nearest training places of other folds, at random; its out-of-fold guesses."""
    if "toy-random" in runs.list_runs():
        return runs.open_run("toy-random").guesses("oof")
    fold, points = folds.load_or_make(places, 5)["stratified"].to_numpy(), places.points("train")
    states, position = places.states["state_idx"].to_numpy(), places.state_position("train")
    settings = {"family": "retrieval", "n_folds": 5, "folds_column": "stratified"}
    run = runs.start("toy-random", settings, data=origin.data_checksums(places, "stratified", 5))
    rng, made = np.random.default_rng(0), []
    for k in range(5):
        gallery = np.flatnonzero(fold != k)
        for split, rows in (("train", fold == k), ("test", slice(None))):
            near = geo.nearest(places.points(split)[rows], points[gallery], 200)[1]
            index = np.stack([rng.choice(gallery[row], 7, replace=False) for row in near])
            probs, weights = np.eye(len(states))[position[index]].mean(1), np.full(index.shape, 1 / 7)
            names, every = places.sample_id(split)[rows], np.ones(len(index), bool)
            made.append(Guesses(names, states, probs, points[index], weights, every))
        fold_files.save_fold(run, k, made[-2], made[-1])
    run.save_guesses("oof", guesses.stack(made[::2]))
    run.save_guesses("test", guesses.average(made[1::2]))
    run.finish({"oof": metrics.score_guesses(run.guesses("oof"), places).as_dict()})
    return run.guesses("oof")


def measure(run: runs.Run, places: Places, vote: Guesses) -> dict[str, float]:
    """Print what a judge of fold 0 does on its held-out places, and return the means."""
    session = JudgeSession(run, places)
    rows = session.fold_rows(0)[1]
    rows = rows[~session.packs["train"].unusable_places[rows]]
    found, pairs, closeness = session.judge(0, "train", rows)
    guess, power = run.guesses("oof"), session.choice(0)["chosen"]
    agreement = judging.agreement(closeness, pairs.km, found.place)
    by_weight = np.concatenate([-np.arange(n) for n in np.bincount(found.place)])
    base = judging.agreement(by_weight, pairs.km, found.place)
    print(f"{run.name}: power {power}, nearest {mean(agreement['nearest'])} (by chance "
          f"{agreement['by_chance'].mean():.3f}, by weight {mean(base['nearest'])}), order {mean(agreement['order'])} "
          f"(by weight {mean(base['order'])})")  # fmt: skip
    print(f"  judge: {shown(guess, places, vote)}")
    pack, points, truths = session.packs["train"], places.points("train"), dataset.truths_of(places, "train")
    others = np.random.default_rng(0).permutation(rows), points[rows]
    swapped = judging.pairs_of(found, session.gallery, (pack, *others), pack, truths, session.config.max_side)
    blind = judging.agreement(session.closeness(0, swapped), pairs.km, found.place)
    print(f"  shown another place instead: nearest {mean(blind['nearest'])}, order {mean(blind['order'])}")
    voted, rng, chances = vote.at(session.packs["train"].sample_id[rows]), np.random.default_rng(0), []
    for _ in range(SHUFFLES):
        mixed = closeness[np.lexsort([rng.random(len(closeness)), found.place])]
        chances.append(metrics.score_guesses(found.reweighted(voted, session.gallery, mixed ** float(power)), places))
    print(f"  shuffled: {np.mean([c.final for c in chances]):.4f}, mean {np.mean([c.mean_km for c in chances]):.0f} km")
    score = metrics.score_guesses(guess, places)
    return {"score": score.final, "mean_km": score.mean_km, "gain": comparison.gain(guess, vote, places)[0],
            "nearest": agreement["nearest"].mean(), "order": agreement["order"].mean(),
            "shuffled": float(np.mean([c.final for c in chances]))}  # fmt: skip


def shown(guess: Guesses, places: Places, other: Guesses | None = None) -> str:
    """The score and the mean km of guesses, with the differences to others."""
    score = metrics.score_guesses(guess, places)
    text = f"{score.final:.4f}, mean {score.mean_km:.0f} km"
    if other is None:
        return text
    gain, half = comparison.gain(guess, other, places)
    truth = places.rows("train").set_index("sample_id").loc[guess.sample_id, ["latitude", "longitude"]].to_numpy()
    km = [geo.distance_km(truth, each.point()) for each in (guess, other.at(guess.sample_id))]
    half_km = comparison.half_width(km[0] - km[1], comparison.groups_of(places, guess.sample_id))
    return f"{text} ({gain:+.4f} ± {half:.4f}; {(km[0] - km[1]).mean():+.0f} ± {half_km:.0f} km)"


def mean(values: np.ndarray) -> str:
    """A mean over places with half of its 95 % interval."""
    return f"{values.mean():.3f} ± {1.96 * values.std() / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
