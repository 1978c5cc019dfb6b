"""Replies as published models write them: each with the point and the state that a careful reader takes from it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitlib.models.vlm.conversation.replies import Reply, read
from kitlib.models.vlm.conversation.vocabulary import Labels

STATES = Labels(["Arkansas", "California", "District of Columbia", "Georgia", "Idaho", "Indiana", "Kansas", "Maine",
                 "Missouri", "New York", "Ohio", "Oklahoma", "Oregon", "Texas", "Virginia", "Washington",
                 "West Virginia"])  # fmt: skip
HERE = (35.25, -101.5)
LINES = "Latitude: 35.25\nLongitude: -101.5"

WRITTEN = [
    # labelled lines beside remarks
    (f"The sign reads exit 12, 14, and the speed limit is 55, 65.\nState: Texas\n{LINES}", HERE, "Texas"),
    (f"State: Texas (exit 12, 14)\n{LINES}", HERE, "Texas"),
    (f"{LINES}\nFor comparison, Tulsa is at 36.15, -95.99.", HERE, None),
    (f"Amarillo's coordinates are 35.19, -101.85, and this is a little to the north.\n{LINES}", HERE, None),
    ("Latitude: 35.25, near mile marker 12\nLongitude: -101.5 (about 40 miles from Amarillo)", HERE, None),
    ("Latitude: 35.25 ± 0.5\nLongitude: -101.5 ± 0.75°", HERE, None),
    ("Latitude: 35.25 (±0.2)\nLongitude: -101.5 (+/- 0.2)", HERE, None),
    ("Latitude: around 35.25\nLongitude: around -101.5", HERE, None),
    ("Latitude: ~35.25° N\nLongitude: ~101.5° W", HERE, None),
    ("Latitude: I would estimate 35.25\nLongitude: probably close to -101.5", HERE, None),
    ("Latitude: between 35 and 36\nLongitude: -101.5", None, None),
    ("Latitude: 35-36\nLongitude: -101.5", None, None),
    ("Latitude: near exit 12\nLongitude: -101.5", None, None),
    ("Latitude: 60 miles north of Lubbock\nLongitude: -101.5", None, None),
    ("Latitude: 35.25 (35°15'00\" N)\nLongitude: -101.5 (101°30'00\" W)", HERE, None),
    ("Latitude: 35.25\nLongitude: -101.5\n(35°15'00\"N, 101°30'00\"W)", HERE, None),
    ("### State\nTexas\n\n### Latitude\n35.25\n\n### Longitude\n-101.5", HERE, "Texas"),
    ("**State:**\nTexas\n**Coordinates:**\n35.25, -101.5", HERE, "Texas"),
    ("State:\n- Kansas\n- Texas", None, None),
    ("Region: Great Plains\nState: Texas\nCountry: USA\nLatitude: 35.25\nLongitude: -101.5", HERE, "Texas"),
    ("\u2022 State \u2013 unknown\n\u2022 Latitude = 35.25\n\u2022 Longitude = -101.5", HERE, None),
    ("_State_: Texas\n_Latitude_: 35.25\n_Longitude_: -101.5", HERE, "Texas"),
    ("Lat. 35.25 N., Long. 101.5 W.", HERE, None),
    ("GPS: 35.25, -101.5", HERE, None),
    ("Estimated location: Potter County (35.25, -101.5)", HERE, None),
    ("Coordinates (lat, lon): 35.25, -101.5", HERE, None),
    ("Coordinates (lon, lat): -101.5, 35.25", HERE, None),
    ("Lat/Long: 35.25 / -101.5", HERE, None),
    ("The latitude of this place is about 35.25 and its longitude is about -101.5.", HERE, None),
    ("Longitude: 101.5 degrees to the west\nLatitude: 35.25 degrees to the north", HERE, None),
    ("Latitude and Longitude: 35.25 and -101.5", HERE, None),
    ("Longitude, latitude: -101.5, 35.25", HERE, None),
    # the final answer of several
    (
        "First thought:\nState: Kansas\nLatitude: 38.5\nLongitude: -98.3\n\nFinal answer:\nState: Texas\n" + LINES,
        HERE,
        "Texas",
    ),
    ("Candidates:\n- Kansas: 38.5, -98.3\n- Texas: 35.25, -101.5\n\nBest guess: 35.25, -101.5", HERE, None),
    ("State: Kansas\nLatitude: 38.5\nLongitude: -98.3\n\nState: Texas\n" + LINES, None, None),
    # bare pairs
    ("Exit 12, 14. It was taken at 35.25, -101.5.", HERE, None),
    ("At first I thought of 38.5, -98.3. The soil says otherwise: 35.25, -101.5.", HERE, None),
    ("It is either 38.5, -98.3 or 35.25, -101.5.", None, None),
    ("Texas (35.25, -101.5)\nKansas (38.5, -98.3)", None, None),
    ("1. Texas: 35.25, -101.5.\n2. Kansas: 38.5, -98.3.", None, None),
    ("- Texas: 36.1, -101.5\n- Kansas: 38.5, -98.3\nI choose the panhandle: 35.25, -101.5.", HERE, None),
    ("I see exit 12, 14.", None, None),
    ("The speed limit is 55, 65 and the road is US 40, 287.", None, None),
    ("Diesel costs 3.49, 3.79.", None, None),
    ("The location has a filling station, at 3.49, 3.79.", None, None),
    ("The coordinates cannot be told from exits 12.5, 14.5.", None, None),
    ("It was taken at 48.85, 2.35.", (48.85, 2.35), None),
    ("Latitude:\n35.25\nLongitude:\n-101.5\nThis is near exit 12, 14.", HERE, None),
    ("It is 12, 14 miles away.", None, None),
    ("Take 40 W, 287 N at the junction.", None, None),
    ("I cannot give coordinates from exits 12, 14 and 16.", None, None),
    ("The coordinates are 35, -101.", (35.0, -101.0), None),
    ("Somewhere near 35.25, -101.5, I think.", HERE, None),
    ("Somewhere from 35\u00b0 to 36\u00b0 N, 101\u00b0 to 102\u00b0 W.", None, None),
    ("Numbers on the sign:\n12, 14\n\nSo this is around 35.25, around -101.5.", HERE, None),
    ("The sign says I-40.\n\n35.25, -101.5\n\nThat is in the Texas panhandle.", HERE, None),
    ("Answer: \\boxed{35.25, -101.5}, far from 38.5, -98.3.", HERE, None),
    ("$$\\boxed{35.25^\\circ \\text{N}, 101.5^{\\circ} \\text{W}}$$", HERE, None),
    ("\\[ \\boxed{\\text{State: Texas, Latitude: 35.25, Longitude: -101.5}} \\]", HERE, "Texas"),
    ("Here it is: [map](https://www.google.com/maps?q=35.25,-101.5).", HERE, None),
    ("https://www.google.com/maps/place/Amarillo/@35.2,-101.8,12z/data=!3m1!4b1!8m2!3d35.25!4d-101.5", HERE, None),
    ("https://www.openstreetmap.org/#map=12/35.25/-101.5", HERE, None),
    ("https://www.openstreetmap.org/?mlat=35.25&mlon=-101.5#map=5/0/0", HERE, None),
    ("geo:35.25,-101.5", HERE, None),
    ("See https://example.com/routes/12,14 for the road.", None, None),
    ("https://maps.apple.com/?ll=35.25%2C-101.5", HERE, None),
    # tables
    ("| State | Latitude | Longitude |\n|:--|--:|--:|\n| Texas | 35.25 | -101.5 |", HERE, "Texas"),
    ("| Rank | State | Coordinates |\n|---|---|---|\n| 1 | Texas | 35.25, -101.5 |", HERE, "Texas"),
    ("State | Latitude | Longitude\n--- | --- | ---\nTexas | 35.25\u00b0 N | 101.5\u00b0 W", HERE, "Texas"),
    (
        "| State | Latitude | Longitude |\n|---|---|---|\n| Texas | 35.25 | -101.5 |\n| Kansas | 38.5 | -98.3 |",
        None,
        None,
    ),
    ("| **State** | Texas | high |\n| **Latitude** | 35.25 | low |\n| **Longitude** | -101.5 | low |", HERE, "Texas"),
    ("| Latitude | 35.25 | Longitude | -101.5 |", HERE, None),
    ("State: Texas | Latitude: 35.25 | Longitude: -101.5", HERE, "Texas"),
    # JSON
    ('{"state": "Texas", "coordinates": [35.25, -101.5]}', HERE, "Texas"),
    ('{\n  "state": "TX",\n  "coordinates": [\n    35.25,\n    -101.5\n  ]\n}', HERE, "Texas"),
    ('{"location": {"lat": 35.25, "lng": -101.5}, "state_code": "TX"}', HERE, "Texas"),
    ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [-101.5, 35.25]}}', HERE, None),
    ('{"type": "Point", "coordinates": [35.25, -101.5]}', None, None),  # no such latitude in that order
    ("{'state': 'Texas', 'latitude': 35.25, 'longitude': -101.5,}", HERE, "Texas"),
    ('{"latitude": "35.25\u00b0 N", "longitude": "101.5\u00b0 W"}', HERE, None),
    ('{"state": "Texas", "gps_coordinates": {"latitude_deg": 35.25, "longitude_deg": -101.5}}', HERE, "Texas"),
    ('{"state": "Texas", "latitude": null, "longitude": null}', None, "Texas"),
    ('{"coordinates": [[35.25, -101.5], [38.5, -98.3]]}', None, None),
    # LaTeX, degrees and hemispheres in words
    ("The place is at $35.25^{\\circ}$ N, $101.5^{\\circ}$ W.", HERE, None),
    ("$\\text{Latitude: } 35.25^\\circ \\mathrm{N}$\n$\\text{Longitude: } 101.5^\\circ \\mathrm{W}$", HERE, None),
    ("Latitude: $35^\\circ 15' 0''$ N\nLongitude: $101^\\circ 30' 0''$ W", HERE, None),
    ("It lies at 35.25 degrees north, 101.5 degrees west.", HERE, None),
    ("35.25 degrees North latitude, 101.5 degrees West longitude", HERE, None),
    ("North latitude 35.25\u00b0, west longitude 101.5\u00b0", HERE, None),
    ("Latitude (North): 35.25\nLongitude (West): 101.5", HERE, None),
    ("North Latitude: 35.25\nWest Longitude: 101.5", HERE, None),
    ("Latitude N: 35.25\nLongitude W: 101.5", HERE, None),
    ("Latitude: 35.25 (N)\nLongitude: 101.5 (W)", HERE, None),
    ("Latitude: 35.25 degrees (north)\nLongitude: 101.5 degrees (West)", HERE, None),
    ("Latitude: North 35.25\nLongitude: West 101.5", HERE, None),
    ("35.25\u00b0 latitude, -101.5\u00b0 longitude", HERE, None),
    ("a latitude of about 35.25 and a longitude of about -101.5", HERE, None),
    ("35\u00b0 15 min N, 101\u00b0 30 min W", HERE, None),
    ("N35.25/W101.5", HERE, None),
    ("Latitude: -35.25 N\nLongitude: -101.5", None, None),
    ("Ohio's 35.25, -101.5 would be wrong, it is in Texas.", HERE, None),  # no S of a genitive
    # Chinese and Spanish
    ("\u5317\u7eac35.25\u5ea6\uff0c\u897f\u7ecf101.5\u5ea6", HERE, None),
    ("\u7eac\u5ea6\uff1a\u5317\u7eac35.25\u00b0\n\u7ecf\u5ea6\uff1a\u897f\u7ecf101.5\u00b0", HERE, None),
    ("\u5750\u6807\uff1a35.25\uff0c-101.5", HERE, None),
    ("\u7eac\u5ea6\u5927\u7ea6\u4e3a35.25\uff0c\u7ecf\u5ea6\u5927\u7ea6\u4e3a-101.5\u3002", HERE, None),
    ("State: Texas\n\u7def\u5ea6: 35\u00b015\u203200\u2033N\n\u7d93\u5ea6: 101\u00b030\u203200\u2033W", HERE, "Texas"),
    ("\u5357\u7eac35.25\u00b0\uff0c\u4e1c\u7ecf101.5\u00b0", (-35.25, 101.5), None),
    ("\u2460 35.25, -101.5", HERE, None),
    ("Latitud: 35,25\nLongitud: -101,5", HERE, None),
    ("35.25\u00b0 N, 101.5\u00b0 O", HERE, None),
    ("La foto es de Texas, a 35.25\u00b0 N, 101.5\u00b0 O.", HERE, None),
    ("35.25\u00b0 N\n101.5\u00b0 W", HERE, None),
    ("35.25 grados de latitud norte y 101.5 grados de longitud oeste", HERE, None),
    ("Coordenadas: 35.25\u00b0 Norte, 101.5\u00b0 Oeste", HERE, None),
    ("Latitud: 35.25\u00b0 Sur\nLongitud: 101.5\u00b0 Este", (-35.25, 101.5), None),
]


@pytest.mark.parametrize(("reply", "point", "state"), WRITTEN)
def test_a_reply_is_read_as_a_careful_reader_takes_it(reply, point, state):
    found = read(reply, {"region": STATES}, "region")
    assert found.point == (point and pytest.approx(point, abs=1e-5))
    assert found.region == state


NAMED = {  # forms, with | between
    "Texas": "TX | State of Texas | Texas, USA | Texas, United States | Texas, U.S. | Texas USA | TX, USA | Texas (TX)"
    " | TX (Texas) | US-TX | Texas - based on the plates | Texas — the soil is red | Texas—the soil is red"
    " | Texas (likely, because of the plates) | Texas, most likely | Probably Texas | Texas because of the red soil"
    " | Texas. | TEXAS? | Texas (not Oklahoma) | the U.S. state of Texas | Texas [TX]",
    "New York": "N.Y. | the State of New York | new york",
    "Virginia": "Commonwealth of Virginia | VA",
    "West Virginia": "West Virginia | WV",
    "Washington": "Washington | Washington State | WA",
    "District of Columbia": "Washington DC | Washington, D.C. | DC | Washington, DC, USA",
    "Kansas": "Kansas | KS, United States of America",
    "Arkansas": "Arkansas | AR",
    "Georgia": "Georgia, USA | GA",
    "Oregon": "OR",
    "Indiana": "IN",
    "Ohio": "Ohio State | OH - Ohio",
    "": "or | in | Texas (or Oklahoma) | Texas - or Oklahoma | Texas or Oklahoma | Texas/Oklahoma | Texas, Oklahoma"
    " | Texas and Oklahoma | Texas (Oklahoma) | Texas-Oklahoma border | Kansas City | western Virginia | Unknown | N/A"
    " | USA | in USA | Virginia, West | Tex | Main | New | -",
}


@pytest.mark.parametrize(
    ("state", "text"), [(state, form) for state, forms in NAMED.items() for form in forms.split(" | ")]
)
def test_a_state_in_its_usual_forms(state, text):
    assert read(f"State: {text}\n{LINES}", {"region": STATES}) == Reply(HERE, region=state or None)


COUNTRIES = {
    "United States": "USA | US | U.S.A. | the United States of America",
    "United Kingdom": "UK | Great Britain | GB | GBR",
    "Czechia": "Czech Republic",
    "Ivory Coast": "Côte d'Ivoire | CIV",
    "Georgia": "GE",
    "Niger": "Niger",
    "Nigeria": "NG",
    "Guinea": "Guinea",
    "Guinea-Bissau": "Guinea-Bissau",
    "South Korea": "Republic of Korea | Korea",
    "Trinidad and Tobago": "Trinidad & Tobago",
    "": "Papua New Guinea | us | North Korea | FR",
}


@pytest.mark.parametrize(
    ("country", "text"), [(country, form) for country, forms in COUNTRIES.items() for form in forms.split(" | ")]
)
def test_a_country_in_its_usual_forms(country, text):
    labels = {"country": Labels(filter(None, COUNTRIES))}
    assert read(f"Country: {text}", labels).country == (country or None)


RANKED = ("Texas", "Oklahoma", "Kansas")


@pytest.mark.parametrize(
    ("reply", "states"),
    [
        ("States: Texas, Oklahoma, Kansas\nCoordinates: 35.25, -101.5", RANKED),
        ("**States:** TX > OK > KS\n35.25, -101.5", RANKED),
        ("States:\n1. Texas\n2. Oklahoma (45 %)\n3. Kansas\nCoordinates: 35.25, -101.5", RANKED),
        ('{"states": ["Texas", "Oklahoma", "Kansas"], "coordinates": [35.25, -101.5]}', RANKED),
        ("States: Texas, Texas, Atlantis, Oklahoma, Kansas\n35.25, -101.5", RANKED),
        (
            "States: Texas, Ohio, Maine, Idaho, Oregon, Kansas\n35.25, -101.5",
            ("Texas", "Ohio", "Maine", "Idaho", "Oregon"),
        ),
        ("States: Texas or Oklahoma\n35.25, -101.5", None),
        ("States: unknown\n35.25, -101.5", None),
    ],
)
def test_ranked_states_are_read_in_their_order(reply, states):
    assert read(reply, {"states": STATES}) == Reply(HERE, states=states)


def test_a_vocabulary_of_codes_takes_the_names():
    codes = Labels(["OH", "TX", "DC"])
    assert [codes.find(text) for text in ("Ohio", "Texas, USA", "TX", "Washington", "Washington, DC")] == [
        "OH", "TX", "TX", None, "DC"
    ]  # fmt: skip
    assert Labels(["Kansas", "Washington"]).find("Washington, DC") is None
    assert Labels(["Bavaria", "S\u00e3o Paulo"]).find("S\u00e3o Paulo, Brazil") == "S\u00e3o Paulo"


def side(value: float, letters: str) -> str:
    return letters[value < 0]


def sexagesimal(value: float) -> str:
    seconds = round(abs(value) * 3600, 2)
    return f"{int(seconds // 3600)}\u00b0{int(seconds % 3600 // 60)}'{seconds % 60:.2f}\""


FORMS = {
    "lines": "State: Texas\nLatitude: {a}\nLongitude: {b}",
    "bold": "**Latitude**: {a}  \n**Longitude**: {b}",
    "words": "{p} degrees {north} latitude and {q} degrees {east} longitude",
    "prose": "So the coordinates are approximately {a}, {b}, in Texas.",
    "behind": "{p}\u00b0 {n}, {q}\u00b0 {e}",
    "ahead": "{n} {p}, {e} {q}",
    "sides": "Latitude ({n}): {p}\nLongitude ({e}): {q}",
    "minutes": "{ms}{n} {mt}{e}",
    "minutes in lines": "Latitude: {ms} {n}\nLongitude: {mt} {e}",
    "minutes, longitude first": "{mt} {e}, {ms} {n}",
    "latex": "${p}^\\circ\\text{{{n}}}, {q}^{{\\circ}}\\text{{{e}}}$",
    "boxed": "\\boxed{{{a}, {b}}}",
    "json": '{{"state": "Texas", "latitude": {a}, "longitude": {b}}}',
    "array": '{{"coordinates": [{a}, {b}], "state": "Texas"}}',
    "geojson": '{{"type": "Point", "coordinates": [{b}, {a}]}}',
    "map": "https://www.google.com/maps/@{a},{b},12z",
    "query": "It is here: https://maps.google.com/?q={a},{b}.",
    "rows": "| Field | Value |\n|---|---|\n| Latitude | {a} |\n| Longitude | {b} |",
    "columns": "| State | Latitude | Longitude |\n|---|---|---|\n| Texas | {a} | {b} |",
    "chinese": "{zn}\u7eac{p}\u5ea6\uff0c{ze}\u7ecf{q}\u5ea6",
    "chinese keys": "\u7eac\u5ea6\uff1a{a}\n\u7ecf\u5ea6\uff1a{b}",
    "spanish": "Latitud: {p}\u00b0 {norte}\nLongitud: {q}\u00b0 {este}",
    "tolerance": "Latitude: {a} \u00b1 0.5\nLongitude: {b} \u00b1 0.5",
    "around": "Latitude: around {a}\nLongitude: around {b}",
    "alone": "I see a barn.\n\n({a}, {b})\n\nThe limit is 55, 65.",
}


@pytest.mark.parametrize("form", FORMS)
@given(lat=st.integers(-899999, 899999), lon=st.integers(-1799999, 1799999))
def test_a_point_written_in_any_form_reads_as_the_same_point(form, lat, lon):
    lat, lon = lat / 1e4, lon / 1e4
    parts = {"a": f"{lat:.4f}", "b": f"{lon:.4f}", "p": f"{abs(lat):.4f}", "q": f"{abs(lon):.4f}"}
    parts |= {"n": side(lat, "NS"), "e": side(lon, "EW"), "ms": sexagesimal(lat), "mt": sexagesimal(lon)}
    parts |= {"north": side(lat, ["north", "south"]), "east": side(lon, ["east", "west"])}
    parts |= {"norte": side(lat, ["Norte", "Sur"]), "este": side(lon, ["Este", "Oeste"])}
    parts |= {"zn": side(lat, "\u5317\u5357"), "ze": side(lon, "\u4e1c\u897f")}
    assert read(FORMS[form].format(**parts)).point == pytest.approx((lat, lon), abs=1e-5)


def test_a_second_of_a_processor_reads_thousands_of_replies():
    labels = {"region": STATES}
    began = time.process_time()
    for reply, *_ in WRITTEN * 5:
        read(reply, labels, "region")
    assert 5 * len(WRITTEN) / (time.process_time() - began) > 1000
