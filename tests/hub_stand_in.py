"""A stand-in for the Hugging Face Hub on the loopback address: what memplug uses of its HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, dict[str, bytes]]
    """Repository -> name -> content; one revision each."""

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.files.setdefault(name, {})
            self._answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        elif found := re.fullmatch(r"/api/models/(\S+)/preupload/main\S*", self.path):
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            paths = [one["path"] for one in json.loads(body)["files"]]
            self._answer(200, {"files": [{"path": path, **plain} for path in paths]})
        elif found := re.fullmatch(r"/api/models/(\S+)/commit/main\S*", self.path):
            held = self.files[found[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    held[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    held.pop(value["path"], None)
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{'1' * 40}"
            self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": f"no {self.path}"})

    def do_GET(self) -> None:
        api = re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/\w+|/tree/\w+)?(\?\S*)?", self.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/([^?]+)\S*", self.path)
        repository = (api or file or [None, ""])[1]
        if repository not in self.files:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif api and (api[2] or "").startswith("/tree"):
            held = self.files[repository].items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "2" * 40} for name, data in held]
            self._answer(200, tree)
        elif api:
            siblings = [{"rfilename": name} for name in self.files[repository]]
            self._answer(200, {"id": repository, "sha": "1" * 40, "siblings": siblings, "private": False})
        elif file and file[2] in self.files[repository]:
            data = self.files[repository][file[2]]
            self._answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit="1" * 40)
        else:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of a hub without repositories, and what it holds."""
    files: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
