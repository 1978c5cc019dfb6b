"""A resumable, sharded batch loader: it continues at the next batch after a restart and never drops a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kitlib.core.errors import KitError


class Batches:
    """A loader that knows which batch comes next, so that a fit can continue in the middle of an epoch.

    rows: the places to go through, an int array or their count; load(rows of one batch) gives a dict of tensors and
    must draw nothing from the global random generators; with prefetch it works one batch ahead, in a thread.
    The order of epoch e depends on (seed, e) only. Nothing is dropped: the last batch is smaller. Among several
    processes each batch of `batch_size` rows a process is dealt out like cards; a process that gets no card of the
    last batch repeats its first row, which `fit` gives no weight in the loss (a validation step has to count it).

    >>> [batch["row"].tolist() for batch in Batches(5, 2, 0, lambda rows: {"row": rows}, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        rows: np.ndarray | int,
        batch_size: int,
        seed: int,
        load: Callable[[np.ndarray], dict[str, Any]],
        shuffle: bool = True,
        prefetch: bool = False,
    ):
        self.rows = np.arange(rows) if isinstance(rows, int | np.integer) else np.asarray(rows)
        if self.rows.ndim != 1 or not len(self.rows):
            raise KitError(f"rows: expected a flat array of at least one; got shape {self.rows.shape}")
        if batch_size < 1:
            raise KitError(f"batch_size: expected a whole number from 1; got {batch_size}")
        self.batch_size, self.seed, self.load, self.shuffle, self.prefetch = batch_size, seed, load, shuffle, prefetch
        self.shard(0, 1)

    def shard(self, rank: int, world: int) -> None:
        """Deal the rows out to `world` processes, of which this is number `rank`, and start at epoch 0."""
        self.rank, self.world = rank, world
        self.load_state_dict({"epoch": 0, "batch": 0})

    def state_dict(self) -> dict[str, int]:
        """The next batch; Lightning saves and restores it within an epoch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next iteration at that batch."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._begin = self.batch

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / (self.batch_size * self.world))

    def count(self, batch: int) -> int:
        """How many rows a batch of the epoch has, all processes together."""
        whole = self.batch_size * self.world
        return min(whole, len(self.rows) - batch * whole)

    def own_count(self, batch: int) -> int:
        """How many of them are this process's."""
        return len(range(self.rank, self.count(batch), self.world))

    def order(self, epoch: int) -> np.ndarray:
        """The rows in the order in which that epoch goes through them."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows) if self.shuffle else self.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        begin, self._begin = self._begin, 0
        epoch, whole = self.epoch, self.batch_size * self.world
        order = self.order(epoch)

        def load(batch: int) -> dict[str, Any]:
            dealt = order[batch * whole : (batch + 1) * whole]
            own = dealt[self.rank :: self.world]
            return self.load(own if len(own) else dealt[:1])

        todo = range(begin, len(self))
        for batch, loaded in enumerate(_ahead(load, todo) if self.prefetch else map(load, todo), begin):
            # set before handing out: Lightning never asks for the end of an epoch
            self.epoch, self.batch = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            yield loaded


def _ahead(function: Callable[[int], Any], items: Iterable[int]) -> Iterator[Any]:
    """map(function, items), computing the next result in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()
