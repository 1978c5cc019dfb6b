"""labels: exact normalised names, aliases, and what a vocabulary refuses."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.core.errors import KitError
from kitlib.models.vlm.conversation.vocabulary import Labels, from_table, normalised

NAMES = ["Kansas", "Arkansas", "Virginia", "West Virginia", "São Paulo", "Washington, D.C.", "Congo (Kinshasa)"]
LABELS = Labels(NAMES, {"WV": "West Virginia", "W. Va.": "West Virginia"})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *((name, name) for name in NAMES),
        ("KANSAS", "Kansas"),
        (" kansas. ", "Kansas"),
        ("*Arkansas*", "Arkansas"),
        ("west  virginia", "West Virginia"),
        ("West-Virginia", "West Virginia"),
        ("wv", "West Virginia"),
        ("W Va", "West Virginia"),
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
    assert LABELS.positions(["WV", None, "nowhere", "Kansas"]).tolist() == [3, -1, -1, 0]
    assert LABELS.positions([]).shape == (0,) and len(LABELS) == len(NAMES)


def test_a_vocabulary_comes_from_a_table():
    table = pd.DataFrame({"state": ["Ohio", "Iowa"], "postal": ["OH", None], "other": ["Buckeye State", ""]})
    states = from_table(table, "state", "postal", "other")
    assert states.names == ("Ohio", "Iowa")
    assert [states.find(text) for text in ("oh", "Buckeye state", "nan", "")] == ["Ohio", "Ohio", None, None]
    with pytest.raises(KitError, match="no column code in the table of names; there are state, postal, other"):
        from_table(table, "state", "code")
    with pytest.raises(KitError, match="'X' would stand for both 'Ohio' and 'Iowa'"):
        from_table({"state": ["Ohio", "Iowa"], "postal": ["X", "X"]}, "state", "postal")


@pytest.mark.parametrize(
    ("names", "aliases", "told"),
    [
        ([], {}, "at least one name"),
        (["Ohio", "Ohio"], {}, "stands twice"),
        (["Ohio", "ohio "], {}, "would stand for both"),
        (["Ohio", "..."], {}, "cannot be a name"),
        (["Ohio"], {"OH": "Iowa"}, "'Iowa', which is not in the vocabulary"),
        (["Ohio", "Iowa"], {"iowa": "Ohio"}, "would stand for both"),
        (["Ohio"], {"": "Ohio"}, "cannot be a name"),
    ],
)
def test_a_doubtful_vocabulary_is_refused(names, aliases, told):
    with pytest.raises(KitError, match=told):
        Labels(names, aliases)
