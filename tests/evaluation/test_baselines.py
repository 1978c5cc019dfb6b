"""The baselines: honest out of fold, right where few places are, and better than nothing on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import baselines, metrics, runs

STATES = pd.DataFrame({"state_idx": [1, 4, 9, 20], "state": list("ABCD")})
CENTRES = np.array([[30.0, -90], [40, -75], [45, -110], [35, -120]])
COUNTS = (40, 30, 20, 1)  # of A, B, C, D


@pytest.fixture(scope="module")
def places() -> Places:
    rng = np.random.default_rng(0)
    state = rng.permutation(np.repeat(np.arange(4), COUNTS))
    n_test = 6
    points = CENTRES[state] + rng.normal(0, 0.5, (len(state), 2))
    train = pd.DataFrame(
        {
            "split": "train",
            "sample_id": rng.permutation(1000)[: len(state)],
            "image_only": "",
            "state": STATES["state"].to_numpy()[state],
            "state_idx": STATES["state_idx"].to_numpy()[state],
            "latitude": points[:, 0],
            "longitude": points[:, 1],
        }
    )
    test = pd.DataFrame({"split": "test", "sample_id": range(n_test), "image_only": "", "state": "", "state_idx": -1})
    return Places("x", Path(), pd.concat([train, test], ignore_index=True), STATES)


@pytest.fixture(scope="module")
def features(places) -> np.ndarray:
    """Features that tell the states apart, with some noise and one that never changes."""
    rng = np.random.default_rng(1)
    clear = np.eye(4)[places.state_position("train")] * 3
    return np.concatenate([clear + rng.normal(0, 1, clear.shape), np.ones((len(clear), 1))], axis=1)


@pytest.fixture(scope="module")
def folds(places) -> np.ndarray:
    return np.arange(len(places.rows("train"))) % 3


def test_commonest_states_and_one_constant_point(places):
    rows = np.flatnonzero(places.state_position("train") != 3)
    guesses = baselines.commonest(places, rows, np.array([7, 5]))
    assert guesses.sample_id.tolist() == [7, 5] and guesses.state_idx.tolist() == [1, 4, 9, 20]
    np.testing.assert_allclose(guesses.state_probs, np.tile([4 / 9, 3 / 9, 2 / 9, 0], (2, 1)), atol=1e-6)
    assert guesses.top_states().tolist() == [[1, 4, 9, 20]] * 2
    expected = geo.geometric_median(places.points("train")[rows])
    assert geo.distance_km(guesses.point(), expected).max() < 1e-3
    masked = baselines.commonest(places, places.state_position("train") != 3, np.array([7, 5]))
    np.testing.assert_array_equal(masked.points, guesses.points)


def test_commonest_out_of_fold_counts_only_the_other_folds(places):
    state = places.state_position("train")
    folds = np.where(state == 0, 0, 1)  # all places of A are in one fold
    oof = baselines.commonest_out_of_fold(places, folds)
    np.testing.assert_array_equal(oof.sample_id, places.sample_id("train"))
    assert (oof.state_probs[state == 0, 0] == 0).all()
    assert (oof.state_probs[state != 0, 0] == 1).all()
    assert metrics.score_guesses(oof, places).top1 == 0


def test_a_states_point_is_the_median_of_its_training_places(places):
    points = baselines.state_points(places)
    assert geo.distance_km(points, CENTRES).max() < 150
    some = places.state_position("train") != 3
    assert np.isnan(baselines.state_points(places, some)[3]).all()
    np.testing.assert_array_equal(baselines.state_points(places, some)[:3], points[:3])


def test_logistic_learns_and_orders_rows_as_the_places(places, features, folds):
    oof, test = baselines.logistic(places, features, folds, features[:6])
    np.testing.assert_array_equal(oof.sample_id, places.sample_id("train"))
    np.testing.assert_array_equal(test.sample_id, places.sample_id("test"))
    assert oof.state_probs.shape == (91, 4) and test.state_probs.shape == (6, 4)
    score = metrics.score_guesses(oof, places)
    constant = metrics.score_guesses(baselines.commonest_out_of_fold(places, folds), places)
    assert score.top1 > 0.7 > 0.5 > constant.top1
    assert score.mean_km < 0.75 * constant.mean_km


def test_nothing_leaks_from_a_fold_into_its_guesses(places, features, folds):
    oof, _ = baselines.logistic(places, features, folds)
    table = places.table.copy()
    rows = np.flatnonzero(table["split"] == "train")[folds == 1]
    table.loc[rows, ["latitude", "longitude"]] = [70.0, -150.0]
    table.loc[rows, ["state", "state_idx"]] = ["C", 9]
    changed_features = features.copy()
    changed_features[folds == 1] *= 50
    changed = Places("x", Path(), table, STATES)
    after, _ = baselines.logistic(changed, np.where((folds == 1)[:, None], features, changed_features), folds)
    np.testing.assert_array_equal(after.state_probs[folds == 1], oof.state_probs[folds == 1])
    assert geo.distance_km(after.point()[folds == 1], oof.point()[folds == 1]).max() < 1e-3
    # the features of a held-out row change its own guess only
    alone = features.copy()
    alone[np.flatnonzero(folds == 1)[0]] *= 50
    other, _ = baselines.logistic(places, alone, folds)
    np.testing.assert_array_equal(
        other.state_probs[np.flatnonzero(folds == 1)[1:]], oof.state_probs[np.flatnonzero(folds == 1)[1:]]
    )


def test_a_state_absent_from_the_training_folds_gets_probability_zero(places, features, folds):
    oof, _ = baselines.logistic(places, features, folds)
    lonely = np.flatnonzero(places.state_position("train") == 3)
    assert oof.state_probs[lonely, 3] == 0
    others = np.flatnonzero(folds != folds[lonely])
    assert (oof.state_probs[others, 3] > 0).all()
    np.testing.assert_allclose(oof.state_probs.sum(1), 1, atol=1e-5)


def test_training_rows_of_one_state_are_no_obstacle(places, features):
    folds = np.where(places.state_position("train") == 0, 0, 1)
    oof, _ = baselines.logistic(places, features, folds)
    assert (oof.state_probs[folds == 1, 0] == 1).all()


def test_bad_input_is_refused(places, features, folds):
    with pytest.raises(KitError, match=r"train features: expected shape \(91, D\); got \(90, 5\)"):
        baselines.logistic(places, features[:-1], folds)
    with pytest.raises(KitError, match=r"test features: expected shape \(6, D\); got \(7, 5\)"):
        baselines.logistic(places, features, folds, features[:7])
    with pytest.raises(KitError, match="got 1 folds of shape"):
        baselines.logistic(places, features, np.zeros(91, int))
    with pytest.raises(KitError, match=r"shape \(90,\)"):
        baselines.commonest_out_of_fold(places, folds[:-1])
    broken = features.copy()
    broken[4, 2] = np.nan
    with pytest.raises(KitError, match="expected finite numbers; those of row 4 are not"):
        baselines.logistic(places, broken, folds)


def test_real_photographs_even_by_their_mean_colours(real_us):
    import simplejpeg

    from kitlib.data import readers as sources

    places = sources.read(real_us)
    pictures = places.rows("train")[places.image_columns].to_numpy()  # (N, V)
    colours = [
        simplejpeg.decode_jpeg((places.folder / picture).read_bytes(), min_factor=8, min_height=32, min_width=32)
        .reshape(4, 8, 4, 8, 3)
        .mean(axis=(1, 3))
        .ravel()
        for picture in pictures.ravel()
    ]
    features = np.array(colours).reshape(len(pictures), -1, 48).mean(axis=1)
    folds = np.random.default_rng(0).permutation(len(features)) % 5
    oof, _ = baselines.logistic(places, features, folds)
    constant = metrics.score_guesses(baselines.commonest_out_of_fold(places, folds), places)
    assert 0.3 < constant.final < 0.4
    assert metrics.score_guesses(oof, places).final > constant.final + 0.01


def test_chance_is_what_random_states_earn(places):
    score = baselines.chance(places, places.sample_id("train"))
    assert score.n == sum(COUNTS) and score.top5 == 1  # there are only four states
    assert 0.1 < score.top1 < 0.4 and score == baselines.chance(places, places.sample_id("train"))


def test_a_run_beside_the_commonest_states_and_other_runs(home, places):
    fold = np.arange(sum(COUNTS)) % 3
    held_out = places.sample_id("train")[fold == 1]
    run = runs.start("run", {"folds_column": "spatial", "n_folds": 3}, data={})
    other = runs.start("other", {}, data={})
    guess = baselines.commonest_out_of_fold(places, fold)
    run.save_guesses("oof", guess.at(held_out))
    other.save_guesses("oof", guess)
    table = pd.DataFrame({"sample_id": places.sample_id("train"), "group": fold, "stratified": -1, "spatial": fold})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "load_or_make", lambda places, n_folds: table)
        members = baselines.beside(run, places, [other])
    assert list(members) == ["commonest", "other", "run"]
    for member in members.values():
        assert member.sample_id.tolist() == held_out.tolist()
        assert np.array_equal(member.state_probs, members["run"].state_probs)


def test_the_error_table_joins_truth_and_guess(places):
    guess = baselines.commonest_out_of_fold(places, np.arange(sum(COUNTS)) % 3).at(places.sample_id("train")[[5, 2]])
    table, truth = metrics.error_table(guess, places), places.rows("train")
    assert table["sample_id"].tolist() == guess.sample_id.tolist() and table["row"].tolist() == [5, 2]
    assert table["state"].tolist() == truth["state"].iloc[[5, 2]].tolist() and (table["guess"] == "A").all()
    assert table["right"].tolist() == (table["state"] == "A").tolist()
    assert np.allclose(table["km"], geo.distance_km(places.points("train")[[5, 2]], guess.point()))
    strange = guess.at(guess.sample_id)
    object.__setattr__(strange, "sample_id", np.array([5000, 5001]))
    with pytest.raises(KitError, match="expected sample_ids of training places; got 5000"):
        metrics.error_table(strange, places)
