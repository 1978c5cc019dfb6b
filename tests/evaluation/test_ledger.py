"""The ledger of submissions: what its table says, who writes into it, and how far public scores follow."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.evaluation import comparison, ledger

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)


@pytest.fixture
def put(home):
    """Write a submission and its record; return the path of its .csv."""

    def write(name, rows="sample_id\n1\n", **about):
        file = home / f"submissions/{name}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(rows)
        storage.write_json(file.with_suffix(".json"), about)
        return file

    return write


def handed_in(*when, checksum="0"):
    return [{"when": at, "competition": "geo", "message": "", "checksum": checksum} for at in when]


def test_a_row_says_members_scores_and_what_was_handed_in(put):
    blend = {"states": {"a": 0.3, "b": 0.7, "c": 0.0}, "points": {"a": 0.5, "b": 0.0, "c": 0.5}}
    scores = {"out_of_fold": 0.62, "out_of_fold_nested": 0.61, "half_width": 0.02, "true_score": 0.63}
    file = put("mine", written="2026-11-29T08:00:00+00:00", members=blend, public_score="0.64", **scores)
    about = json.loads(file.with_suffix(".json").read_text())
    entries = handed_in("2026-11-29T09:00:00+00:00", "2026-11-30T08:59:00+00:00", checksum=storage.digest(file))
    storage.write_json(file.with_suffix(".json"), about | {"submitted": entries})
    put("older", written="2026-11-28T08:00:00+00:00", members={"a": 1.0}, submitted=handed_in("2026-11-28"))
    table = ledger.table()
    assert table["submission"].tolist() == ["mine", "older"]
    mine, older = table.to_dict("records")
    assert mine["members"] == "b 70%, a 30%, c (points)" and older["members"] == "a 100%"
    assert [mine[name] for name in ledger.SCORES] == [0.62, 0.61, 0.02, 0.64, 0.63]
    assert mine["submitted"] == "2026-11-30 08:59 (2 times)" and mine["remark"] == ""
    assert older["remark"] == "other rows were handed in" and np.isnan(older["public"])
    text = comparison.as_text(table)
    assert "0.6400" in text and "nan" not in text and "2026-11-29 08:00" in text


def test_what_is_wrong_with_a_record_is_its_remark(put, home):
    put("changed", checksum="0")
    put("damaged").with_suffix(".json").write_text("{")
    put("odd", members={"states": {"a": "x"}})
    put("gone", submitted=handed_in("2026-11-30T01:00:00+00:00")).unlink()
    put("no record").with_suffix(".json").unlink()
    storage.write_json(home / "submissions/someone--streets.json", {"members": {"a": 1.0}})  # of the hub
    remarks = ledger.table().set_index("submission")["remark"].to_dict()
    assert remarks.keys() == {"changed", "damaged", "odd", "gone", "no record"}
    assert remarks["changed"] == "other rows than its .json describes"
    assert "damaged.json in submissions: expected JSON" in remarks["damaged"]
    assert remarks["odd"].startswith("odd.json in submissions: expected a whole file")
    assert remarks["gone"] == "the .csv is missing" and remarks["no record"] == ""
    assert ledger.used_today(NOW) == {"geo": 1}


def test_the_day_of_kaggle_is_utc(put):
    put("a", submitted=handed_in("2020-11-29T23:59:59+00:00", "2020-11-30T00:00:00+00:00", "2020-11-30T08:00:00+00:00"))
    put("b", submitted=[*handed_in("2020-11-30T03:00:00+00:00"), "by hand", {"when": 5}])
    assert ledger.used_today(NOW.replace(year=2020)) == {"geo": 3}
    ledger.add_submitted(put("c"), "geo", "a try")
    assert ledger.used_today()["geo"] == 1


def test_a_public_score_is_typed_in_and_stays_with_its_rows(put):
    file = put("mine", written="x")
    ledger.set_public("mine", 0.7312)
    assert ledger.record(file) == {"written": "x", "public_score": 0.7312}
    with pytest.raises(KitError, match="there is no submission 'her'; there are: mine"):
        ledger.set_public("her", 0.5)
    for score in (73.12, -1, float("nan")):
        with pytest.raises(KitError, match=r"^--public mine: expected a number from 0 to 1; got"):
            ledger.set_public("mine", score)
    storage.write_json(file.with_suffix(".json"), {"checksum": "0"})
    with pytest.raises(KitError, match=r"mine\.csv: expected the rows that mine\.json describes"):
        ledger.set_public("mine", 0.5)
    file.unlink()
    storage.write_json(file.with_suffix(".json"), {"public_score": None})
    ledger.set_public("mine", 0.5)  # of a file that was deleted
    assert ledger.table()["public"].tolist() == [0.5]


def test_public_scores_follow_or_do_not(put):
    for name, nested, public in (("a", 0.5, 0.52), ("b", 0.6, 0.59), ("c", 0.7, 0.71)):
        assert ledger.agreement(ledger.table()).endswith("are needed for a correlation")
        put(name, out_of_fold=0.9, out_of_fold_nested=nested, public_score=public)
    text = ledger.agreement(ledger.table())
    assert "+1.00 (n = 3)" in text and "+0.0067 on average, -0.0100 to +0.0200" in text
    put("d", out_of_fold=0.8, public_score=0.1)  # not nested
    assert "(n = 4)" in ledger.agreement(ledger.table()) and "-0.20" in ledger.agreement(ledger.table())
    for name in "abcd":
        ledger.set_public(name, 0.5)
    assert "all of 4" in ledger.agreement(ledger.table())
