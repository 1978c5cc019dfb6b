"""Pages and the report: what is carried over, how it is captioned, and that nothing comes from elsewhere."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import nbformat
import pandas as pd
import pytest
from hostile_helper import HOSTILE
from notebook_helper import code, parameters, prose, write_notebook

from kitlib.core.headline import Headline
from kitlib.data import places
from kitlib.pipeline import report


def png(width: int, height: int) -> str:
    """A white picture, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


def shows(cell: dict, **data: str) -> dict:
    """A code cell with one output."""
    bundle = {
        {"png": "image/png", "html": "text/html", "text": "text/plain"}[kind]: said for kind, said in data.items()
    }
    output = {"output_type": "execute_result", "data": bundle, "metadata": {}, "execution_count": 1}
    return {**cell, "outputs": [output], "execution_count": 1}


@pytest.fixture
def executed(tmp_path):
    """An executed notebook with three figures, of which one is wide, a table, and a log."""
    log = {"output_type": "stream", "name": "stderr", "text": "3 places read\n"}
    return write_notebook(
        tmp_path / "00_look.ipynb",
        prose("# 00 · Looking\n\n*What is there?*"),
        parameters("N: int = 1  # places"),
        prose("## Where they *are*\n\nLook for [clusters](x.html).\nThey `matter`.\n\nMore prose."),
        shows(code("figures.places(N)"), png=png(40, 30)),
        prose("Look at the trend."),
        shows(code("figures.trend(N)"), png=png(90, 30)),
        shows(code("figures.more(N)"), png=png(9, 9)),
        prose("## Scores\n\nHigher is better."),
        shows(code("pd.DataFrame()", "report"), html="<table><tr><td>0.71</td></tr></table>", text="0.71"),
        {**code("read()"), "outputs": [log]},
    )


def test_figures_come_with_heading_and_prose_and_tables_when_tagged(executed):
    table, first, second = report.gather(executed)
    assert "0.71" in table.html and table.title == "Scores" and table.caption == "Higher is better."
    assert first.title == "Where they are" and first.caption == "Look for clusters. They matter."
    assert first.link == "00_look.html#cell-id=cell-3"
    assert second.caption == "Look at the trend." and (first.wide, second.wide) == (False, True)


def test_tagged_figures_replace_the_first_ones(executed):
    nb = nbformat.read(executed, as_version=4)
    nb.cells[6].metadata["tags"] = ["report"]
    nbformat.write(nb, executed)
    assert [item.link for item in report.gather(executed) if item.png] == ["00_look.html#cell-id=cell-6"]


def test_a_page_folds_code_and_logs_and_needs_nothing_from_elsewhere(executed):
    page = report.write_page(executed).read_text()
    assert "<title>Looking</title>" in page and 'href="report.html"' in page
    assert page.count('<details class="code"') == 6 and page.count('<details class="log"') == 1
    assert page.count('<details class="code" open') == 1  # the parameters
    assert 'id="cell-id=cell-3"' in page
    assert 'alt="Where they are"' in page
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//|@import|url\(", page)


def test_the_report_links_every_step_and_shows_its_headline(executed):
    folder = executed.parent
    step = {
        "name": "00_look", "title": "Looking <b>", "question": "What is there?", "status": "done", "time": "2.0 s",
        "parameters": {"N": 3}, "headline": {"label": "places", "value": "1,250", "wrote": []}, "page": "00_look.html",
    }  # fmt: skip
    failed = {
        **step, "name": "01_fail", "page": "01_fail.failed.html", "status": "failed", "error": "DATA is <nowhere>",
        "headline": {"label": "", "value": "", "wrote": []},
    }  # fmt: skip
    write_notebook(folder / "01_fail.failed.ipynb", prose("# 01 · Fail"), parameters(""))
    unreached = {"name": "02_next", "title": "Next", "question": "", "status": "not run", "parameters": {}}
    unreached["headline"] = failed["headline"]
    state = {"plan": "demo", "description": "Two & more.", "versions": {"numpy": "2.4"}}
    page = report.write(folder, {**state, "steps": [step, failed, unreached]}).read_text()
    assert 'href="00_look.html">Looking &lt;b&gt;</a>' in page and "Two &amp; more." in page
    assert "<b>1,250</b>" in page and 'href="01_fail.failed.html"' in page
    assert "DATA is &lt;nowhere&gt;" in page and 'class="status not run">not run' in page
    assert page.count("<figure") == 2 and page.count('class="wide"') == 1
    assert ">0.71</td>" in page and "N: 3" in page
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//|@import|url\(", page)


def test_texts_of_data_are_texts_in_pages_and_reports(tmp_path):
    table = pd.DataFrame({"state": HOSTILE, "km": 1.0}, index=HOSTILE).groupby("state").sum()
    said = Headline(HOSTILE[8], HOSTILE[7], tuple(HOSTILE))
    log = {"output_type": "stream", "name": "stderr", "text": "\n".join(HOSTILE)}
    injected = code("".join(f"RUN = {text!r}\n" for text in HOSTILE), "injected-parameters")
    path = write_notebook(
        tmp_path / "00_look.ipynb",
        prose("# 00 · Look </title>"),
        parameters('RUN: str = ""  # a name'),
        {**injected, "outputs": [log]},
        shows(code("table", "report"), html=table.to_html(), text=str(table)),
        shows(code("headline()"), html=said._repr_mimebundle_()["text/html"], text="x"),
    )
    step = {
        "name": HOSTILE[8], "title": HOSTILE[12], "question": HOSTILE[8], "status": "done", "time": "2.0 s",
        "page": "00_look.html", "error": HOSTILE[8], "parameters": dict(zip(HOSTILE, HOSTILE, strict=True)),
        "headline": {"label": HOSTILE[8], "value": HOSTILE[12], "wrote": HOSTILE},
    }  # fmt: skip
    state = {"plan": HOSTILE[8], "description": HOSTILE[0], "versions": {"numpy": HOSTILE[8]}, "steps": [step]}
    page, overview = report.write_page(path).read_text(), report.write(tmp_path, state).read_text()
    for text in (page, overview):
        assert "<script" not in text and "<img src=x" not in text and "49" not in re.sub(r"\d{3,}", "", text)
        assert "{{7*7}}" in text and "{% if %}" in text and r"$\foo$" in text and "${alert(1)}" in text
    assert places and "mathjax_ignore" in overview  # its module sets that for all tables
    assert "&lt;/script&gt;&lt;script&gt;" in overview and "<title>Look &lt;/title&gt;</title>" in page
