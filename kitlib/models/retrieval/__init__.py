"""Retrieval: a place is located by its nearest neighbours in embedding space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation.crossval import train as train
    from kitlib.models.retrieval import analysis as analysis
    from kitlib.models.retrieval import figures as figures
    from kitlib.models.retrieval import similarity as similarity
    from kitlib.models.retrieval.config import Config as Config
    from kitlib.models.retrieval.run import predict as predict
    from kitlib.models.retrieval.run import train_fold as train_fold
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
