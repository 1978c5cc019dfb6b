"""Guesses: validation, joining on the id, averaging, and the derived point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import Damaged, KitError
from kitlib.evaluation import guesses
from kitlib.evaluation.guesses import Guesses


def make(ids=(3, 1, 2), states=(5, 7), k=2, seed=0, answered=True) -> Guesses:
    rng = np.random.default_rng(seed)
    n = len(ids)
    return Guesses(
        sample_id=np.array(ids),
        state_idx=np.array(states),
        state_probs=rng.dirichlet(np.ones(len(states)), n),
        points=rng.uniform([30, -110], [45, -80], (n, k, 2)),
        weights=rng.dirichlet(np.ones(k), n),
        answered=np.full(n, answered),
    )


def test_fields_get_their_dtypes():
    made = make()
    assert made.state_probs.dtype == made.weights.dtype == np.float32
    assert made.points.dtype == np.float64 and made.answered.dtype == bool


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": np.ones((3, 2))}, "weights: expected .* sum to 1; those of sample_id 3 .and 2 more. do not"),
        ({"state_probs": np.full((3, 2), np.nan)}, "state_probs: expected .* those of sample_id 3"),
        ({"sample_id": np.array([1, 1, 2])}, "sample_id: expected different values"),
        ({"answered": np.ones(2, bool)}, r"answered: expected shape \(3,\); got \(2,\)"),
        ({"points": np.full((3, 2, 2), 95.0)}, "latitude"),
    ],
)
def test_what_breaks_the_contract_is_named(change, sentence):
    with pytest.raises(KitError, match=sentence):
        replace(make(), **change)


def test_point_is_the_weighted_geometric_median():
    one = replace(make(ids=[1]), weights=np.array([[0.9, 0.1]]))
    assert geo.distance_km(one.point()[0], one.points[0, 0]) < 0.001


def test_top_states_are_ordered_by_probability_and_never_more_than_there_are():
    made = replace(make(states=(2, 4, 9)), state_probs=np.array([[0.2, 0.5, 0.3]] * 3))
    assert made.top_states(2).tolist() == [[4, 9]] * 3
    assert made.top_states(5).shape == (3, 3)


def test_at_joins_on_the_id():
    made = make()
    joined = made.at(np.array([1, 2]))
    assert joined.sample_id.tolist() == [1, 2]
    np.testing.assert_array_equal(joined.state_probs, made.state_probs[1:])
    with pytest.raises(KitError, match=r"no guess for sample_id 8 \(and 1 more of 3\)"):
        made.at(np.array([1, 8, 9]))


def test_string_ids_join_too():
    made = replace(make(), sample_id=np.array(["c", "a", "b"]))
    assert made.at(np.array(["a", "c"])).sample_id.tolist() == ["a", "c"]


def test_saved_and_loaded_guesses_are_equal(tmp_path):
    made = make()
    made.save(tmp_path / "oof.npz")
    loaded = Guesses.load(tmp_path / "oof.npz")
    for name in ("sample_id", "state_probs", "points", "weights"):
        np.testing.assert_array_equal(getattr(made, name), getattr(loaded, name))
    assert [p.name for p in tmp_path.iterdir()] == ["oof.npz"]


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "flipped", "another", "bad"])
def test_a_file_that_is_not_guesses_is_refused(tmp_path, damage):
    file = tmp_path / "oof.npz"
    make().save(file)
    whole = file.read_bytes()
    middle = whole.index(np.float32(make().weights[0, 0]).tobytes())
    if damage == "another":
        storage.write_npz(file, {"a": np.zeros(2)})
    elif damage == "bad":
        storage.write_npz(file, vars(make()) | {"answered": np.zeros(9)})
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        file.write_bytes({"garbage": b"nothing", "empty": b"", "cut": whole[:-30], "flipped": flipped}[damage])
    with pytest.raises(Damaged, match=r"oof\.npz in .*delete it and run"):
        Guesses.load(file)
    with pytest.raises(KitError, match=r"none\.npz in .*: expected guesses; there is no such file"):
        Guesses.load(tmp_path / "none.npz")


def test_stacked_folds_may_differ_in_points_and_states():
    parts = [make(ids=(1, 2), k=3), make(ids=(3,), states=(5, 6, 7), k=1)]
    stacked = guesses.stack(parts)
    assert stacked.sample_id.tolist() == [1, 2, 3]
    assert stacked.state_idx.tolist() == [5, 6, 7]
    assert stacked.state_probs[0, 1] == 0
    np.testing.assert_allclose(stacked.point()[:2], parts[0].point(), atol=1e-6)


def test_average_weighs_members_row_by_row_joined_on_the_id():
    a, b = make(seed=1), make(ids=(1, 2, 3), seed=2)
    both = guesses.average([a, b], [3, 1])
    assert both.sample_id.tolist() == [3, 1, 2]
    np.testing.assert_allclose(both.state_probs, 0.75 * a.state_probs + 0.25 * b.at(a.sample_id).state_probs, rtol=1e-6)
    assert both.points.shape == (3, 4, 2)
    np.testing.assert_allclose(both.weights.sum(1), 1, rtol=1e-6)


def test_a_member_that_did_not_answer_is_left_out_where_another_did():
    silent, speaks = make(seed=1, answered=False), make(seed=2)
    both = guesses.average([silent, speaks])
    np.testing.assert_allclose(both.state_probs, speaks.state_probs, rtol=1e-6)
    assert both.answered.all()
    assert not guesses.average([silent, silent]).answered.any()


@pytest.mark.parametrize("weights", [[1], [0, 0], [-1, 2], [np.nan, 1]])
def test_impossible_shares_are_refused(weights):
    with pytest.raises(KitError, match="weights: expected 2 finite numbers from 0"):
        guesses.average([make(), make()], weights)


def test_states_unknown_to_the_target_order_are_refused():
    with pytest.raises(KitError, match="state_idx 7"):
        make().on_states(np.array([5, 6]))


def test_names_as_pandas_holds_them_are_saved_and_joined(tmp_path):
    names = np.array(["b.jpg", "a.jpg", "ccc.jpg"], dtype=object)
    made = replace(make(), sample_id=names)
    made.save(tmp_path / "oof.npz")
    loaded = Guesses.load(tmp_path / "oof.npz")
    assert loaded.sample_id.tolist() == names.tolist()
    assert np.array_equal(loaded.at(names[::-1]).points, made.points[::-1])
