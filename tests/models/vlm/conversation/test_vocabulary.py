"""Vocabularies: exact normalised names, and what a vocabulary refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.vocabulary import Labels, normalised

NAMES = ["Kansas", "Arkansas", "Virginia", "West Virginia", "São Paulo", "Washington, D.C.", "Congo (Kinshasa)"]
LABELS = Labels(NAMES)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *((name, name) for name in NAMES),
        ("KANSAS", "Kansas"),
        (" kansas. ", "Kansas"),
        ("*Arkansas*", "Arkansas"),
        ("west  virginia", "West Virginia"),
        ("West-Virginia", "West Virginia"),
        ("Sao Paulo", "São Paulo"),
        ("Sa\u0303o Paulo", "São Paulo"),
        ("Washington DC", "Washington, D.C."),
        ("Congo Kinshasa", "Congo (Kinshasa)"),
        ("", None),
        (" ", None),
        ("?", None),
        ("Kan", None),
        ("ansas", None),
        ("Kansas City", None),
        ("Kansas, Arkansas", None),
        ("Kansas Kansas", None),
        ("Kansas\nArkansas", None),
        ("Virginia West Virginia", None),
        ("Virginia, West", None),
        ("Washington", None),
        ("kan\u200bsas", None),
        ("Kansas " * 10**5, None),
    ],
)
def test_only_the_whole_name_is_found(text, label):
    assert LABELS.find(text) == label


@given(st.text(max_size=30))
def test_normalising_twice_is_normalising_once(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4), st.sampled_from([", ", " or ", "/", "\n", " ", ""]))
def test_a_list_of_names_is_no_name(names, between):
    assert LABELS.find(between.join(names)) is None or between.join(names) in NAMES


def test_positions_follow_the_names():
    assert LABELS.positions(["west virginia", None, "nowhere", "Kansas"]).tolist() == [3, -1, -1, 0]
    assert LABELS.positions([]).shape == (0,) and len(LABELS) == len(NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one name"),
        (["Ohio", "Ohio"], "expected each name once"),
        (["Ohio", "ohio "], "expected each name once"),
        (["Ohio", "..."], "expected letters or digits"),
        (["Ohio", "x" * 101], "expected letters or digits"),
    ],
)
def test_a_doubtful_vocabulary_is_refused(names, message):
    with pytest.raises(KitError, match=message):
        Labels(names)
