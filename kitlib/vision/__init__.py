"""Convert pictures to features: device, preprocessing, augmentation, encoders, cached embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.vision.device import best_device as best_device
    from kitlib.vision.device import best_dtype as best_dtype
    from kitlib.vision.embeddings import embed as embed
    from kitlib.vision.encoders import load as load_encoder
    from kitlib.vision.inputs import Inputs as Inputs
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
