"""A Hub of one data set, ``own/set``, on this machine: as much of its interface as reading a data set takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tests.http_server import QuietServer

COMMIT = "a" * 40
NAME = "own/set"


class _Hub(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path)
        about = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        found = file or listing or about
        if found is None:
            self._send(200 if path == "/" else 404, b"{}")
        elif found[1] != NAME:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif found[2] not in (None, "main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif file:
            self._file(self.root / file[3])
        elif listing:
            folder = self.root / listing[3]
            inside = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
            self._send(200, json.dumps([self._entry(entry) for entry in inside]).encode())
        else:
            names = [entry.relative_to(self.root).as_posix() for entry in self.root.rglob("*") if entry.is_file()]
            self._send(200, json.dumps({
                "id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names], "private": False,
                "tags": [], "downloads": 0, "likes": 0,
            }).encode())  # fmt: skip

    def _entry(self, path: Path) -> dict[str, Any]:
        kind, content = ("directory", b"") if path.is_dir() else ("file", path.read_bytes())
        digest = hashlib.sha1(content).hexdigest()
        return {"type": kind, "path": path.relative_to(self.root).as_posix(), "oid": digest, "size": len(content)}

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve the folder's files as the data set's; yields the address."""
    server = QuietServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
