"""Predict the US state and the coordinates of street-view pictures: the package behind the numbered notebooks.

Its packages, from the lowest layer up: core, geo, data, evaluation and vision, training, figures and pipeline, models
and platforms. They are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy, threads

__version__ = "0.1.0"

threads.configure()

if TYPE_CHECKING:
    from kitlib.core.errors import KitError as KitError
    from kitlib.core.headline import headline as headline
    from kitlib.core.headline import link as link
    from kitlib.core.parameters import check_parameters as check_parameters
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
