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
        else:
            self._answer(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    do_GET = do_PUT = do_POST

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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
