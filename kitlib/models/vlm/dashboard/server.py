"""The server of the dashboard, which shows a training live or as a replay: `python -m kitlib watch RUN`.

It listens on 127.0.0.1 and answers only under a loopback name, so that no web page can reach it through a name of its
own. It only reads, and serves the dashboard's page and the files of one run. Addresses hold a step's number and phase
and a place's position in the step, never text of the data.

    /                          the page, with watch.css, watch.js, watch_map.js, watch_charts.js
    /outlines.json             land and states as rings
    /steps                     a row per step and phase, with an ETag: repeated requests are free until a new step
    /step/12/train             places, points and rewards of one step, for the map
    /step/12/train/3           texts and pictures of its fourth place
    /step/12/train/3/steps     the steps of that phase with the same place
    /pictures/NAME             a stored picture
"""

from __future__ import annotations

import json
import math
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kitlib.core import storage
from kitlib.core.errors import KitError
from kitlib.evaluation import runs
from kitlib.geo import outlines
from kitlib.models.vlm.conversation import rollouts

PAGE = {"/": "watch.html"} | {f"/{name}": name for name in ("watch.css", "watch.js", "watch_map.js", "watch_charts.js")}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".jpg": "image/jpeg"}
JPEG = b"\xff\xd8\xff"  # how such a file begins
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
DRAWN = ("rollout", "points", "reward", "advantage", "km")  # of a rollout, on the map and in the list
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Replay:
    """The rollouts of a run so far, read on request; thread-safe."""

    def __init__(self, run: str):
        self.run, self.dir = run, runs.open_run(run).dir.resolve()
        self.folder = (self.dir / "rollouts").resolve()
        for folder in (self.folder, (self.folder / "steps").resolve(), (self.folder / "pictures").resolve()):
            if not folder.is_relative_to(self.dir):
                raise KitError(f"run {run}: expected {folder.name} inside its folder; got {folder}")
        self._lock = threading.Lock()
        self._sums: dict[tuple[Path, int], pa.Table] = {}
        self._skipped: set[tuple[Path, int]] = set()  # files that cannot be read
        self._rows = lru_cache(maxsize=8)(_rows)

    def files(self) -> dict[Path, int]:
        """The file of every step and phase, with its modification time in ns."""
        return {f: time for f in rollouts.step_files(self.folder) if (time := self._changed(f)) is not None}

    def _changed(self, file: Path) -> int | None:
        """The modification time of a file in ns; None for a link, which may lead anywhere, and for no file."""
        try:
            status, linked = file.lstat(), file.resolve() != file
        except OSError:  # missing, or just deleted
            return None
        return status.st_mtime_ns if stat.S_ISREG(status.st_mode) and not linked else None

    def tag(self) -> str:
        """A digest that changes with every new step or unreadable file, and when the run is finished."""
        files = [(file.name, changed, (file, changed) in self._skipped) for file, changed in self.files().items()]
        return storage.digest(f"{self._finished()} {files}")

    def steps(self) -> dict[str, Any]:
        """The columns of the summary so far, the files left out as unreadable, and whether the run is finished."""
        sums = self._summed()
        status: dict[str, Any] = {"run": self.run, "finished": self._finished()}
        if skipped := sorted(file.name for file, changed in self._skipped if self._changed(file) == changed):
            status["skipped"] = skipped
        if not sums:
            return status
        table = rollouts.summary(rollouts.frame_of(list(sums.values())))
        columns = {str(name): _rounded(table[name].tolist()) for name in table.columns}
        # files are in the order of the summary's rows: by step, then phase
        return status | columns | {"version": [f"{changed:x}" for _, changed in sums]}

    def step(self, step: int, phase: str) -> dict[str, Any] | None:
        """The places of a step with the points and rewards of their rollouts; None for an unknown step."""
        rows = self._step(step, phase)
        if rows is None:
            return None
        groups = [
            {"place": one["sample_id"][0], "truth": one["truth"][0], **{name: one[name] for name in DRAWN}}
            for one in rows
        ]
        return {"step": step, "phase": phase, "groups": groups}

    def group(self, step: int, phase: str, number: int) -> dict[str, Any] | None:
        """The texts and pictures of one place of a step; None for an unknown step or place."""
        rows = self._step(step, phase)
        if rows is None or number >= len(rows):
            return None
        first = {name: rows[number][name][0] for name in ("environment", "prompt", "pictures")}
        return first | {name: rows[number][name] for name in ("replies", "rewards")}

    def same_place(self, step: int, phase: str, number: int) -> list[int] | None:
        """The steps of a phase with the same place as that group; None for an unknown step or place."""
        rows = self._step(step, phase)
        if rows is None or number >= len(rows):
            return None
        place = rows[number]["sample_id"][0]
        return [
            one["step"][0].as_py()
            for one in self._summed().values()
            if one["phase"][0].as_py() == phase and place in one["sample_id"].to_pylist()
        ]

    def picture(self, name: str) -> bytes | None:
        """A stored picture; None for a link, for another format, and for a file that is not of this run."""
        path = self.folder / "pictures" / name
        content = path.read_bytes() if self._changed(path) is not None else b""
        return content if content.startswith(JPEG) else None

    def _summed(self) -> dict[tuple[Path, int], pa.Table]:
        """The summary's columns of every file; only new files are read."""
        with self._lock:
            files = self.files().items()
            every: dict[tuple[Path, int], pa.Table] = {}
            for key in files:
                if key not in self._skipped:
                    with self._skipping(key):
                        every[key] = self._sums[key] if key in self._sums else _checked(key[0], rollouts.SUMMED)
            self._sums = {key: table for key, table in every.items() if len(table)}  # an empty one was just deleted
            return self._sums

    @contextmanager
    def _skipping(self, key: tuple[Path, int]) -> Iterator[None]:
        """Leave out a step's file that cannot be read; the page names it."""
        try:
            yield
        except (KitError, OSError):
            self._skipped.add(key)

    def _finished(self) -> bool:
        return (self.dir / "metrics.json").is_file()

    def _step(self, step: int, phase: str) -> list[dict[str, list]] | None:
        path = self.folder / "steps" / f"{step:08d}-{phase}.parquet"
        changed = self._changed(path)
        if changed is None or (path, changed) in self._skipped:
            return None
        with self._skipping((path, changed)):
            return self._rows(path, changed)
        return None


