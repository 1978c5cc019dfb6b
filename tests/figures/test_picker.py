"""The map to click on, in a real Chromium: 66,000 places open, what is filtered is hidden, and a click chooses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from browser_helper import chromium
from hostile_helper import HOSTILE

pytest.importorskip("anywidget")

from kitlib.figures import picker as module
from kitlib.figures.picker import Picker

MODEL = """
const data = %s, listeners = {};
for (const name of ["xy", "outlines", "shade", "visible"])
  data[name] = new DataView(Uint8Array.from(atob(data[name]), letter => letter.charCodeAt(0)).buffer);
window.model = {
  get: name => data[name], save_changes() {}, on: (name, f) => (listeners[name] = [...(listeners[name] || []), f]),
  set(name, value) { data[name] = value; (listeners[`change:${name}`] || []).forEach(f => f()); },
};
render({ model: window.model, el: document.getElementById("here") });
"""


def page_of(picker, folder):
    """A page with the widget's script and a model as Jupyter's."""
    arrays = {name: base64.b64encode(getattr(picker, name)).decode() for name in ("xy", "outlines", "shade", "visible")}
    plain = {name: getattr(picker, name) for name in ("ids", "palette", "legend", "stretch", "chosen")}
    script = (Path(module.__file__).parent / "picker.js").read_text("utf-8").replace("export default", "void")
    model = MODEL % json.dumps(arrays | plain).replace("<", "\\u003c")
    text = f'<meta charset="utf-8"><div id="here"></div><script type="module">{script}{model}</script>'
    (folder / "page.html").write_text(text, encoding="utf-8")
    return f"file://{folder / 'page.html'}"


def test_a_click_chooses_among_66000_places(tmp_path):
    n, rng = 66_000, np.random.default_rng(0)
    points = np.column_stack([rng.uniform(30, 48, n), rng.uniform(-120, -75, n)])
    points[7] = [24.0, -98.0]  # alone at the lower edge
    picker = Picker.of(points, [f"{i}: {HOSTILE[i % len(HOSTILE)]}" for i in range(n)])
    picker.paint(np.arange(n) % 2, ["right", HOSTILE[8]], ["#0369a1", "#b91c1c"])
    assert len(picker.ids.split("\n")) == n
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 800, "height": 500})
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_of(picker, tmp_path))
        page.wait_for_selector("canvas")
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = page.locator("canvas").bounding_box()
        xy = np.frombuffer(picker.xy, np.float32).reshape(-1, 2)
        (left, bottom), (right, top) = xy.min(0), xy.max(0)
        scale = min(box["width"] / (right - left), box["height"] / (top - bottom)) / 1.1
        x, y = (xy[7] - [(left + right) / 2, (bottom + top) / 2]) * [scale, -scale]
        page.mouse.move(box["x"] + box["width"] / 2 + float(x), box["y"] + box["height"] / 2 + float(y))
        assert page.locator("#here > div").first.inner_text().startswith("7:")
        page.mouse.down()
        page.mouse.up()
        assert page.evaluate("window.model.get('chosen')") == 7
        page.evaluate(f"window.model.set('visible', new DataView(new Uint8Array({n}).buffer))")
        assert "right (0)" in page.locator("#here").inner_text()
        page.mouse.wheel(0, -200)
        assert not problems and page.evaluate("window.broken") is None


def test_lines_do_not_cross_the_map_and_the_world_has_land():
    fiji = Picker.of([[-17.0, 178.0], [-17.0, -179.0]], ["a", "b"])
    xy, lines = (np.frombuffer(getattr(fiji, name), np.float32).reshape(-1, 2) for name in ("xy", "outlines"))
    assert abs(xy[0, 0] - xy[1, 0]) == pytest.approx(3) and len(lines) > 1000
    assert np.nanmax(np.abs(np.diff(lines[:, 0]))) <= 180
