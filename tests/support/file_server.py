"""Files over HTTP on loopback: GET, HEAD and PUT, with failures that a test asks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}  # by path with query
        self.refusals: list[int] = []  # statuses of the next requests; 0 cuts the body of a reply
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        refusal = self.server.refusals.pop(0) if self.server.refusals else None
        data = self.server.files.get(self.path)
        if refusal or data is None:
            self._reply(refusal or 404)
        else:
            self._reply(200, data, cut=refusal == 0)

    def do_HEAD(self) -> None:
        self._note()
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_PUT(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.refusals:
            self._reply(self.server.refusals.pop(0))
            return
        self.server.files[self.path] = body
        self._reply(200)

    def log_message(self, format: str, *args: object) -> None: ...

    def _note(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})

    def _reply(self, status: int, body: bytes = b"", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
