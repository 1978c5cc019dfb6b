"""The drawn sample competition: made-up places in the file format of the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.data.sample.competition import draw as draw
    from kitlib.data.sample.competition import ensure as ensure
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