def _checked(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a step's file. Raises KitError if it is not of the step and phase in its name, or lacks values."""
    table = rollouts.read_table(file, columns)
    step, phase = file.stem.split("-")
    others = {*zip(table["step"].to_pylist(), table["phase"].to_pylist(), strict=True)} - {(int(step), phase)}
    if others or any(table[name].null_count for name in table.column_names if name not in rollouts.OPTIONAL):
        raise KitError(f"{file.name}: expected rows of that step and phase with all values")
    return table


def _rows(file: Path, changed: int) -> list[dict[str, list]] | None:
    """A step's rollouts by place, columns as lists; `changed` is the cache key of the file's version."""
    frame = rollouts.frame_of([_checked(file)])
    columns = {name: frame[name].tolist() for name in frame.columns}
    columns |= {name: _rounded(columns[name]) for name in ("reward", "advantage", "km")}
    rows: dict[str, list[int]] = {}
    for row, place in enumerate(columns["sample_id"]):
        rows.setdefault(place, []).append(row)
    return [{name: [column[row] for row in mine] for name, column in columns.items()} for mine in rows.values()] or None


def _rounded(values: list) -> list:
    """Numbers rounded to six digits, and None for NaN, for JSON."""
    return [float(f"{v:.6g}") if isinstance(v, float) and math.isfinite(v) else v if v == v else None for v in values]


@lru_cache(maxsize=1)
def outline_rings() -> bytes:
    """The rings of land and states as JSON: {"land": [[lon, lat, lon, lat, ...], ...], "states": ...}, degrees."""

    def rings(shapes: list, digits: int) -> list[list[float]]:
        polygons = [polygon for shape in shapes for polygon in shape.geoms]
        every = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
        return [np.round(np.array(ring.coords), digits).ravel().tolist() for ring in every]

    land, states = rings([outlines.land_shape()], 2), rings(list(outlines.state_shapes().values()), 3)
    return json.dumps({"land": land, "states": states}, separators=(",", ":")).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for one replay; refuses all other methods."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kitlib", ""
    wbufsize = -1  # head and body in one packet: a second one waits 40 ms for the first to be acknowledged
    timeout = 30  # seconds that a silent connection may stay open
    replay: Replay

    def do_GET(self) -> None:
        """Serve a page, a table or a picture."""
        host = self.headers.get_all("Host", [])
        if len(host) != 1 or not LOOPBACK.fullmatch(host[0].strip()):
            return self._refuse(HTTPStatus.FORBIDDEN)
        path = self.path.partition("?")[0]
        if path in PAGE:
            file = Path(__file__).parent / PAGE[path]
            return self._send(file.read_bytes(), KINDS[file.suffix])
        if path == "/favicon.ico":
            return self._send(b"", "image/x-icon", status=HTTPStatus.NO_CONTENT)
        if path == "/outlines.json":
            return self._send(outline_rings(), "application/json", storage.digest(outline_rings()))
        if path == "/steps":
            tag = self.replay.tag()  # before reading the steps: at worst they are sent twice
            return self._json(self.replay.steps, tag)
        if match := re.fullmatch(r"/step/(\d{1,12})/(train|eval)(?:/(\d{1,9})(/steps)?)?", path):
            step, phase, number, steps = int(match[1]), match[2], match[3], match[4]
            if number is None:
                return self._json(lambda: self.replay.step(step, phase))
            read = self.replay.same_place if steps else self.replay.group
            return self._json(lambda: read(step, phase, int(number)))
        if match := re.fullmatch(r"/pictures/([A-Za-z0-9_-][A-Za-z0-9_.-]*\.jpg)", path):
            picture = self.replay.picture(match[1])
            return self._refuse(HTTPStatus.NOT_FOUND) if picture is None else self._send(picture, KINDS[".jpg"])
        return self._refuse(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Refuse: the server only reads."""
        self.close_connection = True  # the request's body is not read
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_POST

    def _json(self, read: Callable[[], Any], tag: str = "") -> None:
        """Send the result of `read` as JSON; 304 if the page has it already, 404 for None."""
        if tag and self.headers.get("If-None-Match") == f'"{tag}"':
            return self._send(b"", "application/json", tag, HTTPStatus.NOT_MODIFIED)
        content = read()
        if content is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        return self._send(json.dumps(content, separators=(",", ":")).encode(), "application/json", tag)

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(f"{status.value} {status.phrase}\n".encode(), "text/plain", status=status)

    def _send(self, body: bytes, kind: str, tag: str = "", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = HEADERS | {"Content-Type": kind if kind.startswith("image") else f"{kind}; charset=utf-8"}
        headers |= {"ETag": f'"{tag}"'} if tag else {}
        headers |= {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a page that polls every second would fill the terminal."""


def server(run: str, port: int = 0) -> ThreadingHTTPServer:
    """The server of a run's page, listening but not yet serving; port 0 takes a free one.

    Raises KitError for an unknown run, and for a port that cannot be used.
    """
    if not 0 <= port <= 65535:
        raise KitError(f"port: expected 1 to 65535, or 0 for any free one; got {port}")
    handler = type("RunHandler", (Handler,), {"replay": Replay(run)})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise KitError(f"port {port} cannot be used ({error.strerror}); --port 0 takes a free one") from None


def serve(run: str, port: int, say: Callable[[str], object] = print) -> None:
    """Serve a run's page until Ctrl-C and print its address."""
    with server(run, port) as http:
        say(f"http://127.0.0.1:{http.server_port}/  {run}, until Ctrl-C")
        try:
            http.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
