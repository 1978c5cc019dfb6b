"""Vision-language models that reply with a place's location, trained by SFT and GRPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation.crossval import train as train
    from kitlib.models.vlm import analysis as analysis
    from kitlib.models.vlm import figures as figures
    from kitlib.models.vlm.config import Config as Config
    from kitlib.models.vlm.conversation.rollouts import read as read_rollouts
    from kitlib.models.vlm.dashboard.server import serve as watch
    from kitlib.models.vlm.run import merge as merge
    from kitlib.models.vlm.run import predict as predict
    from kitlib.models.vlm.run import train_fold as train_fold
    from kitlib.models.vlm.session import task_of as task_of
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
