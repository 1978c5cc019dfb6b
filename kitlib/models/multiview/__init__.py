"""Multiview: one vision encoder on all views of a place, with a state head, a GPS head and geocells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation.crossval import train as train
    from kitlib.models.multiview.config import Config as Config
    from kitlib.models.multiview.published import import_weights as import_weights
    from kitlib.models.multiview.run import predict as predict
    from kitlib.models.multiview.run import train_fold as train_fold
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
