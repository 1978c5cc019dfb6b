"""batches: rows by step, the same at every call, from places and from a stream."""

from __future__ import annotations

from itertools import count

from tinker_helper import VIEWS, cases

from kitlib.models.vlm.tinker.batches import CaseBatches, StreamBatches


def ids(batches, step: int) -> list[str]:
    return [row["sample_id"] for row in batches(step)]


def test_every_pass_goes_through_all_places_in_another_order():
    batches = CaseBatches(cases(), 2, seed=1)
    steps = [ids(batches, step) for step in range(10)]
    assert steps == [ids(batches, step) for step in range(10)] and set(map(len, steps)) == {2}
    order = [name for step in steps for name in step]
    passes = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(len(set(one)) == 5 for one in passes) and len(set(map(tuple, passes))) > 1
    assert order != [name for step in range(10) for name in ids(CaseBatches(cases(), 2, seed=2), step)]


def test_a_step_may_be_larger_than_a_pass():
    assert len(ids(CaseBatches(cases(), 12, seed=0), 1)) == 12


def test_a_stream_is_read_once_and_anew_only_for_a_step_that_is_past():
    begun = []

    def stream():
        begun.append(0)
        return ({"sample_id": str(number)} for number in count())

    batches = StreamBatches(stream, VIEWS, 3)
    assert ids(batches, 0) == ["0", "1", "2"] and ids(batches, 2) == ids(batches, 2) == ["6", "7", "8"]
    assert len(begun) == 1
    assert ids(batches, 1) == ["3", "4", "5"] and len(begun) == 2
    assert ids(StreamBatches(stream, VIEWS, 3), 2) == ["6", "7", "8"]  # a training that was resumed
