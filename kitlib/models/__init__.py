"""The families of methods; each offers Config, train, train_fold, predict, and its figures and analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.models import explore as explore
    from kitlib.models import linear_probe as linear_probe
    from kitlib.models import locate as locate
    from kitlib.models import multiview as multiview
    from kitlib.models import regional as regional
    from kitlib.models import retrieval as retrieval
    from kitlib.models import ridge as ridge
    from kitlib.models import vlm as vlm
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
