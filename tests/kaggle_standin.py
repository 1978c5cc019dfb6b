"""A stand-in for Kaggle's servers on the loopback: the real client talks to it, and it remembers what it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

# The client has no setting for its server's address: this is imported by each Python that starts.
POINT_AT = "import kagglesdk.kaggle_env as e\ne._env_to_endpoint[e.KaggleEnv.LOCAL] = {address!r}\n"


class Kaggle(ThreadingHTTPServer):
    """`answers`: by the method's name, JSON, bytes or an HTTP status. `seen`: (method, JSON) of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.uploads: list[bytes] = []
        self.ranges: list[str] = []  # that were asked of files; "" for a whole one
        self.cuts = 0  # answers with a file that break off in the middle
        upload = {"token": "t", "createUrl": f"{self.address}/upload", "response": {}}
        made = {"ref": "", "url": f"{self.address}/x", "status": "ok", "error": "", "id": 7, "versionNumber": 1}
        self.answers: dict[str, Any] = {"StartBlobUpload": upload, "StartSubmissionUpload": upload}
        self.answers |= dict.fromkeys(("SaveKernel", "CreateDataset", "CreateDatasetVersion"), made)
        self.answers |= dict.fromkeys(("CreateModel", "CreateModelInstance"), made)
        self.answers |= dict.fromkeys(("GetModel", "GetModelInstance"), 404)
        self.answers["GetKernelSessionStatus"] = {"status": "COMPLETE"}
        self.answers["CreateSubmission"] = {"message": "Successfully submitted to Street View", "ref": 1}
        quota = {"timeUsed": "3600s", "totalTimeAllowed": "108000s"}
        self.answers["GetAcceleratorQuotaStatistics"] = {"gpuQuota": quota, "quotaRefreshTime": "2026-12-05T00:00:00Z"}

    def sent(self, method: str) -> list[dict[str, Any]]:
        """What the client sent to a method."""
        return [content for name, content in self.seen if name == method]


class Handler(BaseHTTPRequestHandler):
    server: Kaggle

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        method = self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith("/files/"):
            self._file(self.server.answers[method.removesuffix(".zip")])
            return
        if method == "upload":
            self.server.uploads.append(body)
            self._answer(200, b"{}")
            return
        self.server.seen.append((method, json.loads(body or b"{}")))
        answer = self.server.answers.get(method, {})
        if callable(answer):
            answer = answer()
        if isinstance(answer, int):
            self._answer(answer, json.dumps({"code": answer, "message": "refused"}).encode())
        elif isinstance(answer, bytes):  # a file is fetched from another address
            self._answer(302, b"", location=f"{self.server.address}/files/{method}.zip")
        else:
            self._answer(200, json.dumps(answer).encode())

    do_GET = do_PUT = do_POST

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content_type": "application/json", "content_length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _file(self, data: bytes) -> None:
        """Answer with a file, or with its bytes from the first one that was asked for."""
        self.server.ranges.append(asked := self.headers.get("range") or "")
        first = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        about = {"content_type": "application/zip", "accept_ranges": "bytes", "etag": '"one"'}
        about |= {"content_length": str(len(data) - first), "last_modified": "Sat, 28 Nov 2026 00:00:00 GMT"}
        about |= {"content_range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if asked else {}
        end = len(data) // 2 if self.server.cuts else len(data)
        self.server.cuts = max(0, self.server.cuts - 1)
        self._answer(206 if asked else 200, data[first:end], **about)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def standing_in(folder: Path, monkeypatch: Any) -> Iterator[Kaggle]:
    """Point the real client of this process's children at a stand-in, with an account that is none."""
    server = Kaggle()
    Thread(target=server.serve_forever, daemon=True).start()
    (folder / "sitecustomize.py").write_text(POINT_AT.format(address=server.address))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    for name, value in {"API_ENVIRONMENT": "LOCALHOST", "USERNAME": "someone", "KEY": "abc"}.items():
        monkeypatch.setenv(f"KAGGLE_{name}", value)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
