"""The map of errors in a real browser without a network: outlines, dots, a pop-up with its pictures, no requests."""

from __future__ import annotations

import io

import numpy as np
import pytest
from browser_helper import chromium
from figure_helper import NAMES, POINTS
from hostile_helper import HOSTILE
from PIL import Image

from kitlib import geo
from kitlib.figures import error_page

N = len(POINTS)
WIDTHS = {"wide": (1280, 800), "narrow": (400, 700)}


def jpeg(colour: str) -> bytes:
    with io.BytesIO() as data:
        Image.new("RGB", (64, 48), colour).save(data, "JPEG")
        return data.getvalue()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_of_errors(tmp_path_factory):
    guess = np.roll(POINTS, 1, 0)
    km = geo.distance_km(POINTS, guess)
    worst = int(np.argmax(km))
    labels = [f"{name}\n{HOSTILE[8]}" for name in NAMES]
    path = tmp_path_factory.mktemp("map") / "errors.html"
    return error_page.save_error_page(path, POINTS, guess, km, labels, {worst: [jpeg("red"), jpeg("blue")]}, "a run")


@pytest.fixture(params=WIDTHS)
def opened(request, browser, page_of_errors):
    """The page at one width, offline; at the end nothing may have failed on it or been asked of the net."""
    width, height = WIDTHS[request.param]
    scheme = "dark" if request.param == "narrow" else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_offline(True)
    page, wrong, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_of_errors.as_uri())
    yield page
    context.close()
    assert not wrong and [url for url in asked if not url.startswith("data:")] == [page_of_errors.as_uri()]


INK = """() => [...document.querySelectorAll("canvas")].map(canvas => {
  const small = document.createElement("canvas"), pen = small.getContext("2d");
  small.width = small.height = 200;
  pen.drawImage(canvas, 0, 0, 200, 200);
  const pixels = pen.getImageData(0, 0, 200, 200).data;
  return pixels.filter((value, i) => i % 4 === 3 && value > 0).length / 200 / 200;
})"""

IN_VIEW = """() => {
  const box = [...document.querySelectorAll(".leaflet-popup-content")].pop().getBoundingClientRect();
  return box.left >= 0 && box.right <= innerWidth;
}"""


def position(page, place: int) -> list[float]:
    return page.evaluate(
        "i => { const p = map.latLngToContainerPoint([page.latitude[i], page.longitude[i]]); return [p.x, p.y]; }",
        place,
    )


def test_the_map_draws_outlines_and_dots_and_opens_a_place_with_its_pictures(opened):
    shares = opened.evaluate(INK)
    assert len(shares) == 2 and max(shares) > 0.1 and min(shares) > 0.0002  # the ground; dots and lines
    assert opened.evaluate("document.querySelectorAll('path, .leaflet-tile').length") == 0
    left, top = position(opened, N - 1)
    opened.mouse.click(left, top)
    popup = opened.locator(".leaflet-popup-content").last  # an earlier one may still fade
    assert popup.inner_text().endswith(HOSTILE[8])
    assert opened.evaluate(
        "Promise.all([...document.querySelectorAll('.pictures img')].map(i => i.decode().then(_ => i.naturalWidth)))"
    ) == [64, 64]
    opened.wait_for_function(IN_VIEW)  # the map moves until the pop-up is in view
    opened.evaluate("() => void map.closePopup()")
    opened.evaluate("() => void map.setView([page.latitude[0], page.longitude[0]], 8, { animate: false })")
    assert min(opened.evaluate(INK)) > 0  # the dots are there after a move as well
    opened.mouse.click(*position(opened, 0))
    assert "of 1 of 8 places" in popup.inner_text()
    assert opened.evaluate("window.broken") is None


def test_the_controls_fit_into_the_window_and_do_not_cover_each_other(opened):
    boxes = opened.evaluate("""() => [".leaflet-control-zoom", ".leaflet-control-layers", ".legend",
      ".leaflet-control-attribution"].map(name => document.querySelector(name).getBoundingClientRect())
      .map(box => [box.left, box.top, box.right, box.bottom])""")
    size = opened.viewport_size
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= size["width"] and bottom <= size["height"]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)
