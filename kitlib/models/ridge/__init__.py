"""Ridge: states and points by ridge regression on frozen features, in closed form and in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation.crossval import train as train
    from kitlib.models.ridge.config import Config as Config
    from kitlib.models.ridge.run import predict as predict
    from kitlib.models.ridge.run import train_fold as train_fold
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
