"""Blends are weighed by their out-of-fold score, and calibrated by their log loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import ensemble, metrics
from kitlib.evaluation.guesses import Guesses, average

N, S = 300, 6
STATES = pd.DataFrame({"state_idx": np.arange(S) * 3, "state": list("ABCDEF")})


@pytest.fixture(scope="module")
def places() -> Places:
    rng = np.random.default_rng(0)
    state = rng.integers(0, S, N)
    table = pd.DataFrame({"split": "train", "sample_id": rng.permutation(N), "image_only": "", "state": "x"})
    points = np.stack([30 + 3.0 * state, -120 + 9.0 * state], 1) + rng.normal(0, 1, (N, 2))
    table = table.assign(state_idx=state * 3, latitude=points[:, 0], longitude=points[:, 1])
    return Places("x", Path(), table, STATES)


def member(places: Places, seed: int, sharpness: float) -> Guesses:
    """Guesses whose log-probabilities know the truth by `sharpness` and are noise beside it; honest by construction."""
    rng = np.random.default_rng(seed)
    logits = sharpness**2 * np.eye(S)[places.state_position("train")] + sharpness * rng.normal(0, 1, (N, S))
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    centres = np.stack([30 + 3.0 * np.arange(S), -120 + 9.0 * np.arange(S)], 1)
    return Guesses(
        places.sample_id("train"), STATES["state_idx"], probs, np.tile(centres, (N, 1, 1)), probs, np.ones(N)
    )


def score(guesses, places):
    return metrics.score_guesses(guesses, places).final


def test_a_run_of_fewer_places_takes_part_only_where_it_was_named(places):
    whole, part = member(places, 1, 1.0), member(places, 2, 1.0).take(np.arange(60))
    oof, left_out = ensemble.members({"whole": whole, "part": part}, named=False)
    assert list(oof) == ["whole"] and len(oof["whole"]) == N and left_out == {"part": 60}
    oof, left_out = ensemble.members({"whole": whole, "part": part}, named=True)
    assert [len(guess) for guess in oof.values()] == [60, 60] and not left_out


def test_weights_of_a_fold_are_fitted_without_it(places):
    """The second member is right in fold 0 only: without that fold nothing is to be gained from it."""
    fold = np.arange(N) % 3
    good, lucky = member(places, 1, 1.5), member(places, 2, 0.2)
    right = member(places, 3, 4.0)
    lucky = replace(lucky, state_probs=np.where((fold == 0)[:, None], right.state_probs, lucky.state_probs))
    weights, blend = ensemble.weights_over_folds([good, lucky], places, fold)
    assert weights.shape == (3, 2) and np.allclose(weights.sum(1), 1)
    assert weights[0, 1] + 0.1 < weights[1:, 1].min()
    assert set(blend.sample_id) == set(places.sample_id("train"))
    held_out = average([good, lucky], weights[0]).at(good.sample_id[fold == 0])
    np.testing.assert_array_equal(blend.at(held_out.sample_id).state_probs, held_out.state_probs)


def test_independent_members_share_and_beat_the_best_of_them(places):
    members = [member(places, 1, 1.5), member(places, 2, 1.5)]
    weights = ensemble.fit_weights(members, places)
    assert weights.sum() == pytest.approx(1) and (weights > 0.2).all()
    assert score(average(members, weights), places) > max(score(m, places) for m in members) + 0.01


def test_no_worse_than_equal_shares_or_the_best_member(places):
    members = [member(places, 1, 0.3), member(places, 2, 2.0), member(places, 3, 0.1)]
    weights = ensemble.fit_weights(members, places)
    assert weights.argmax() == 1
    fitted = score(average(members, weights), places)
    assert fitted >= score(members[1], places)
    assert fitted >= score(average(members, [1, 1, 1]), places)


def test_a_member_that_misleads_gets_hardly_a_share(places):
    truth = member(places, 1, 3.0)
    misled = replace(
        truth, state_probs=np.roll(truth.state_probs, 1, axis=1), weights=np.roll(truth.weights, 1, axis=1)
    )
    weights = ensemble.fit_weights([misled, truth], places)
    assert weights[0] < 0.3
    assert score(average([misled, truth], weights), places) >= score(truth, places)


def test_weights_are_seeded_and_a_single_member_takes_all(places):
    members = [member(places, seed, 1.2) for seed in range(3)]
    first, second = (ensemble.fit_weights(members, places, rows=100, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert ensemble.fit_weights(members[:1], places).tolist() == [1]


def test_rows_are_joined_and_never_dropped(places):
    members = [member(places, 1, 1.5), member(places, 2, 1.5)]
    weights = ensemble.fit_weights(members, places)
    shuffled = members[1].take(np.random.default_rng(0).permutation(N))
    np.testing.assert_allclose(ensemble.fit_weights([members[0], shuffled], places), weights)
    with pytest.raises(KitError, match="member 2: expected the 300 places of member 1; got 299"):
        ensemble.fit_weights([members[0], members[1].take(np.arange(N - 1))], places)


def test_members_of_some_folds_are_compared_on_the_places_they_share(places):
    whole, part = member(places, 1, 1.5), member(places, 2, 1.5).take(np.arange(0, N, 3))
    shared = ensemble.on_common_places({"whole": whole, "part": part})
    assert {len(guesses) for guesses in shared.values()} == {N // 3}
    assert (shared["whole"].sample_id == shared["part"].sample_id).all()
    assert ensemble.fit_weights(list(shared.values()), places).sum() == pytest.approx(1)
    with pytest.raises(KitError, match="members a, b guessed no common place"):
        ensemble.on_common_places({"a": whole.take(np.arange(5)), "b": whole.take(np.arange(5, 9))})


def test_temperature_recovers_how_much_too_sure_the_guesses_are(places):
    honest = member(places, 1, 1.5)
    assert ensemble.temperature(honest, places) == pytest.approx(1, abs=0.2)
    for factor in (0.5, 3.0):
        log_probs = factor * np.log(honest.state_probs.astype(float))
        probs = np.exp(log_probs) / np.exp(log_probs).sum(1, keepdims=True)
        fitted = ensemble.temperature(replace(honest, state_probs=probs), places)
        assert fitted == pytest.approx(factor * ensemble.temperature(honest, places), rel=0.02)
        mended = ensemble.calibrated(replace(honest, state_probs=probs), factor)
        np.testing.assert_allclose(mended.state_probs, honest.state_probs, atol=2e-3)


def test_calibration_keeps_the_ranks_and_copes_with_zeros(places):
    guesses = member(places, 1, 1.5)
    sure = replace(guesses, state_probs=np.eye(S)[guesses.state_probs.argmax(1)])
    wanted = ensemble.temperature(sure, places)
    assert wanted > 2
    milder = ensemble.calibrated(sure, wanted)
    np.testing.assert_array_equal(milder.top_states(1), sure.top_states(1))
    assert milder.state_probs.min() > 0
    np.testing.assert_array_equal(ensemble.calibrated(guesses, 2.5).top_states(), guesses.top_states())


def test_calibrating_on_states_that_are_not_known_is_refused(places):
    guesses = replace(member(places, 1, 1.0), state_idx=np.arange(S) * 3 + 1)
    with pytest.raises(KitError, match="nothing to calibrate on"):
        ensemble.temperature(guesses, places)
