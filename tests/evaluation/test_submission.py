"""The score as published, and submissions written, scored and compared."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from submission_helper import STATES, make_submission, make_template

from kitlib import geo
from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.data.places import Places
from kitlib.data.readers import PREDICTED
from kitlib.evaluation import metrics, submission, submission_files
from kitlib.evaluation.guesses import Guesses


def make_guesses(sample_id, state_idx=STATES["state_idx"], seed=0):
    rng = np.random.default_rng(seed)
    n = len(sample_id)
    points = np.stack([rng.uniform(25, 48, (n, 3)), rng.uniform(-124, -67, (n, 3))], -1)
    probs = rng.dirichlet(np.ones(len(state_idx)), n)
    return Guesses(
        np.asarray(sample_id), np.asarray(state_idx), probs, points, rng.dirichlet(np.ones(3), n), np.ones(n)
    )


def test_example_in_docstring():
    assert doctest.testmod(submission).failed == 0


def test_score_as_published():
    ranked = [[9, 1, 2, 3, 4], [1, 9, 2, 3, 4], [1, 2, 9, 3, 4], [1, 2, 3, 9, 4], [1, 2, 3, 4, 9], [1, 2, 3, 4, 5]]
    true_points = np.zeros((6, 2))
    points = np.zeros((6, 2))
    points[0] = [0, 180]
    score = metrics.score_arrays(np.full(6, 9), true_points, ranked, points)
    mean_km = np.pi * 6371 / 6
    assert score.state == pytest.approx((1 + 0.6 + 0.4 + 0.25 + 0.15) / 6)
    assert score.gps == pytest.approx(1 - mean_km / 5000)
    assert score.final == pytest.approx(0.7 * score.state + 0.3 * score.gps)
    assert (score.top1, score.top5, score.median_km, score.n) == (1 / 6, 5 / 6, 0, 6)
    assert score.mean_km == pytest.approx(mean_km)


def test_gps_part_is_never_negative_and_averages_before_it_clips():
    far = metrics.score_arrays([1, 1], np.zeros((2, 2)), [[1], [1]], [[0, 180], [0, 180]])
    assert far.gps == 0 and far.final == pytest.approx(0.7)
    # 20,015 km and 0 km: the mean is past 5,000 km, so the right row earns nothing either
    mixed = metrics.score_arrays([1, 1], np.zeros((2, 2)), [[1], [1]], [[0, 180], [0, 0]])
    assert mixed.gps == 0


def test_a_repeated_state_counts_where_it_first_stands():
    score = metrics.score_arrays([5, 7], np.zeros((2, 2)), [[5, 5, 7, -1, -1], [5, 5, 7, 7, -1]], np.zeros((2, 2)))
    assert score.state == pytest.approx((1.0 + 0.4) / 2)


def test_missing_ranks_never_match():
    assert metrics.score_arrays([0], [[0, 0]], [[4, -1, -1, -1, -1]], [[0, 0]]).state == 0
    with pytest.raises(KitError, match="unknown"):
        metrics.score_arrays([-1], [[0, 0]], [[-1, 0, 1, 2, 3]], [[0, 0]])


def test_score_arrays_refuses_what_cannot_be_scored():
    with pytest.raises(KitError, match="at least 1 place"):
        metrics.score_arrays([], np.zeros((0, 2)), np.zeros((0, 5)), np.zeros((0, 2)))
    with pytest.raises(KitError, match=r"\(2, 2\)"):
        metrics.score_arrays([1, 1], np.zeros((2, 2)), np.zeros((2, 5)), np.zeros((1, 2)))
    with pytest.raises(KitError, match=r"guesses: .* 1 of 1"):
        metrics.score_arrays([1], [[0, 0]], [[1]], [[np.nan, 0]])


def test_score_shows_itself():
    score = metrics.score_arrays([3, 4], [[0, 0], [0, 0]], [[3, 4], [3, 4]], [[0, 0], [0, 0]])
    assert "<b>0.8600</b>" in score._repr_html_() and "0.8600 = 0.70 * state 0.8000" in str(score)
    assert json.loads(json.dumps(score.as_dict()))["final"] == score.final


@pytest.fixture
def places():
    n = 8
    table = make_template(n).drop(columns=PREDICTED).assign(split="train", state_idx=[0, 1, 3, 4] * 2, state="x")
    rng = np.random.default_rng(0)
    table = table.assign(latitude=rng.uniform(25, 48, n), longitude=rng.uniform(-124, -67, n))
    table["sample_id"] = [70, 10, 30, 50, 20, 0, 40, 60]
    return Places("x", Path(), table, STATES)


def test_score_of_guesses_joins_on_the_id(places):
    guesses = make_guesses([50, 10, 0])
    truth = places.table.set_index("sample_id").loc[[50, 10, 0]]
    expected = metrics.score_arrays(
        truth["state_idx"], truth[["latitude", "longitude"]], guesses.top_states(), guesses.point()
    )
    assert metrics.score_guesses(guesses, places) == expected
    with pytest.raises(KitError, match="expected sample_ids of training places; got 99"):
        metrics.score_guesses(make_guesses([10, 99]), places)


def test_written_submission_scores_as_its_guesses(tmp_path, places):
    ids = np.random.default_rng(1).permutation(places.sample_id("train"))
    guesses = make_guesses(ids)
    template = make_template(8).assign(sample_id=np.arange(8) * 10)
    path = submission.write_submission(tmp_path / "out/mine.csv", guesses, template, {"members": ["a"]}, STATES)
    places.table.to_csv(tmp_path / "truth.csv", index=False)
    by_file = submission.score_files(tmp_path / "truth.csv", path).as_dict()
    assert by_file == pytest.approx(metrics.score_guesses(guesses, places).as_dict(), abs=1e-3)
    written = pd.read_csv(path)
    assert list(written.columns) == list(template.columns)
    pd.testing.assert_frame_equal(written[written.columns[:5]], template[template.columns[:5]], check_dtype=False)
    about = {"public_score": None, "members": ["a"], "checksum": storage.digest(path)}
    assert json.loads(path.with_suffix(".json").read_text()) == about
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.csv", "mine.json"]


def test_the_public_score_of_a_person_stays_with_its_rows(tmp_path, caplog):
    template = make_template(8)
    note = tmp_path / "mine.json"

    def write(seed: int) -> dict:
        guesses = make_guesses(range(8), seed=seed)
        submission.write_submission(tmp_path / "mine.csv", guesses, template, {"seed": seed}, STATES)
        return {name: value for name, value in json.loads(note.read_text()).items() if name != "checksum"}

    note.write_text(json.dumps({**write(0), "public_score": 0.7312}))
    assert write(0) == {"public_score": 0.7312, "seed": 0} and "dropped" not in caplog.text
    assert write(1) == {"public_score": None, "seed": 1}
    assert "mine.csv: its public_score 0.7312 is dropped, as the rows have changed" in caplog.text
    note.write_text("by hand: 0.7")
    assert write(1)["public_score"] is None


def test_a_name_in_use_is_refused_with_other_rows_and_the_note_says_what_was_made(home, places):
    template = make_template(8).assign(sample_id=np.arange(8) * 10)
    places = replace(places, states=STATES, template=template)
    guesses, others = (make_guesses(template["sample_id"].to_numpy(), seed=seed) for seed in (0, 1))
    truth = home / "truth.csv"
    places.table.to_csv(truth, index=False)
    path, _ = submission.save("mine", guesses, places, {"members": {"a": 1}}, truth)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["true_score"] == submission.score_files(truth, path).final
    assert about["checksum"] == storage.digest(path) and {"written", "commit", "members"} <= about.keys()
    submission.save("mine", guesses, places, {"members": {"b": 1}})
    before = path.read_bytes()
    with pytest.raises(KitError, match=r"mine\.csv holds other guesses"):
        submission.save("mine", others, places, {})
    assert path.read_bytes() == before and json.loads(path.with_suffix(".json").read_text())["members"] == {"b": 1}
    submission.save("mine", others, places, {}, overwrite=True)
    assert path.read_bytes() != before


def test_a_mapping_or_truth_with_more_states_than_the_competition(tmp_path):
    states = pd.DataFrame({"state_idx": range(60), "state": [f"s{i}" for i in range(60)]})
    guesses = make_guesses(range(8), states["state_idx"])
    guesses.state_probs[:] = np.eye(60)[55]
    path = submission.write_submission(tmp_path / "mine.csv", guesses, make_template(8), {}, states)
    truth = pd.DataFrame({"sample_id": range(8), "state_idx": 55, "latitude": 40, "longitude": -90})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    assert submission.score_files(tmp_path / "truth.csv", path).state == 1
    assert submission.diff(path, path).top5_overlap == 1
    with pytest.raises(KitError, match=r"idx_1 is no state in 8 rows: .* expected 0 to 49"):
        submission_files.validate(path, make_template(8))
    with pytest.raises(KitError, match=r"the mapping: expected numbers in state_idx; got a, b"):
        submission_files.validate(path, make_template(8), pd.DataFrame({"state_idx": ["a", "b"], "state": ["a", "b"]}))


def test_a_template_with_labels_and_columns_of_its_own_is_filled_in(tmp_path):
    template = make_template(8).assign(predicted_state_idx_1="Ohio", note="x")
    path = submission.write_submission(tmp_path / "mine.csv", make_guesses(range(8)), template, {}, STATES)
    written = pd.read_csv(path)
    assert written["note"].tolist() == ["x"] * 8 and written["predicted_state_idx_1"].isin(STATES["state_idx"]).all()


def test_fewer_than_five_states_are_followed_by_minus_one(tmp_path):
    path = submission.write_submission(
        tmp_path / "few.csv", make_guesses(range(6), [3, 7]), make_template(6), {}, STATES.iloc[[2, 5]]
    )
    assert (pd.read_csv(path)[PREDICTED[2:5]] == -1).all(axis=None)
    assert submission_files.validate(path, make_template(6), STATES.iloc[[2, 5]]) == []


def test_nothing_is_written_unless_all_is_right(tmp_path):
    path = tmp_path / "mine.csv"
    with pytest.raises(KitError, match="no guess for sample_id 5"):
        submission.write_submission(path, make_guesses(range(5)), make_template(6), {})
    with pytest.raises(KitError, match="mapping of 2 states"):
        submission.write_submission(path, make_guesses(range(6)), make_template(6), {}, STATES[:2])
    with pytest.raises(TypeError):
        submission.write_submission(path, make_guesses(range(6)), make_template(6), {"bad": object()})
    with pytest.raises(KitError, match=r"<name>\.csv"):
        submission.write_submission(tmp_path / "mine.txt", make_guesses(range(6)), make_template(6), {})
    assert list(tmp_path.iterdir()) == []


def test_difference_of_two_submissions(tmp_path):
    a, b = make_submission(), make_submission()
    b.loc[4, PREDICTED[:5]] = [8, 7, 3, 4, 5]
    b.loc[2, "predicted_latitude"] += 1
    a.to_csv(tmp_path / "a.csv", index=False)
    b.sample(frac=1, random_state=0).to_csv(tmp_path / "b.csv", index=False)
    found = submission.diff(tmp_path / "a.csv", tmp_path / "b.csv")
    assert found.first_differs == pytest.approx(1 / 6)
    assert found.top5_overlap == pytest.approx((5 + 3 / 5) / 6)
    assert found.mean_km == pytest.approx(geo.distance_km([0, 0], [1, 0]) / 6, rel=1e-6)
    assert found.median_km == 0
    assert found.rows["sample_id"].tolist()[:2] == ["4", "2"]
    assert "16.7%" in str(found) and "<table" in found._repr_html_()
    same = submission.diff(tmp_path / "a.csv", tmp_path / "a.csv")
    assert (same.first_differs, same.top5_overlap, same.mean_km) == (0, 1, 0)
    make_submission(4).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(KitError, match=r"c\.csv has 4 of 6 rows of a\.csv"):
        submission.diff(tmp_path / "a.csv", tmp_path / "c.csv")


def test_truth_file_is_checked(tmp_path):
    make_submission().to_csv(tmp_path / "s.csv", index=False)
    truth = pd.DataFrame({"sample_id": range(6), "state_idx": 1, "latitude": 40.0, "longitude": -100.0})
    truth.to_csv(tmp_path / "t.csv", index=False)
    assert submission.score_files(tmp_path / "t.csv", tmp_path / "s.csv").top1 == 0.5
    truth.assign(latitude=["", 1, 2, 3, 4, 5]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(KitError, match=r"t\.csv: latitude is not a number in 1 row: line 2 \(sample_id 0: ''\)"):
        submission.score_files(tmp_path / "t.csv", tmp_path / "s.csv")
    truth.drop(columns="state_idx").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(KitError, match=r"t\.csv .*missing: state_idx"):
        submission.score_files(tmp_path / "t.csv", tmp_path / "s.csv")


def test_the_real_files(real_us, tmp_path):
    folder = real_us.parents[2] / "competition"
    template, mapping = folder / "sample_submission.csv", folder / "state_mapping.csv"
    with pytest.raises(KitError, match="predicted_state_idx_1 is no state in 16495 rows: line 2"):
        submission_files.validate(template, template, mapping)
    eight = folder / "real_submission_8_columns.csv"
    with pytest.raises(KitError, match="copy them from the template"):
        submission_files.validate(eight, template, mapping)
    images = pd.read_csv(template).filter(regex="sample_id|image_")
    pd.read_csv(eight).merge(images, on="sample_id").to_csv(tmp_path / "mended.csv", index=False)
    assert submission_files.validate(tmp_path / "mended.csv", template, mapping) == []
    assert submission.diff(eight, tmp_path / "mended.csv").top5_overlap == 1
