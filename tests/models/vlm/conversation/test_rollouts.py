"""Rollouts on disk: what is written is what is read, also after a kill and a step back; bad rows are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rollout_helper import TRUTH, row

from kitlib import geo
from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation import rollouts


def text_rows(folder) -> list[dict]:
    with (folder / "rollouts.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def steps(folder) -> list[tuple[int, str]]:
    return [(one["step"], one["phase"]) for one in text_rows(folder)]


def test_what_is_written_is_read(tmp_path):
    turns = {"replies": ["Bavaria", "<script>\u2028ü\n"], "points": [None, TRUTH], "rewards": [0.0, 1.0]}
    rows = [row(3), row(3, 1, point=None), row(3, 2, **turns)]
    rollouts.Writer(tmp_path).write(3, rows)
    frame = rollouts.read(tmp_path)
    assert list(frame.columns) == rollouts.SCHEMA.names
    assert [dict(zip(frame.columns, one, strict=True)) for one in frame.replace({np.nan: None}).to_numpy()] == rows
    assert text_rows(tmp_path) == rows


def test_numbers_and_lists_of_numpy_are_taken(tmp_path):
    point = np.array(TRUTH, np.float64)
    given = row(np.int64(0), point=point, points=[tuple(TRUTH)], rewards=np.ones(1, np.float32), reward=np.float32(1))
    rollouts.Writer(tmp_path).write(0, [given])
    assert text_rows(tmp_path)[0] == row(0) | {"rewards": [1.0], "reward": 1.0}


def test_steps_after_are_read_alone(tmp_path):
    writer = rollouts.Writer(tmp_path)
    for step in range(5):
        writer.write(step, [row(step)])
    assert rollouts.read(tmp_path, after=2)["step"].tolist() == [3, 4]
    assert rollouts.read(tmp_path, after=0, until=2, columns=["km", "step"])["step"].tolist() == [1, 2]
    assert rollouts.read(tmp_path, after=9).empty


def test_going_back_drops_what_came_later_and_replaces_the_step(tmp_path):
    writer = rollouts.Writer(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, [row(step)])
    writer.write(3, [row(3, phase="eval")])
    again = rollouts.Writer(tmp_path)
    again.write(2, [row(2, 0), row(2, 1)])
    assert steps(tmp_path) == [(1, "train"), (2, "train"), (2, "train")]
    assert rollouts.read(tmp_path)["step"].tolist() == [1, 2, 2]
    again.write(2, [row(2, phase="eval")])
    again.write(3, [row(3)])
    assert rollouts.read(tmp_path)[["step", "phase"]].to_numpy().tolist() == [
        [1, "train"], [2, "eval"], [2, "train"], [2, "train"], [3, "train"],
    ]  # fmt: skip
    assert sorted(steps(tmp_path)) == [(1, "train"), (2, "eval"), (2, "train"), (2, "train"), (3, "train")]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(rollouts.PHASES), st.booleans()), min_size=1, max_size=8))
def test_text_and_record_always_agree(tmp_path_factory, writes):
    """Whatever is written in which order, by one writer or by a new one after a kill in the middle of a line."""
    folder = tmp_path_factory.mktemp("run")
    writer, expected = rollouts.Writer(folder), set()
    for number, (step, phase, killed) in enumerate(writes):
        if killed and expected:
            with (folder / "rollouts.jsonl").open("a") as text:
                text.write('{"step": 99, "pro')
            writer = rollouts.Writer(folder)
        writer.write(step, [row(step, phase=phase, prompt=str(number))])
        expected = {one for one in expected if one[0] <= step and one[:2] != (step, phase)} | {
            (step, phase, str(number))
        }
        text = {(one["step"], one["phase"], one["prompt"]) for one in text_rows(folder)}
        record = set(rollouts.read(folder)[["step", "phase", "prompt"]].itertuples(index=False, name=None))
        assert text == record == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown: colour"),
        ({"step": 8}, "expected step 1; got .*'step': 8"),
        ({"rollout": -1}, "expected a rollout from 0"),
        ({"rollout": True}, "rollout of step 1: expected int64"),
        ({"phase": "test"}, "expected a phase of train, eval"),
        ({"reward": float("nan")}, "expected finite numbers"),
        ({"reward": None}, "reward of step 1: expected a value"),
        ({"rewards": [None]}, "expected a value"),
        ({"rewards": [1.0, 2.0]}, "a reward for each turn"),
        ({"replies": "48, 11"}, "a reply, a point"),
        ({"replies": [], "points": [], "rewards": []}, "for each turn"),
        ({"prompt": 7}, "prompt of step 1: expected string"),
        ({"tau_km": 0.0}, "tau_km above 0"),
        ({"km": -1.0}, "at least 0"),
        ({"km": None}, "where there is a point"),
        ({"point": None}, "where there is a point"),
        ({"points": [[91.0, 0.0]]}, "latitude 91"),
        ({"truth": [float("nan"), 0.0]}, "not on Earth"),
        ({"truth": [1.0, 2.0, 3.0]}, "truth of step 1: expected fixed_size_list"),
        ({"truth": "home"}, "truth of step 1: expected fixed_size_list"),
        ({"pictures": ["../params.json"]}, "file names of Writer"),
        ({"pictures": [".."]}, "file names of Writer"),
    ],
)
def test_a_bad_row_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(KitError, match=message):
        rollouts.Writer(tmp_path).write(1, [row(1), row(1) | change])
    assert not list(tmp_path.iterdir())


def test_missing_keys_and_mixed_phases_are_refused(tmp_path):
    lacking = {name: value for name, value in row(1).items() if name != "truth"}
    with pytest.raises(KitError, match="missing or unknown: truth"):
        rollouts.Writer(tmp_path).write(1, [lacking])
    with pytest.raises(KitError, match="2 phases"):
        rollouts.Writer(tmp_path).write(1, [row(1), row(1, phase="eval")])
    with pytest.raises(KitError, match="0 phases"):
        rollouts.Writer(tmp_path).write(1, [])


def test_a_file_by_a_stranger_is_refused(tmp_path):
    rollouts.Writer(tmp_path).write(1, [row(1)])
    (tmp_path / "steps/00000002-train.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(KitError, match=r"00000002-train\.parquet: expected a Parquet file with the columns step"):
        rollouts.read(tmp_path)


def test_pictures_are_small_and_stored_once(tmp_path):
    writer, wide = rollouts.Writer(tmp_path), np.full((2, 600, 1200, 3), 120, np.uint8)
    names = writer.picture("a/../b ä", wide)
    assert len(set(names)) == 2 and all(Image.open(tmp_path / "pictures" / n).size == (512, 256) for n in names)
    before = (tmp_path / "pictures" / names[0]).stat().st_mtime_ns
    assert writer.picture("a/../b ä", wide) == names
    assert (tmp_path / "pictures" / names[0]).stat().st_mtime_ns == before
    assert writer.picture("a", wide[0, :100, :80]) == ["a-0.jpg"]
    assert set(names).isdisjoint(writer.picture("a----b--", wide[0]))
    writer.write(0, [row(0, pictures=names)])
    with pytest.raises(KitError, match="uint8"):
        writer.picture("b", wide.astype(float))


def test_reading_needs_the_folder_but_no_steps(tmp_path):
    assert rollouts.read(tmp_path).empty and rollouts.summary(rollouts.read(tmp_path)).empty
    with pytest.raises(KitError, match="no rollouts"):
        rollouts.read(tmp_path / "nowhere")


def test_summary_counts_the_unparsed_at_the_price_of_a_fallback(tmp_path):
    writer = rollouts.Writer(tmp_path)
    near = [48.0, 11.1]
    writer.write(0, [row(0, point=near), row(0, 1), row(0, 2, point=None)])
    writer.write(1, [row(1, phase="eval", sample_id="other", truth=near, point=near, km=0.0)])
    frame = rollouts.read(tmp_path)
    first, second = rollouts.summary(frame, middle=[0.0, 0.0]).to_dict("records")
    apart, far = float(geo.distance_km(near, TRUTH)), float(geo.distance_km([0.0, 0.0], TRUTH))
    assert (first["rollouts"], first["places"], first["tau_km"]) == (3, 1, 200.0)
    assert first["parsed"] == pytest.approx(2 / 3)
    assert first["km"] == pytest.approx((apart + far) / 3) and first["median_km"] == pytest.approx(apart)
    assert (second["step"], second["phase"], second["km"], second["parsed"]) == (1, "eval", 0.0, 1.0)
    by_itself = rollouts.summary(frame).iloc[0]["km"]  # the middle of the two true places is one of them, or between
    assert apart / 3 <= by_itself <= 2 * apart / 3
    with pytest.raises(KitError, match="truth"):
        rollouts.summary(frame.drop(columns="truth"))
