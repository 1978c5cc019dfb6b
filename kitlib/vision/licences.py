"""The licences of published weights, by the name of an encoder or a vision-language model.

A trained model inherits the licence of the weights it started from. Names that are not known here get an honest
"unknown"; for timm models, timm's own record is asked.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
# licence: (its name in Kaggle's list, what it allows)
TERMS = {
    "apache-2.0": ("Apache 2.0", "commercial use is allowed"),
    "mit": ("MIT", "commercial use is allowed"),
    "bsd-3-clause": ("BSD-3-Clause", "commercial use is allowed"),
    "cc-by-4.0": ("Attribution 4.0 International (CC BY 4.0)", "commercial use is allowed, with attribution"),
    "cc-by-nc-4.0": ("Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)", "not for commercial use"),
    "dinov3-license": ("", "commercial use is allowed under its own terms"),
    "qwen-research": ("", "for research only, not for commercial use"),
}
# what a name contains: licence; those that allow much ask for the publisher's name, as a copy may have other weights
WEIGHTS = {
    r"street-?clip": "cc-by-nc-4.0",
    r"qwen2\.5-vl-3b": "qwen-research",
    r"dinov3": "dinov3-license",
    r"geoclip": "mit",
    r"qwen/qwen2\.5-vl-7b|qwen/qwen3(\.\d+)?-": "apache-2.0",
    r"facebook/dinov2|google/siglip|sdan/geospot": "apache-2.0",
}


@dataclass(frozen=True)
class Licence:
    """The licence of published weights.

    name: as the Hugging Face hub writes it, such as cc-by-nc-4.0; "unknown" when it is not known. kaggle: its name in
    Kaggle's list of licences, "" if it is not there. limits: what it allows. commercial: None when it is not known.
    sentence: for logs and model cards.
    """

    name: str
    kaggle: str = ""
    limits: str = ""
    commercial: bool | None = None
    sentence: str = ""


def licence(name: str) -> Licence | None:
    """As `licence_of`, None when it is not known."""
    found = licence_of(name)
    return None if found.name == UNKNOWN else found


def licence_of(name: str) -> Licence:
    """The licence of an encoder's or a model's published weights, such as of "hf:geolocal/StreetCLIP".

    A timm name imports timm. Weights in a file count as the published ones of that name.

    >>> licence_of("hf:geolocal/StreetCLIP").name, licence_of("hf:somebody/model").name
    ('cc-by-nc-4.0', 'unknown')
    """
    kind, colon, rest = name.partition(":")
    weights = re.split(r"[@?]", rest)[0] if colon else kind
    if kind == "tiny":
        said = "tiny starts from random weights, under no licence of others"
        return Licence("apache-2.0", TERMS["apache-2.0"][0], "", True, said)
    known = next((known for pattern, known in WEIGHTS.items() if re.search(pattern, weights, re.IGNORECASE)), None)
    known = known or (_timm(weights) if kind == "timm" else None) or UNKNOWN
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", weights)
    shown = weights if on_hub else weights.rstrip("/").rpartition("/")[2]  # no folder of this machine
    if known == UNKNOWN:
        where = f"https://huggingface.co/{shown}" if on_hub else "the place it was published at"
        return Licence(UNKNOWN, sentence=f"the licence of {shown} is unknown here: look it up at {where}")
    kaggle, limits = TERMS.get(known, ("", "read its terms before commercial use"))
    commercial = False if "noncommercial" in known or "not for commercial" in limits else known in TERMS or None
    published = " if its file holds the published weights" if "@" in rest else ""
    sentence = f"weights of {shown}: licence {known}, {limits}{published}"
    return Licence(known, kaggle, limits, commercial, sentence)


def tell(name: str) -> None:
    """Log the licence of an encoder's or a model's published weights, once in a process; nothing for tiny."""
    if not name.startswith("tiny"):
        _log_once(licence_of(name).sentence)


@cache
def _log_once(sentence: str) -> None:
    log.info("%s", sentence)


def _timm(name: str) -> str | None:
    """The licence that timm records for a model's published weights; None if it records none."""
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # the tag behind the dot is unknown
        return None
    return config.license if config else None
