"""The judge of another run's guesses: what it learns, whom it never sees, resume, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import toy

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data import folds, readers
from kitlib.evaluation import comparison, fold_files, guesses, origin, runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models.vlm import judge_session, judging, reply_cache
from kitlib.models.vlm import run as vlm
from kitlib.models.vlm.config import Config
from kitlib.models.vlm.session import Session

JUDGE = Config(
    model="tiny",
    method="judge",
    candidates="neighbours",
    n_candidates=7,
    bands_km="1000,2000,3000,4500,7000",
    lora_rank=0,
    gradient_checkpointing=False,
    max_side=28,
    steps=60,
    batch=16,
    device_batch=16,
    rate=3e-3,
    eval_steps=0,
    checkpoint_steps=1000,
)

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def data(shared_home, tmp_path_factory):
    folder = toy.draw(tmp_path_factory.mktemp("toy") / "toy", n_train=120, n_test=6)
    (folder / "images/00003.jpg").write_bytes(b"no picture")
    return readers.read(folder)


@pytest.fixture(scope="module")
def neighbours(data):
    """A finished run with a fault: three points of a guess are near, and four are in the south-west, wherever it is."""
    return candidates_run(data, "neighbours")


def candidates_run(data, name, folds_column="stratified", only=range(5)):
    table, points, states = folds.load_or_make(data, 5), data.points("train"), data.states["state_idx"].to_numpy()
    of_fold, position, rng = table[folds_column].to_numpy(), data.state_position("train"), np.random.default_rng(0)
    settings = {"family": "retrieval", "n_folds": 5, "folds_column": folds_column}
    run = runs.start(name, settings, data=origin.data_checksums(data, folds_column, 5))

    def guess(split, rows, gallery):
        sample_id, near = data.sample_id(split)[rows], geo.nearest(data.points(split)[rows], points[gallery], 6)[1]
        south_west = gallery[(points[gallery] < [10, 0]).all(axis=1)]
        index = np.stack([[*rng.choice(gallery[row], 3, False), *rng.choice(south_west, 4, False)] for row in near])
        probs = np.eye(len(states))[position[index]].mean(1)
        weights = np.full(index.shape, 1 / 7)
        return Guesses(sample_id, states, probs, points[index], weights, np.ones(len(index), bool))

    for fold in only:
        gallery = np.flatnonzero(of_fold != fold)
        held_out = guess("train", of_fold == fold, gallery)
        fold_files.save_fold(run, fold, held_out, guess("test", slice(None), gallery))
    held_out, tests = ([Guesses.load(fold_files.folder(run, fold) / f"{split}.npz") for fold in only]
                       for split in ("oof", "test"))  # fmt: skip
    run.save_guesses("oof", guesses.stack(held_out))
    run.save_guesses("test", guesses.average(tests))
    run.finish({"oof": {"final": 0.0}})
    return run


@pytest.fixture(scope="module")
def judge(data, neighbours):
    return vlm.train(JUDGE, data, "judge")


def session(run, data):
    return Session.open(run, data)


def test_it_learns_which_candidates_are_far_and_corrects_the_guesses_of_places_it_never_saw(judge, data):
    one = session(judge, data)
    rows = one.fold_rows(0)[1]
    found, pairs, closeness = one.judge(0, "train", rows[~one.packs["train"].unusable_places[rows]])
    agreement = {name: values.mean() for name, values in judging.agreement(closeness, pairs.km, found.place).items()}
    assert agreement["nearest"] > 1.3 * agreement["by_chance"] and agreement["order"] > 0.65
    before, after = runs.open_run("neighbours").guesses("oof"), judge.guesses("oof")
    gain, _ = comparison.gain(after, before, data)
    assert gain > 0.02 and float(judge.metrics["judged_by"]["0"]["chosen"]) > 0
    truth = dict(zip(data.sample_id("train"), data.points("train"), strict=True))
    km = [
        geo.distance_km([truth[i] for i in g.sample_id], g.point()).mean() for g in (before.at(after.sample_id), after)
    ]
    assert km[1] < 0.9 * km[0]


def test_no_candidate_is_held_out_or_chooses_the_power_and_is_learned_from(judge, data):
    one = session(judge, data)
    held_out, (taught, calibration) = one.held_out(0), one.split(0)
    group = one.fold_table["group"].to_numpy()
    for rows, allowed in ((taught, taught), (calibration, taught), (one.fold_rows(0)[1], one.fold_rows(0)[0])):
        found, pairs = one.candidates(0, "train", rows)
        shown = one.gallery.row[found.entry]
        assert np.isin(shown, allowed).all() and not held_out[shown].any() and len(pairs) > len(rows)
        assert (group[rows[found.place]] != group[shown]).all()
    assert not np.intersect1d(taught, calibration).size


def test_a_place_without_a_picture_is_answered_by_the_prior_and_lends_none(judge, data):
    one = session(judge, data)
    bad = np.flatnonzero(one.packs["train"].unusable_places)
    assert len(bad) == 1 and not np.isin(one.gallery.row, bad).any()
    assert len(one.guess(0, "train", bad)) == 1 and not one.guess(0, "train", bad).answered.any()


def test_judgments_go_on_where_they_were_stopped(judge, data, monkeypatch):
    monkeypatch.setattr(reply_cache, "PLACES", 60)
    monkeypatch.setattr(judge_session, "POWERS", ("1", "2"))  # with 0 nothing would be judged
    config = dataclasses.replace(JUDGE, steps=2)
    whole = vlm.train(config, data, "judge-whole")
    for _ in range(40):
        run = vlm.train(config, data, "judge-parts", max_hours=1e-9)
        if run.finished:
            break
    for split in ("oof", "test"):
        a, b = whole.guesses(split), run.guesses(split)
        assert np.array_equal(a.weights, b.weights) and np.array_equal(a.state_probs, b.state_probs)
    assert json.dumps(whole.metrics) == json.dumps(run.metrics)
    files = sorted((fold_files.folder(run, 0) / "said").iterdir())
    assert len(files) > 4
    files[-1].unlink()
    again = vlm.predict("judge-parts", data)
    assert np.array_equal(again.weights, run.guesses("test").weights)


def test_photographs_without_the_training_places_are_refused(judge, data):
    photographs = dataclasses.replace(data, table=data.rows("test"))
    alone = dataclasses.replace(origin.learned_places(judge), queries=photographs)
    with pytest.raises(KitError, match="judge: expected the training places, whose pictures a judge looks at"):
        vlm.predict("judge", alone)


def test_a_run_whose_candidates_would_not_be_out_of_fold_is_refused(neighbours, data):
    candidates_run(data, "half", only=range(2))
    candidates_run(data, "blocks", "spatial")
    for name in ("half", "blocks"):
        with pytest.raises(
            KitError, match=r"a finished run of all folds \(stratified\) of the same places.*got '" + name
        ):
            vlm.train(dataclasses.replace(JUDGE, candidates=name), data, "refused")
    with pytest.raises(KitError, match="there is no run 'nobody'"):
        vlm.train(dataclasses.replace(JUDGE, candidates="nobody"), data, "refused")
    assert "refused" not in runs.list_runs()


def test_other_guesses_of_the_judged_run_are_refused(data):
    run = candidates_run(data, "changing")
    config = dataclasses.replace(JUDGE, candidates="changing", steps=1)
    vlm.train(config, data, "judge-changing")
    oof = run.guesses("oof")
    run.save_guesses("oof", oof.take(np.arange(len(oof))[::-1]))
    with pytest.raises(KitError, match=r"judge-changing was started with other settings or data .*candidates was"):
        vlm.train(config, data, "judge-changing")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": ""}, "candidates: expected a run with method 'judge'"),
        ({"method": "sft"}, "got 'neighbours' with 'sft'"),
        ({"stream": "owner/name"}, "stream: expected '' with method 'judge'"),
        ({"bands_km": "50,50"}, "bands_km: expected at most 8 increasing numbers; got '50,50'"),
        ({"bands_km": "near"}, "bands_km: expected numbers above 0"),
        ({"n_candidates": 0}, "n_candidates: expected more than 0"),
        ({"candidates": "../x"}, "candidates: expected 1 to 100 letters"),
        ({"model": "tinker:x", "lora_rank": 4}, "method: expected 'sft' or 'grpo' with tinker:x"),
    ],
)
def test_settings_of_a_judge_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(KitError, match=message):
        dataclasses.replace(JUDGE, **wrong)
