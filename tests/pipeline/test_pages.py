"""Pages and the report in a real browser: nothing is cut, tables scroll and are aligned, links lead somewhere."""

from __future__ import annotations

import pandas as pd
import pytest
from browser_helper import chromium
from hostile_helper import HOSTILE
from notebook_helper import code, parameters, prose, write_notebook

from kitlib.core.headline import headline, link
from kitlib.pipeline import report, tables
from kitlib.pipeline.notebook import WIDGET_MIME, without_bars

WIDE = pd.DataFrame({f"mean_km_number_{i}": [1.5, -20.25] for i in range(14)} | {"state": ["Ohio", "a_long_" * 5]})
MEMBERS = pd.DataFrame(
    {"state": ["0.5", "12 %"], "where": ["Ohio", "7"], "n": [1, 20], "mean_km": [1.0, float("nan")]},
    ["arun" * 14, "blend"],
)
# What reaches beyond the right edge of the window with no box around it that scrolls; the count of boxes that do.
CUT = """() => {
  const edge = document.documentElement.clientWidth + 1;
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth;
  const held = e => e && e !== document.body && (scrolls(e) || held(e.parentElement));
  const beyond = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > edge);
  return [beyond.filter(e => !held(e)).map(e => e.outerHTML.slice(0, 80)), [...document.querySelectorAll(".scroll")]
    .filter(e => scrolls(e) && getComputedStyle(e).backgroundImage.includes("gradient")).length];
}"""
# The alignments of header and cells of each column of tables without spans.
ALIGNED = """() => [...document.querySelectorAll("table.dataframe")].flatMap(table => {
  const rows = [...table.rows].map(row => [...row.cells].map(cell => getComputedStyle(cell).textAlign));
  return rows[0].map((_, i) => rows.map(row => row[i]));
})"""


def shows(cell: dict, html: str) -> dict:
    output = {"output_type": "execute_result", "data": {"text/html": html}, "metadata": {}, "execution_count": 1}
    return {**cell, "outputs": [output], "execution_count": 1}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def folder(home):
    """A plan's folder with a page of a notebook, a page of a failed one, and their report."""
    folder, map_page = home / "data/runs/plan", home / "data/runs/best/figures/errors.html"
    csv = home / "submissions/sample.csv"
    for path in (map_page, csv):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<title>here</title>")
    folder.mkdir(parents=True)
    wrote = headline("median", "5 km", [map_page, csv])
    traceback = [f"\x1b[31mKitError\x1b[39m: {'expected ' * 60}" + "/".join(["folder"] * 60)]
    error = {"output_type": "error", "ename": "KitError", "evalue": "x", "traceback": traceback}
    comment = "# " + "words of a comment that go on and on " * 6
    write_notebook(
        folder / "00_eda.ipynb",
        prose("# 00 · Look\n\n*What?*"),
        parameters(f'RUN: str = "{"long-name-" * 20}"  {comment}'),
        shows(code("WIDE"), WIDE._repr_html_()),
        shows(code("link(page)"), link(map_page)._repr_html_()),
        prose("## Members\n\nWith the blend."),
        shows(code("MEMBERS", "report"), MEMBERS.to_html()),
        {**code("train()"), "outputs": [error]},
        shows(code("headline()"), wrote._repr_mimebundle_()["text/html"]),
    )
    report.write_page(folder / "00_eda.ipynb")
    step = {
        "name": "00_eda", "title": "Look", "question": "What?", "status": "done", "time": "2 s", "page": "00_eda.html",
        "parameters": {"RUN": "x" * 200}, "headline": {"label": "median", "value": "5 km", "wrote": list(wrote.wrote)},
    }  # fmt: skip
    report.write(folder, {"plan": "demo", "description": "Two.", "versions": {"numpy": "2.4"}, "steps": [step]})
    return folder


def test_pages_and_reports_cut_nothing_align_their_tables_and_lead_to_files(folder, browser):
    for width, scheme in ((1280, "light"), (400, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        for name, scrolling in (("00_eda.html", 1), ("report.html", int(width == 400))):
            page.goto((folder / name).as_uri())
            cut, boxes = page.evaluate(CUT)
            assert cut == [] and boxes >= scrolling, (name, width)
            columns = page.evaluate(ALIGNED)
            assert columns and all(len(set(column)) == 1 for column in columns), columns
            assert name == "00_eda.html" or [column[0] for column in columns] == [
                "left",
                "right",
                "left",
                "right",
                "right",
            ]
            hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])")
            files = {folder.parent / "best/figures/errors.html", folder.parents[2] / "submissions/sample.csv"}
            assert {path.as_uri() for path in files} <= set(hrefs)
        assert all(url.startswith("file:") for url in asked) and len(asked) == 2
        page.locator("text=Map of errors").click()
        assert page.title() == "here"
        page.close()


def test_columns_of_numbers_are_marked_counted_from_the_right():
    table = tables.tidy(WIDE.to_html())
    assert table.count('<td data-number="">') == 28 and table.count("<th data-number") == 17  # the index as well
    assert "mean_<wbr>km_<wbr>number_<wbr>3</th>" in table and "mean km number 3" in tables.tidy(WIDE.to_html(), True)
    spans = pd.DataFrame({("km", "a"): [1, 2], ("km", "b"): [3, 4], ("x", "c"): ["p", "q"]}, [["s", "s"], ["u", "v"]])
    marked = tables.tidy(spans.to_html())
    assert marked.count('<td data-number="">') == 4 and '<th colspan="2" halign="left">km</th>' in marked
    assert "<style" not in tables.tidy(WIDE._repr_html_())


def test_texts_of_data_survive_the_alignment():
    table = pd.DataFrame({"state": HOSTILE, "km": 1.0}, index=HOSTILE)
    before, after = table.to_html(), tables.tidy(table.to_html())
    assert (
        after.replace(' data-number=""', "").replace("<wbr>", "") == f'<div class="scroll" tabindex="0">{before}</div>'
    )


def test_ended_bars_leave_an_executed_notebook_and_widgets_with_a_state_stay():
    def widget(name: str, text: str) -> dict:
        return {"output_type": "display_data", "metadata": {}, "data": {WIDGET_MIME: {"model_id": name},
                "text/plain": [text]}}  # fmt: skip

    def log(text: str) -> dict:
        return {"output_type": "stream", "name": "stderr", "text": [text]}

    bar, dead, live = widget("a", "packing:   0%|   | 0/4"), widget("b", "VBox()"), widget("c", "VBox()")
    cells = [{"outputs": [log("begin\n"), bar, log("end\n")]}, {"outputs": [dead]}, {"source": "prose"}]
    states = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}, "c": {}}}}
    executed = {"metadata": {"widgets": states}, "cells": [*cells, {"outputs": [live]}]}
    without_bars(executed)
    whole = {**log(""), "text": "begin\nend\n"}
    assert [cell.get("outputs") for cell in executed["cells"]] == [[whole], [], None, [live]]
    assert executed["metadata"]["widgets"] == states
    executed["cells"].pop()
    without_bars(executed)
    assert "widgets" not in executed["metadata"]
