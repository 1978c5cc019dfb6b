"""One place at a time: order and choice of places, the figure, which parts decide, the menus, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from kitlib.core.errors import KitError
from kitlib.evaluation import runs
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


def test_menus_change_the_figure(explorer):
    menus = explorer.widget()
    state, order = menus.children[0].children
    chosen, typed = menus.children[1].children
    first = chosen.value
    order.value = "smallest error"
    assert chosen.value == explorer.ids(order="smallest error")[0] != first
    state.value = state.options[1]
    assert chosen.value in explorer.ids(state.options[1], "smallest error")
    typed.value = str(first)
    assert chosen.value == first


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
