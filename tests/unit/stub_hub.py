"""A Hugging Face hub of one process: repositories as dicts of files, served on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Repositories = dict[str, dict[str, bytes]]


class StubHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repositories: Repositories, gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated = gated
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StubHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, send_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        repo, rest = "/".join(parts[:2]), parts[2:]
        files = self.server.repositories.get(repo)
        if files is None:
            self._reply(404, b"", {"X-Error-Code": "RepoNotFound"}, send_body)
        elif repo in self.server.gated and not api:
            self._reply(403, b"", {"X-Error-Code": "GatedRepo"}, send_body)
        elif len(rest) > 1 and rest[1] not in ("main", self._commit(repo)):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, send_body)
        elif api and rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": _digest(d)} for n, d in files.items()]
            self._reply(200, json.dumps(tree).encode(), {}, send_body)
        elif api:
            info = {"id": repo, "modelId": repo, "sha": self._commit(repo), "private": False, "tags": []}
            info |= {"siblings": [{"rfilename": name} for name in files], "downloads": 0, "likes": 0}
            self._reply(200, json.dumps(info).encode(), {}, send_body)
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) in files:
            name = "/".join(rest[2:])
            if send_body:
                self.server.downloads.append(name)
            headers = {"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": self._commit(repo)}
            self._reply(200, files[name], headers, send_body)
        else:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound"}, send_body)

    def _commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode()).hexdigest()

    def _reply(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running(hub: StubHub) -> Iterator[StubHub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
