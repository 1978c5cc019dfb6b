"""A stand-in for the Hugging Face hub on this machine: the real huggingface_hub talks to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """One repository in memory. `files` by path; `blobs` uploaded by checksum; `log` of requests; `hold` of uploads."""

    daemon_threads = True

    def __init__(self, token: str = "hf_fake") -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.token, self.files, self.blobs, self.log = token, {}, {}, []  # type: ignore[var-annotated]
        self.created: dict[str, Any] = {}
        self.commit_id = COMMIT
        self.held_after: int | None = None  # uploads that are answered; the next waits until `free`
        self.held, self.free = threading.Event(), threading.Event()
        self.status = 0  # of every answer, when it is set
        self.refused = ""  # the end of the name of a file that is not given out
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                self.files.pop(value["path"])
        self.commit_id = hashlib.sha1(json.dumps(sorted(self.files)).encode() + str(len(self.log)).encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        hub.log.append(f"{self.command} {path}")
        if hub.status:
            return self.answer({"error": "refused"}, hub.status)
        if not path.startswith("/lfs/") and self.headers.get("authorization") != f"Bearer {hub.token}":
            return self.answer({"error": "Repository not found"}, 401, **{"X-Error-Code": "RepoNotFound"})
        if path.endswith("/api/repos/create"):
            hub.created = json.loads(body)
            return self.answer({"url": f"{hub.url}/u/m", "id": "x"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            large = (".safetensors", ".npz")
            modes = [
                (file["path"], "lfs" if file["path"].endswith(large) else "regular")
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for item in json.loads(body)["objects"]:
                there = item["oid"] in hub.blobs
                actions = {} if there else {"actions": {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}}
                objects.append({"oid": item["oid"], "size": item["size"], **actions})
            return self.answer({"transfer": "basic", "objects": objects})
        if path.startswith("/lfs/"):
            if hub.held_after is not None and len(hub.blobs) >= hub.held_after:
                hub.held.set()
                hub.free.wait(60)
                return self.close_connection
            hub.blobs[path[5:]] = body
            return self.answer({})
        if "/commit/" in path:
            hub.commit([json.loads(line) for line in body.decode().splitlines()])
            url = f"{hub.url}/u/m/commit/{hub.commit_id}"
            return self.answer({"commitUrl": url, "commitOid": hub.commit_id, "hookOutput": "", "pullRequestUrl": None})
        if "/resolve/" in path:
            data = hub.files.get(path.split("/resolve/")[1].split("/", 1)[1])
            if hub.refused and path.endswith(hub.refused) and self.command == "GET":
                return self.answer({"error": "refused"}, 403)
            if data is None:
                return self.answer({"error": "x"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', **{"X-Repo-Commit": hub.commit_id})
        if "/tree/" in path:
            return self.answer([{"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
                                for name, data in hub.files.items()])  # fmt: skip
        if path.startswith("/api/models/"):
            names = [{"rfilename": name} for name in hub.files]
            return self.answer({"id": "u/m", "modelId": "u/m", "sha": hub.commit_id, "siblings": names, "private": True,
                                "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        self.answer({"error": "not found"}, 404)

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass
