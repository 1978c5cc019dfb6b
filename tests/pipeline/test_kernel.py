"""The kernel a notebook gets, and what is taken out of an executed notebook."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path

import pytest
from notebook_helper import code, headline, parameters, prose, write_notebook

from kitlib.core import paths
from kitlib.pipeline import kernel
from kitlib.pipeline.notebook import without_machine


@pytest.mark.slow
def test_a_notebook_runs_in_this_very_python_and_its_folders_are_taken_out(home, monkeypatch, capfd):
    misleading = home / "jupyter/kernels/python3"
    misleading.mkdir(parents=True)
    (misleading / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(home / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    source = write_notebook(
        home / "00_where.ipynb",
        prose("# 00 · Where"),
        parameters("N: int = 1  # a number"),
        prose("## Which Python\n\nLook."),
        code(
            "import os, sys, logging\nfrom kitlib.core import paths\nprint(paths.home() / 'x')\n"
            "logging.getLogger('kitlib.any').info('said %d', N)"
        ),
        headline("python", "str([sys.executable == os.environ['EXPECTED'], os.environ['OMP_NUM_THREADS'], N])"),
    )
    monkeypatch.setenv("EXPECTED", sys.executable)
    outcome = kernel.execute(source, home / "{x} out.ipynb", {"N": 7})
    assert (outcome.status, outcome.cell, outcome.headline["value"]) == ("done", 4, "[True, '3', 7]")
    assert "said 7" in capfd.readouterr().err
    written = (home / "{x} out.ipynb").read_text()
    assert str(home) not in written and "./x" in written
    assert "said 7" in written
    assert json.loads(source.read_text())["cells"][3]["outputs"] == []


@pytest.mark.slow
def test_what_is_the_user_s_to_mend_is_a_sentence_and_other_errors_are_not(home):
    raised = {
        "OSError(28, 'x', '/a/b')": (True, "b: no space or no inodes are left on the disk"),
        "kitlib.core.errors.Damaged('a.npz: cut')": (True, "a.npz: cut"),
        "ZeroDivisionError('oh')": (False, "ZeroDivisionError: oh"),
    }
    for error, expected in raised.items():
        source = write_notebook(
            home / "00_x.ipynb",
            prose("# 00"),
            parameters("N: int = 1"),
            code(f"import kitlib.core.errors\nraise {error}"),
        )
        outcome = kernel.execute(source, home / "out.ipynb", {})
        assert (outcome.status, outcome.user_error, outcome.error) == ("failed", *expected)


def test_without_machine(home):
    text = f"{home}/a.csv, '{paths.checkout()}/notebooks/x', {paths.package_dir()}/geo.py, {Path.home()}/b"
    assert without_machine(text) == "./a.csv, './notebooks/x', kitlib/geo.py, ~/b"
    assert without_machine("data/runs/a/b.npz and https://example.org") == "data/runs/a/b.npz and https://example.org"


def test_what_was_given_is_taken_out_of_texts(home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("own & only") / "inner"
    (outside / "us").mkdir(parents=True)
    (outside / "m.pth").touch()
    assert paths.portable("data", f"{outside}/us") == "us"
    paths.portable("encoder", f"timm:x@{outside}/m.pth")
    text = f"DATA = '{outside}/us', \x1b[32m{outside}/us/a.csv, timm:x@{outside}/m.pth, {outside}, ./inner/us"
    expected = "DATA = 'us', \x1b[32mus/a.csv, timm:x@m.pth, …, ./inner/us"
    assert without_machine(text) == expected
    assert without_machine(html.escape(text)) == html.escape(expected)


def test_no_part_of_an_executed_notebook_names_what_was_given(home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("confidential")
    (outside / "us").mkdir()
    paths.portable("data", f"{outside}/us")
    injected = code(f'DATA = "{outside}/us"\n', "injected-parameters")
    says = {"output_type": "stream", "name": "stderr", "text": [f"read {outside}/us\n"]}
    table = {"output_type": "display_data", "metadata": {}, "data": {"text/html": f"<td>{outside}/us</td>"}}
    failed = {"output_type": "error", "ename": "OSError", "evalue": f"{outside}/x", "traceback": [f"{outside}/us"]}
    path = write_notebook(home / "run.ipynb", injected, {**code("read()"), "outputs": [says, table, failed]})
    content = json.loads(path.read_text())
    content["metadata"]["papermill"] = {"parameters": {"DATA": f"{outside}/us"}, "input_path": "x", "output_path": "y"}
    path.write_text(json.dumps(content))
    kernel._tidy(path)
    text = path.read_text()
    assert "confidential" not in text and "input_path" not in text and "<td>us</td>" in text


@pytest.mark.slow
def test_a_cell_has_one_line_for_all_its_bars_and_nothing_on_stderr(home):
    """Twelve dead widgets and pink lines stood in an executed notebook."""
    source = write_notebook(
        home / "00_bars.ipynb",
        prose("# 00 · Bars"),
        parameters("N: int = 3"),
        code(
            "import logging\nfrom kitlib.core import progress\nfor part in ('first', 'second'):\n"
            "    for _ in progress.Bar(range(N), desc=part, unit='step', leave=False):\n        pass\n"
            "logging.getLogger('kitlib.any').info('all %d', N)\nprogress.end('both done')"
        ),
        code("for _ in progress.Bar(range(N), desc='third'):\n    pass"),
        code("progress.end('no bar, no line')"),
    )
    assert kernel.execute(source, home / "out.ipynb", {}).status == "done"
    cells = json.loads((home / "out.ipynb").read_text())["cells"][2:]
    first, second, third = (cell["outputs"] for cell in cells)
    assert [output["output_type"] for output in first] == ["display_data", "stream"]
    assert first[0]["data"] == {"text/plain": "both done"} or "".join(first[0]["data"]["text/plain"]) == "both done"
    assert first[1]["name"] == "stdout" and "".join(first[1]["text"]).endswith("all 3\n")
    assert len(second) == 1 and "third: 100%" in "".join(second[0]["data"]["text/plain"]) and third == []


@pytest.mark.slow
def test_an_interrupt_is_one_sentence(home):
    source = write_notebook(
        home / "00_stop.ipynb",
        prose("# 00"),
        parameters("N: int = 1"),
        code("from kitlib.core.errors import Interrupted\nraise Interrupted('stopped fold 0 heads at step 26')"),
    )
    kernel.execute(source, home / "out.ipynb", {})
    outputs = [o for cell in json.loads((home / "out.ipynb").read_text())["cells"] for o in cell.get("outputs", [])]
    error = next(output for output in outputs if output["output_type"] == "error")
    assert error["traceback"] == ["stopped fold 0 heads at step 26"]
