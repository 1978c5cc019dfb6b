"""HTML pages: one per executed notebook, with folded code, and the report of a plan that links them.

The pages load no external scripts or styles, and name no folder of this machine. The report shows the figures and
tables of cells tagged `report`; of a notebook without tagged figures it shows the first ones.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from nbconvert import HTMLExporter

from kitlib.core import storage
from kitlib.core.headline import HEADLINE_MIME, address, links_from
from kitlib.pipeline import tables
from kitlib.pipeline.notebook import WIDGET_MIME, read_notebook

TEMPLATES = Path(__file__).parent / "templates"
UNTAGGED_FIGURES = 2  # of a notebook without tagged ones
OPENED = {  # files of headlines to which the report leads, by the ends of their names
    "submissions/[^/]+[.]csv": "The submission",
    "figures/errors[.]html": "Map of errors to zoom into",
}
WIDE = 2.1  # width to height of a figure that gets a row of its own


@dataclass(frozen=True)
class Shown:
    """An output in the report: a figure (base64 PNG) or a table (HTML), with the prose before it."""

    title: str
    caption: str
    link: str
    png: str = ""
    html: str = ""

    @property
    def wide(self) -> bool:
        """Whether the figure is much wider than high."""
        width, height = struct.unpack(">II", base64.b64decode(self.png[:64])[16:24])  # PNG's first chunk
        return width > WIDE * height


def write_page(notebook: Path) -> Path:
    """Write the HTML page of an executed notebook beside it."""
    exporter = HTMLExporter(raw_template=(TEMPLATES / "notebook.html.j2").read_text())
    nb = nbformat.read(notebook, as_version=4)
    heading = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            heading = _heading(cell.source) or heading
            continue
        cell.metadata["alt"] = heading  # of the cell's pictures
        for output in cell.outputs:
            data = output.get("data", {})
            if data.pop(WIDGET_MIME, None) is not None:  # its scripts would come from elsewhere
                data.pop("text/plain", None)
                data["text/html"] = "<p class='soft'>This is interactive in JupyterLab.</p>"
            elif "text/html" in data:
                data["text/html"] = tables.tidy(links_from("".join(data["text/html"]), notebook.parent))
    resources = {"title": read_notebook(notebook).title, "css": _css()}
    page, _ = exporter.from_notebook_node(nb, resources)
    return _write(notebook.with_suffix(".html"), page)


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Write report.html for a plan's state, with figures and tables of the executed notebooks in `folder`."""
    shown = [
        item
        for step in state["steps"]
        if "page" in step
        for item in gather((folder / step["page"]).with_suffix(".ipynb"))
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        **state,
        css=_css(),
        links=list(_links(folder, state["steps"])),
        figures=[item for item in shown if item.png],
        tables=[item for item in shown if item.html],
    )
    return _write(folder / "report.html", page)


def _links(folder: Path, steps: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names and addresses of what a reader of the report opens next."""
    for step in steps:
        if step["name"].startswith("00_") and "page" in step:
            yield "Data check", quote(step["page"])
        for path in step["headline"]["wrote"]:
            for end, name in OPENED.items():
                if re.search(f"(?:^|/){end}$", path) and (href := address(path, folder)):
                    yield f"{name}, {Path(path).name}" if path.endswith(".csv") else name, href


def gather(notebook: Path) -> list[Shown]:
    """The figures and tables of an executed notebook for the report, each linked to its place in the page."""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = list(_outputs(cells, notebook.with_suffix(".html").name))
    chosen = [item for tagged, item in outputs if tagged]
    if not any(item.png for item in chosen):
        chosen += [item for _, item in outputs if item.png][:UNTAGGED_FIGURES]
    return chosen


def _outputs(cells: list[dict[str, Any]], page: str) -> Iterator[tuple[bool, Shown]]:
    """Yield each figure and table of a notebook, and whether its cell is tagged."""
    title = caption = ""
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            title = _heading(source) or title
            prose = re.sub(r"^#+.*$", "", source, flags=re.MULTILINE).strip()
            caption = _plain(prose.split("\n\n")[0])
            continue
        tagged = "report" in cell["metadata"].get("tags", [])
        link = f"{page}#cell-id={cell.get('id', '')}"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                yield tagged, Shown(title, caption, link, png="".join(data["image/png"]).replace("\n", ""))
            elif "<table" in (table := "".join(data.get("text/html", ""))) and HEADLINE_MIME not in data:
                yield tagged, Shown(title, caption, link, html=tables.tidy(table, words=True))


def _heading(markdown: str) -> str:
    """The last heading in a markdown text, without its number, or ""."""
    headings = re.findall(r"^#+\s*(?:\d+ · )?(.+)$", markdown, re.MULTILINE)
    return _plain(headings[-1]) if headings else ""


def _plain(markdown: str) -> str:
    """Convert markdown to plain text: drop emphasis, code marks and link targets.

    >>> _plain("Where *are* the [places](x.html)?")
    'Where are the places?'
    """
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).split())


def _css() -> str:
    return (TEMPLATES / "page.css").read_text()


def _write(path: Path, page: str) -> Path:
    with storage.atomic_write(path) as beside:
        beside.write_text(page)
    return path
