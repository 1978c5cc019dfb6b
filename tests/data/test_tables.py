"""Every dialect of CSV: read rightly, or refused with its cause."""

from __future__ import annotations

import gzip

import pytest

from kitlib.core.errors import KitError
from kitlib.data import tables

NEEDED = ["id", "latitude", "longitude"]
PLAIN = "id,latitude,longitude,state\n007,44.83,-69.5,Maine\n008,40.3,-82.75,Ohio\n"
WANTED = {"id": ["007", "008"], "latitude": ["44.83", "40.3"], "longitude": ["-69.5", "-82.75"]}
WANTED["state"] = ["Maine", "Ohio"]


@pytest.mark.parametrize(
    ("content", "dialect"),
    {
        "plain": (PLAIN.encode(), "utf-8"),
        "mark": (PLAIN.encode("utf-8-sig"), "utf-8"),
        "little-endian": (b"\xff\xfe" + PLAIN.encode("utf-16-le"), "utf-16"),
        "big-endian": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "utf-16"),
        "semicolons": (PLAIN.replace(",", ";").encode(), "utf-8, semicolons"),
        "tabs": (PLAIN.replace(",", "\t").encode("utf-16"), "utf-16, tabs"),
        "bars": (PLAIN.replace(",", " | ").encode(), "utf-8, bars"),
        "decimal commas": (PLAIN.replace(",", ";").replace(".", ",").encode(), "utf-8, semicolons"),
        "sep=": (b"sep=;\r\n" + PLAIN.replace(",", ";").encode(), "utf-8, semicolons"),
        "old Macs": (PLAIN.replace("\n", "\r").encode(), "utf-8"),
        "quotes": (PLAIN.replace("Ohio", '"Ohio"').replace("id", '"id"').encode(), "utf-8"),
        "index": (b"," + PLAIN.replace("\n00", "\n0,00").encode(), "utf-8"),
        "pandas' index": (PLAIN.replace("id", "Unnamed: 0,id").replace("\n00", "\n0,00").encode(), "utf-8"),
        "hollow rows": (PLAIN.replace("\n008", "\n,,,\n\n , ,,\n008").encode() + b",,,\n\n", "utf-8"),
        "blank lines above": (b"\n\r\n" + PLAIN.encode(), "utf-8"),
    }.values(),
)
def test_dialects_that_leave_no_doubt(content, dialect):
    table, told = tables.parse(content, "t.csv", NEEDED)
    assert table.to_dict("list") == WANTED and told == dialect


def test_rows_are_numbered_by_their_lines():
    table, _ = tables.parse(b"sep=,\nid,a\n,\n\n1,x\n,\n2,y\n", "t.csv")
    assert (table.index + 2).tolist() == [5, 7]


def test_decimal_commas_are_those_of_coordinates_alone():
    table, _ = tables.parse(b"id;lat;predicted_longitude;label\n1;4,5;-6,75;1,5\n", "t.csv")
    assert table.loc[0].tolist() == ["1", "4.5", "-6.75", "1,5"]
    table, _ = tables.parse(b'lat,lon\n"4,5",6\n', "t.csv")
    assert table["lat"][0] == "4,5"  # refused by who reads a number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"\n\n", "got an empty file"),
        (PLAIN.encode("utf-16-le"), "NUL bytes"),
        (PLAIN.encode() + b"\0", "NUL bytes"),
        (PLAIN.encode() + b"\x1b[2J", "control character 0x1b"),
        (PLAIN.encode("utf-16")[:-1], "begins as UTF-16 but is cut"),
        (gzip.compress(PLAIN.encode(), mtime=0), "compressed by gzip, .*: unpack it"),
        (b"PK\3\4 and more", "a zip archive or an Excel workbook"),
        (b"id,latitude,longitude\n", "expected at least one row; got none"),
        (b"id,latitude,longitude\n,,\n", "expected at least one row; got none"),
        (PLAIN.replace("state", "latitude").encode(), "expected each column once; got 'latitude' twice"),
        (PLAIN.replace("state", " id ").encode(), "got 'id' twice"),
        (PLAIN.replace("latitude", "lat").encode(), "got id, lat, longitude, state; missing: latitude$"),
        (PLAIN.replace(",", ";", 1).encode(), "got id;latitude, longitude, state; missing: id, latitude$"),
        (PLAIN.replace(",", ";").replace("id", "no").encode(), "got by semicolons no, latitude, .*; missing: id$"),
        (PLAIN.replace("Maine", '"Maine').replace("Ohio", 'Ohio"').encode(), "line 2: expected one row a line"),
        (PLAIN.replace("Maine", '"Maine\r\n"').encode(), "line 2: expected one row a line"),
        (PLAIN.replace("Ohio", '"Ohio').encode(), "line 3 has a quotation mark that is never closed"),
        (PLAIN.replace("state", '"state').replace("Maine", 'x"').encode(), "quotation mark that is not closed there"),
        (PLAIN.encode() + b"009,1,2,Utah,5\n", "Expected 4 fields in line 4, saw 5"),
        (b"id,latitude,longitude\n1,2,3,4\n", "more fields than the header has"),
    ],
)
def test_the_rest_is_refused_with_its_cause(content, message):
    with pytest.raises(KitError, match=f"^t.csv.*{message}") as error:
        tables.parse(content, "t.csv", NEEDED)
    assert "\n" not in str(error.value)


def test_two_separators_that_fit_alike_are_refused():
    with pytest.raises(KitError, match="expected one separator of columns; got commas and semicolons in 'a,b;c'"):
        tables.parse(b"a,b;c\n1,2;3\n", "t.csv")


def test_latin_1_is_told():
    table, dialect = tables.parse("name;lat\nSão;1,5\n".encode("latin-1"), "t.csv")
    assert table.loc[0].tolist() == ["São", "1.5"] and dialect == "latin-1, semicolons"


def test_limits_of_rows_and_of_the_line_of_names(monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 2)
    with pytest.raises(KitError, match=r"t.csv: expected at most 2 rows; got 3"):
        tables.parse(b"a\n1\n2\n3", "t.csv")
    monkeypatch.setattr(tables, "HEADER", 10)
    with pytest.raises(KitError, match=r"got more than 10 characters"):
        tables.parse(b"a" * 30 + b"\n1", "t.csv")
