"""batches: nothing dropped, order by seed and epoch, resume at the next batch, fair dealing."""

from __future__ import annotations

import math
import threading
import time
from itertools import chain

import numpy as np
import pytest

from kitlib.core.errors import KitError
from kitlib.data.loader import Batches


def rows_of(batches: Batches) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def loader(rows=10, size=4, seed=0, **options) -> Batches:
    return Batches(rows, size, seed, lambda rows: {"row": rows}, **options)


def test_batches_drop_nothing_and_shuffle_by_epoch():
    batches = loader(np.arange(100, 110))
    first, second = rows_of(batches), rows_of(batches)
    assert [len(rows) for rows in first] == [4, 4, 2] and len(batches) == 3
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(100, 110))
    assert first != second
    again = loader(np.arange(100, 110))
    again.load_state_dict({"epoch": 1, "batch": 0})
    assert rows_of(again) == second
    assert rows_of(loader(np.arange(100, 110), seed=1)) != first


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("stop", range(7))
def test_batches_resume_at_the_very_next_batch(stop, prefetch):
    whole = loader(prefetch=prefetch)
    expected = rows_of(whole) + rows_of(whole) + rows_of(whole)
    batches, seen = loader(prefetch=prefetch), []
    while len(seen) < stop:
        for batch in batches:
            seen.append(batch["row"].tolist())
            if len(seen) == stop:
                break
    state = batches.state_dict()
    assert state == {"epoch": stop // 3, "batch": stop % 3}
    resumed = loader(prefetch=prefetch)
    resumed.load_state_dict(state)
    while len(seen) < 9:
        seen += rows_of(resumed)
    assert seen == expected


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_batches_deal_every_row_to_one_process(rows, world):
    seen, batches_of = [], []
    for rank in range(world):
        batches = loader(rows, 2)
        batches.shard(rank, world)
        dealt = rows_of(batches)
        batches_of.append(len(dealt))
        for index, own in enumerate(dealt):
            assert len(own) == max(1, batches.own_count(index)) <= 2
            seen += own[: batches.own_count(index)]
        assert sum(map(batches.count, range(len(batches)))) == rows
    assert sorted(seen) == list(range(rows))
    assert set(batches_of) == {math.ceil(rows / (2 * world))}


def test_batches_prefetch_one_ahead_in_a_thread_and_pass_errors_on():
    loaded = []

    def load(rows):
        loaded.append((threading.current_thread() is threading.main_thread(), rows[0]))
        if rows[0] == 3:
            raise OSError("no picture 3")
        return {"row": rows}

    batches = iter(Batches(5, 1, 0, load, shuffle=False, prefetch=True))
    assert next(batches)["row"] == [0]
    deadline = time.monotonic() + 5
    while len(loaded) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert loaded == [(False, 0), (False, 1)]
    with pytest.raises(OSError, match="no picture 3"):
        list(batches)


@pytest.mark.parametrize("bad", [{"rows": 0}, {"rows": np.zeros((2, 2), int)}, {"size": 0}])
def test_batches_refuse(bad):
    with pytest.raises(KitError, match="expected"):
        loader(**bad)


def test_batches_of_a_subclass_go_through_their_own_order():
    class Backwards(Batches):
        def order(self, epoch):
            return self.rows[::-1] + 100 * epoch

    batches = Backwards(3, 2, 0, lambda rows: {"row": rows})
    assert rows_of(batches) + rows_of(batches) == [[2, 1], [0], [102, 101], [100]]
