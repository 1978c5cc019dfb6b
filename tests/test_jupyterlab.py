"""Notebooks 10, 21 and 40 in a real JupyterLab: run all, interrupt, choose, upload; git stays clean.

Screenshots lie in pytest's temporary folder (`--basetemp`), to be looked at.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser_helper import chromium
from jupyterlab_helper import LONG, Notebook, copy_kit, git, make_lab

NEEDED = ("jupyterlab", "torch")  # not imported here, which takes seconds
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"not all of {NEEDED} are installed"),
]
TINY = {"ENCODER": "tiny", "PLACES_PER_CELL": 8, "HEADS_EPOCHS": 10, "FINETUNE_EPOCHS": 1, "FINETUNE_BLOCKS": -1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """The folder of the screenshots."""
    return tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module")
def kit(tmp_path_factory, small_sample) -> Path:
    """A fresh checkout with the small drawn competition under data/raw."""
    if not shutil.which("git") or not shutil.which("make"):
        pytest.skip("git and make are needed")
    folder = copy_kit(tmp_path_factory.mktemp("kit"))
    shutil.copytree(small_sample, folder / "data/raw/small")
    return folder


@pytest.fixture(scope="module")
def lab(kit, pictures, tmp_path_factory):
    """JupyterLab and a browser; `lab.open(name, ...)` opens a notebook with some parameters set."""
    with chromium() as browser, make_lab(kit, tmp_path_factory.mktemp("jupyter")) as lab:

        def open_notebook(name: str, **parameters: Any) -> Notebook:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(LONG * 1000)
            return Notebook(page, lab.address, kit / "data/notebooks" / f"{name}.ipynb", DATA="small", **parameters)

        yield SimpleNamespace(open=open_notebook, kernel_seconds=lab.kernel_seconds)


@pytest.fixture(scope="module")
def trained(lab, pictures) -> SimpleNamespace:
    """Notebook 10 with tiny settings: run all, interrupted while it trains, run all again to the end."""
    notebook = lab.open("10_train_multiview", RUN="mine", FOLDS=2, **TINY)
    notebook.run_all(finish=False)
    training = notebook.cell("run = multiview.train")
    before = notebook.cell("config = multiview.Config").locator(".jp-InputPrompt", has_text=re.compile(r"\d"))
    before.wait_for(state="attached")
    begun = lab.kernel_seconds()
    output = training.locator(".jp-OutputArea-output")
    output.first.wait_for(state="attached")
    seconds = lab.kernel_seconds() - begun
    output.filter(has_text=re.compile("heads|step")).first.wait_for(state="attached")
    notebook.picture(pictures / "10-training.png", "run = multiview.train")
    notebook.interrupt()
    notebook.finish()
    notebook.picture(pictures / "10-interrupted.png", "run = multiview.train")
    interrupted = notebook.outputs("error")
    notebook.run_all()
    for number, words in enumerate(("config = multiview.Config", "run = multiview.train", "history =", "logistic =")):
        notebook.picture(pictures / f"10-done-{number}.png", words)
    notebook.save()
    return SimpleNamespace(seconds=seconds, interrupted=interrupted, notebook=notebook)


def test_training_shows_something_soon(trained):
    assert trained.seconds < 5, "of the kernel's processor time"


def test_an_interrupted_training_says_one_sentence(trained):
    [error] = trained.interrupted
    assert len(error["traceback"]) == 1 and "\n" not in error["traceback"][0]
    assert re.search("goes on", error["traceback"][0])


def test_run_again_it_goes_on_to_the_end(trained, kit):
    [error] = trained.interrupted
    assert "Interrupt" in error["ename"]
    assert trained.notebook.outputs("error") == []
    assert all(cell["execution_count"] for cell in trained.notebook.cells())
    assert json.loads((kit / "data/runs/mine/metrics.json").read_text())["oof"]["n"] == 60
    assert trained.notebook.page.locator(".jp-OutputArea-output img").count() == 3


def test_nothing_of_the_training_is_red(trained):
    [cell] = [cell for cell in trained.notebook.cells() if "multiview.train(" in cell["source"]]
    assert [output for output in cell["outputs"] if output.get("name") == "stderr"] == []


def test_explore_changes_the_picture_with_each_choice(lab, trained, kit, pictures):
    notebook = lab.open("21_explore", RUN="mine", ENCODER="tiny", PARTS=2)
    notebook.run_all()
    assert notebook.outputs("error") == notebook.outputs("stderr") == []
    widget = notebook.cell("explorer.widget(")
    picture, seen = widget.locator("img").first, []

    def changed() -> None:
        picture.wait_for()
        drawn = "v[0].complete && v[0].naturalWidth > 0 && !v[1].includes(v[0].src)"
        notebook.wait(drawn, picture.element_handle(), seen)
        seen.append(picture.evaluate("picture => picture.src"))

    def menu(label: str) -> Any:
        own = notebook.page.locator(".widget-label", has_text=re.compile(f"^{label}$"))
        return widget.locator(".widget-dropdown", has=own).locator("select")

    changed()
    notebook.picture(pictures / "21-first.png", "explorer.widget(")
    menu("Order").select_option("smallest error")
    changed()
    state = menu("State").locator("option").nth(3).inner_text()
    menu("State").select_option(state)
    changed()
    offered = [text.replace("\xa0", " ") for text in menu("Place").locator("option").all_inner_texts()]
    assert len(offered) > 1 and all(f": {state}, guess " in text for text in offered)
    menu("Place").select_option(index=1)
    changed()
    notebook.picture(pictures / "21-chosen.png", "explorer.widget(")
    if (kit / "kitlib/figures/picker.py").is_file():  # a map to click on
        canvas = widget.locator("canvas")
        place, spot = place_under_the_mouse(canvas, other_than=offered[1])
        canvas.click(position=spot)
        changed()
        assert menu("Place").locator("option:checked").inner_text().replace("\xa0", " ").startswith(place)
        notebook.picture(pictures / "21-clicked.png", "explorer.widget(")
    typed = widget.locator("input[type=text]").first
    typed.fill("none")
    typed.press("Enter")
    widget.get_by_text("sample_id: expected a training place with a guess; got 'none'").wait_for()
    notebook.picture(pictures / "21-refused.png", "explorer.widget(")
    assert notebook.outputs("error") == notebook.outputs("stderr") == []


def place_under_the_mouse(canvas: Any, other_than: str) -> tuple[str, dict[str, float]]:
    """A place's "id: state" as the map names it under the mouse, and where that is on the canvas."""
    tip, box = canvas.locator("+ div"), canvas.bounding_box()
    for x, y in product(range(10, int(box["width"]), 20), range(10, int(box["height"]), 20)):
        canvas.hover(position={"x": x, "y": y})
        if tip.is_visible() and not other_than.startswith(tip.inner_text()):
            return tip.inner_text(), {"x": x, "y": y}
    raise AssertionError("no place on the map has a name under the mouse")


