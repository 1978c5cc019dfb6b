"""Figures shared by all families; the functions take arrays and read no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.figures import charts as charts
    from kitlib.figures import error_page as error_page
    from kitlib.figures import maps as maps
    from kitlib.figures import place as place
    from kitlib.figures import scores as scores
    from kitlib.figures import states as states
    from kitlib.figures.style import save as save
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
