"""Data sets: readers of every source, the checked table of places, packed pictures, folds, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.data import geography as geography
    from kitlib.data import sample as sample
    from kitlib.data.folds import KINDS as FOLD_KINDS
    from kitlib.data.folds import gap_km as fold_gap_km
    from kitlib.data.folds import load_or_make as load_folds
    from kitlib.data.huggingface import fetch as fetch_hugging_face
    from kitlib.data.pictures import pack as pack_pictures
    from kitlib.data.places import SPLITS as SPLITS
    from kitlib.data.places import Places as Places
    from kitlib.data.readers import load as load
    from kitlib.data.readers import read as read
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