def test_locate_answers_an_uploaded_picture_and_refuses_a_text(lab, trained, kit, pictures, tmp_path):
    notebook = lab.open("40_locate", RUN="mine")
    notebook.run_all()
    assert notebook.outputs("error") == notebook.outputs("stderr") == []
    for number, words in enumerate(("answer = locate.ask", "surest =", "figures.maps.places")):
        notebook.picture(pictures / f"40-{number}.png", words)
    widget = notebook.cell("locate.upload")

    def upload(file: Path) -> None:
        with notebook.page.expect_file_chooser() as chooser:
            widget.locator(".widget-upload").first.click()
        chooser.value.set_files(file)

    photo = tmp_path / "holiday.jpg"
    shutil.copy(next((kit / "data/raw/small/kaggle_dataset/test_images").glob("*_north.jpg")), photo)
    upload(photo)
    table = widget.locator("table")
    table.wait_for()
    assert "holiday" in table.inner_text()
    notebook.picture(pictures / "40-uploaded.png", "locate.upload")
    text = tmp_path / "text.jpg"
    text.write_text("not a picture\n")
    upload(text)
    table.wait_for(state="detached")
    notebook.picture(pictures / "40-refused.png", "locate.upload")
    said = widget.locator(".widget-html-content").last.inner_text()
    assert "text.jpg" in said and "\n" not in said.strip() and "Traceback" not in said
    assert notebook.outputs("error") == notebook.outputs("stderr") == []
    notebook.save()
    assert any(cell["outputs"] for cell in json.loads(notebook.copy.read_text())["cells"] if "outputs" in cell)
    assert git(kit, "status", "--porcelain") == ""
