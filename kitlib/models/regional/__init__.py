"""Regional: one regressor with its own scaler for each region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation.crossval import train as train
    from kitlib.models.regional import analysis as analysis
    from kitlib.models.regional import figures as figures
    from kitlib.models.regional.config import Config as Config
    from kitlib.models.regional.run import clean as clean
    from kitlib.models.regional.run import predict as predict
    from kitlib.models.regional.run import train_fold as train_fold
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
