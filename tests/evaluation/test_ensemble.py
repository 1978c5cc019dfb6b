"""Blends are weighed by their out-of-fold score, and calibrated by their log loss."""

from __future__ import annotations

from dataclasses import replace

import members_helper
import numpy as np
import pytest
from members_helper import N, S, member

from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.evaluation import blenders, ensemble, metrics


@pytest.fixture(scope="module")
def places() -> Places:
    return members_helper.places()


def score(guesses, places):
    return metrics.score_guesses(guesses, places).final


def test_a_run_of_fewer_places_takes_part_only_where_it_was_named(places):
    whole, part = member(places, 1, 1.0), member(places, 2, 1.0).take(np.arange(60))
    oof, left_out = ensemble.members({"whole": whole, "part": part}, named=False)
    assert list(oof) == ["whole"] and len(oof["whole"]) == N and left_out == {"part": 60}
    oof, left_out = ensemble.members({"whole": whole, "part": part}, named=True)
    assert [len(guess) for guess in oof.values()] == [60, 60] and not left_out


def test_independent_members_share_and_beat_the_best_of_them(places):
    members = {"a": member(places, 1, 1.5), "b": member(places, 2, 1.5)}
    blend = ensemble.fit(members, places)
    assert sum(blend.states.values()) == pytest.approx(1) and min(blend.states.values()) > 0.2
    assert score(blend(members), places) > max(score(m, places) for m in members.values()) + 0.01


def test_a_member_that_misleads_gets_hardly_a_share(places):
    truth = member(places, 1, 3.0)
    misled = replace(
        truth, state_probs=np.roll(truth.state_probs, 1, axis=1), weights=np.roll(truth.weights, 1, axis=1)
    )
    blend = ensemble.fit({"misled": misled, "truth": truth}, places)
    assert blend.states["misled"] < 0.3 and blend.points["misled"] < 0.3


def test_states_and_points_are_weighed_apart(places):
    knows = member(places, 1, 3.0)
    states_only = replace(knows, points=np.roll(knows.points, 1, axis=1))
    points_only = replace(knows, state_probs=np.roll(knows.state_probs, 1, axis=1))
    blend = ensemble.fit({"states": states_only, "points": points_only}, places)
    assert blend.states["states"] > 0.7 and blend.points["points"] > 0.7
    mixed = blend({"states": states_only, "points": points_only})
    assert score(mixed, places) > max(score(states_only, places), score(points_only, places)) + 0.05


def test_too_sure_points_are_moved_to_the_middle(places):
    honest = member(places, 1, 1.0)
    sure = ensemble.sharpened(honest, 4.0)
    assert ensemble.exponent(sure, places) == 0.25
    assert ensemble.exponent(honest, places) in (0.7, 1.0, 1.4)
    np.testing.assert_allclose(ensemble.sharpened(sure, 0.25).weights, honest.weights, atol=1e-4)


def test_seeds_of_one_setting_share_a_weight(places):
    members = {f"s{seed}": member(places, seed, 1.2) for seed in range(3)} | {"other": member(places, 9, 1.2)}
    blend = ensemble.fit(members, places, seeds=[["s0", "s1", "s2"], ["other"]])
    assert len({blend.states[name] for name in ("s0", "s1", "s2")}) == 1
    assert sum(blend.states.values()) == pytest.approx(1)


def test_the_fit_is_seeded_and_a_single_member_takes_all(places):
    members = {str(seed): member(places, seed, 1.2) for seed in range(3)}
    assert ensemble.fit(members, places) == ensemble.fit(members, places)
    assert ensemble.fit({"0": members["0"]}, places).states == {"0": 1.0}


def test_rows_are_joined_and_never_dropped(places):
    members = {"a": member(places, 1, 1.5), "b": member(places, 2, 1.5)}
    blend = ensemble.fit(members, places)
    shuffled = members | {"b": members["b"].take(np.random.default_rng(0).permutation(N))}
    assert ensemble.fit(shuffled, places) == blend
    np.testing.assert_allclose(blend(shuffled).state_probs, blend(members).state_probs)
    with pytest.raises(KitError, match="b: expected guesses for the 300 places of a; got 299"):
        ensemble.fit(members | {"b": members["b"].take(np.arange(N - 1))}, places)
    with pytest.raises(KitError, match="b is missing"):
        blend({"a": members["a"]})


def test_a_blend_comes_back_from_its_record(places):
    blend = ensemble.fit({"a": member(places, 1, 1.5), "b": member(places, 2, 1.5)}, places)
    assert ensemble.Blend.from_dict(blend.as_dict()).as_dict() == blend.as_dict()


def test_nested_weights_are_never_fitted_on_the_places_they_blend(places):
    """A member that knows the truth in one fold and misleads in the other is trusted only where it should not be."""
    fold = {sample_id: int(sample_id) % 2 for sample_id in places.sample_id("train")}
    odd = np.array([fold[i] for i in places.sample_id("train")], bool)
    good, bad = member(places, 1, 3.0), member(places, 2, 0.1)
    traitor = replace(good, state_probs=np.where(odd[:, None], good.state_probs, np.roll(good.state_probs, 1, 1)))
    members = {"traitor": traitor, "weak": bad}
    honest, blends = ensemble.nested(members, places, fold)
    assert sorted(blends) == [0, 1]
    flattered = ensemble.fit(members, places)(members)
    assert score(honest, places) < score(flattered, places) - 0.1


def test_without_a_member_the_temperatures_and_exponents_of_the_others_are_the_same(places):
    members = {str(seed): member(places, seed, 1.2) for seed in range(3)}
    fold = {sample_id: n % 3 for n, sample_id in enumerate(places.sample_id("train"))}
    _, blends = ensemble.nested(members, places, fold)
    del members["1"]
    anew, taken = (ensemble.nested(members, places, fold, known=known) for known in (None, blends))
    assert anew[1] == taken[1] and (anew[0].state_probs == taken[0].state_probs).all()
    grouped = ensemble.fit(members, places, seeds=[["0", "1"], ["2"]])
    assert grouped == ensemble.fit(members, places)


@pytest.mark.parametrize("name", blenders.OTHERS)
def test_every_blender_beats_its_members(places, name):
    members = {str(seed): member(places, seed, 1.2) for seed in range(3)}
    fold = {sample_id: n % 3 for n, sample_id in enumerate(places.sample_id("train"))}
    blended, _ = ensemble.nested(members, places, fold, blenders.OTHERS[name])
    assert (blended.sample_id == members["0"].sample_id).all()
    assert score(blended, places) > np.mean([score(m, places) for m in members.values()])


def test_members_of_some_folds_are_compared_on_the_places_they_share(places):
    whole, part = member(places, 1, 1.5), member(places, 2, 1.5).take(np.arange(0, N, 3))
    shared = ensemble.on_common_places({"whole": whole, "part": part})
    assert {len(guesses) for guesses in shared.values()} == {N // 3}
    assert (shared["whole"].sample_id == shared["part"].sample_id).all()
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


def test_states_that_are_not_known_leave_the_temperature_at_one(places, caplog):
    guesses = replace(member(places, 1, 1.0), state_idx=np.arange(S) * 3 + 1)
    assert ensemble.temperature(guesses, places) == 1.0
    assert "none of 300 places lies in a state" in caplog.text


def test_the_places_of_a_single_fold_are_nested_too(places):
    members = {str(seed): member(places, seed, 1.2) for seed in range(2)}
    blended, blends = ensemble.nested(members, places, dict.fromkeys(places.sample_id("train"), 0))
    assert len(blends) == 5 and len(blended) == N
