"""Licences of published weights: what each may be used for, and its name on Kaggle."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """A licence by its name on the hub; `kaggle` is "" if Kaggle does not list it for models."""

    name: str
    kaggle: str = ""
    limits: str = ""


NON_COMMERCIAL = "not for commercial use; whatever is trained from these weights inherits that"
APACHE = Licence("apache-2.0", "Apache 2.0")
MIT = Licence("mit", "MIT")
CC_BY_NC = Licence("cc-by-nc-4.0", "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)", NON_COMMERCIAL)
QWEN_RESEARCH = Licence("qwen-research", limits=f"for research only, {NON_COMMERCIAL}")
DINOV3 = Licence("dinov3-license", limits="Meta's own terms, commercial use allowed; access has to be asked for")

PUBLISHED = {  # the beginning of a name in lower case, on the hub or in timm; others, such as convnextv2, differ
    "geolocal/streetclip": CC_BY_NC,
    "qwen/qwen2.5-vl-3b": QWEN_RESEARCH,
    "qwen/qwen2.5-vl-7b": APACHE,
    "qwen/qwen3-vl": APACHE,
    "qwen/qwen3.5": APACHE,
    "qwen/qwen3.6": APACHE,
    "facebook/dinov2": APACHE,
    "facebook/dinov3": DINOV3,
    "google/siglip2": APACHE,
    "sdan/geospot-base": APACHE,
    "convnext_small": APACHE,
    "eva02_": MIT,
}


def licence(encoder: str) -> Licence | None:
    """The licence of the weights that an encoder or model names; None if it is not known here.

    >>> licence("hf:geolocal/StreetCLIP").name, licence("hf:me/mine")
    ('cc-by-nc-4.0', None)
    """
    name = re.sub(r"^(hf|timm):|[@?].*$", "", encoder).lower()
    return next((licence for start, licence in PUBLISHED.items() if name.startswith(start)), None)
