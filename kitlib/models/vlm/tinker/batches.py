"""The places of each step of a training at Tinker, by number, so that a resumed training goes on where it stopped.

batches = CaseBatches(cases, size=32, seed=0)
batches = StreamBatches(lambda: dataset.streamed("owner/name", max_side=448), views, size=32)
rows = batches(7)                               # of the eighth step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from kitlib.models.vlm.conversation.recorder import Row
from kitlib.models.vlm.dataset import Cases


class Batches(Protocol):
    """The rows of every step, and how many these are."""

    size: int

    @property
    def views(self) -> Sequence[str]:
        """The names of the views."""

    def __call__(self, step: int) -> list[Row]:
        """The rows of a step, counted from 0; the same at every call."""


class CaseBatches:
    """`size` of the cases each step; every pass goes through all of them, in another order."""

    def __init__(self, cases: Cases, size: int, seed: int) -> None:
        self.cases, self.views, self.size, self.seed = cases, cases.views, size, seed

    def __call__(self, step: int) -> list[Row]:
        """As `Batches`."""
        passes, rows = np.divmod(np.arange(step * self.size, (step + 1) * self.size), len(self.cases))
        orders = {n: np.random.default_rng([self.seed, n]).permutation(len(self.cases)) for n in np.unique(passes)}
        return [self.cases.row(int(orders[n][row])) for n, row in zip(passes, rows, strict=True)]


class StreamBatches:
    """The next `size` rows of an endless stream; a step that is past begins the stream anew."""

    def __init__(self, stream: Callable[[], Iterable[Row]], views: Sequence[str], size: int) -> None:
        """stream: called for the stream from its first row, always with the same rows."""
        self.stream, self.views, self.size = stream, views, size
        self.step, self.rows = -1, list[Row]()
        self.left: Iterator[Row] = iter(())

    def __call__(self, step: int) -> list[Row]:
        """As `Batches`; rows before the step are read and dropped."""
        if step < self.step or self.step < 0:
            self.step, self.left = -1, iter(self.stream())
        while self.step < step:
            self.rows, self.step = list(islice(self.left, self.size)), self.step + 1
        return self.rows
