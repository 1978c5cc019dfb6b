"""One place at a time: order and choice of places, the figure, which parts decide, the menus, and refusals."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.evaluation import runs
from kitlib.evaluation.guesses import Guesses
from kitlib.models import retrieval
from kitlib.models.explore import Explorer

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture(scope="module")
def explorer(world):
    for name, by in (("one", "mean"), ("two", "heading")):
        retrieval.train(retrieval.Config(encoder="tiny", mirror=False, by=by), world, name, n_folds=2)
    return Explorer(world, ["one", "two"], "tiny")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title)]


def test_places_in_the_order_that_is_asked_for(explorer):
    table = explorer.table.set_index("sample_id")
    km = table.loc[explorer.ids(order="largest error"), "km"].to_numpy()
    assert (np.diff(km) <= 0).all() and len(km) == 60
    first = table.loc[explorer.ids(order="surest wrong state")[0]]
    assert not first["right"] and first["probability"] == table.loc[~table["right"], "probability"].max()
    state = table["state"].iloc[0]
    assert set(table.loc[explorer.ids(state), "state"]) == {state}
    with pytest.raises(KitError, match="order: expected one of largest error"):
        explorer.ids(order="best")


def test_the_figure_shows_views_states_of_both_runs_and_alike_places(explorer, tmp_path):
    sample_id = explorer.ids()[0]
    figure = explorer.figure(sample_id)
    figure.savefig(tmp_path / "place.png")
    shown = texts(figure)
    assert {"north", "east", "south", "west", "one", "two"} <= set(shown)
    assert sum(text.endswith("%") for text in shown) == 10 and sum(text.endswith(" km") for text in shown) == 4
    assert explorer.find(f" {sample_id} ") == sample_id
    with pytest.raises(KitError, match="sample_id: expected a training place with a guess; got 'none'"):
        explorer.find("none")


def test_covering_what_is_plain_changes_nothing_and_leaves_nothing_behind(explorer, home_of, monkeypatch):
    before = sorted(path.name for path in home_of.glob("data/derived/*"))
    figure = explorer.decisive(explorer.ids()[0], parts=2)
    heats = [image.get_array() for axes in figure.axes for image in axes.images if image.get_array().shape == (2, 2)]
    assert len(heats) == 4 and np.abs(heats).max() <= 1
    assert sorted(path.name for path in home_of.glob("data/derived/*")) == before


def menus_of(explorer):
    """The widgets by description, the map and the figure too."""
    parts = [part for row in explorer.widget().children for part in getattr(row, "children", None) or [row]]
    return {getattr(part, "description", "") or type(part).__name__: part for part in parts}


def test_menus_change_the_figure(explorer):
    menus = menus_of(explorer)
    state, order, chosen, typed = (menus[name] for name in ("State", "Order", "Place", "or id"))
    first = chosen.value
    order.value = "smallest error"
    assert chosen.value == explorer.ids(order="smallest error")[0] != first
    state.value = state.options[1]
    assert chosen.value in explorer.ids(state.options[1], "smallest error")
    typed.value = str(first)
    assert chosen.value == first
    before = menus["Image"].value
    menus["Picker"].chosen = 7
    assert chosen.value == explorer.table["sample_id"][7] and menus["Image"].value != before


def test_filters_hide_places_of_the_menu_and_of_the_map(explorer):
    menus, table = menus_of(explorer), explorer.table

    def visible():
        return np.frombuffer(menus["Picker"].visible, np.uint8).astype(bool)

    assert visible().all() and np.frombuffer(menus["Picker"].xy, np.float32).shape == (120,)
    half = float(table["km"].median())
    menus["Error, km"].value = (half, menus["Error, km"].max)
    np.testing.assert_array_equal(visible(), table["km"] >= menus["Error, km"].value[0])
    menus["sure and wrong"].value = True
    assert visible().sum() == len(explorer.ids(least_km=half, sure_and_wrong=True))
    codes = np.frombuffer(menus["Picker"].shade, np.uint8)
    assert (codes == np.where(table["right"], 0, np.where(table["probability"] >= 0.5, 2, 1))).all()
    menus["Colour"].value = "error"
    codes = np.frombuffer(menus["Picker"].shade, np.uint8)
    assert ((codes == 0) == (table["km"] <= 200)).all() and len(menus["Picker"].legend) == 4


def test_what_decides_is_answered_by_the_fold_that_had_not_seen_the_place(explorer, world):
    for sample_id in explorer.ids()[:4]:
        [fold] = explorer._fold("one", sample_id)
        held_out = runs.open_run("one").checkpoints / f"fold_{fold}/oof.npz"
        assert sample_id in Guesses.load(held_out).sample_id


def test_the_encoder_of_the_run_says_what_looks_alike(explorer, world):
    assert Explorer(world, ["one"])._encoder == ("tiny", 0)


def test_many_places_are_opened_and_found_quickly(many):
    began = time.perf_counter()
    menus = menus_of(many)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    assert many.find("65999") == 65999
    [many._line(sample_id) for sample_id in range(1000)]
    many._opinion("many", 65999)
    looked_up = time.perf_counter() - began
    sizes = {name: len(getattr(menus["Picker"], name)) for name in ("xy", "outlines", "ids", "shade", "visible")}
    assert sizes["xy"] == 66_000 * 8 and sum(sizes.values()) < 5e6
    assert opened < 60 and looked_up < 20, (opened, looked_up)  # both a second on an idle machine


@pytest.fixture
def many(world, monkeypatch):
    """66,000 guessed places; only their figure, which reads pictures, is left out."""
    n, rng = 66_000, np.random.default_rng(0)
    idx = world.states["state_idx"].to_numpy()
    state, ids = rng.integers(len(idx), size=n), np.arange(n)
    points = np.column_stack([rng.uniform(30, 48, n), rng.uniform(-120, -75, n)])
    rows = {f"image_{view}": [f"{i}_{view}.jpg" for i in ids] for view in world.views}
    names = world.states["state"].to_numpy()[state]
    columns = {"state": names, "state_idx": idx[state], "latitude": points[:, 0], "longitude": points[:, 1]}
    table = pd.DataFrame({"split": "train", "sample_id": ids} | rows | columns)
    places = replace(world, name="many", table=table, template=None)
    probs = rng.dirichlet(np.ones(len(idx)) / 4, n).astype(np.float32)
    guessed = points[:, None] + rng.normal(0, 4, (n, 8, 2)).clip(-20, 20)
    every = Guesses(ids, idx, probs, guessed, np.full((n, 8), 1 / 8), np.ones(n, bool))
    runs.start("many", {"family": "knn"}, data={"places": places.checksum}, overwrite=True).save_guesses("oof", every)
    explorer = Explorer(places, ["many"], "tiny")
    monkeypatch.setattr(explorer, "figure", lambda sample_id: explorer.nothing)
    explorer.nothing = type("Drawn", (), {"_repr_png_": lambda self: b"png"})()
    return explorer


def test_one_or_two_runs_on_these_places(explorer, world):
    with pytest.raises(KitError, match="runs: expected one or two"):
        Explorer(world, [])
    runs.start("elsewhere", {"family": "knn"}, data={"places": "0"}).save_guesses(
        "oof", runs.open_run("one").guesses("oof")
    )
    with pytest.raises(KitError, match="elsewhere: expected a run on"):
        Explorer(world, ["elsewhere"])


@pytest.fixture
def home_of(world):
    from kitlib.core import paths

    return paths.home()
