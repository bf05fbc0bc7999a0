"""A server of a few lines with a streaming completions API, which counts what it is asked and fails as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeAPI(ThreadingHTTPServer):
    """`failures` are taken one a request: a status, or "error", "cut", "silent", "garbage" of the stream."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.failures: list[str] = []
        self.tells_usage = True

    @property
    def prompts(self) -> list[str]:
        return [body.get("prompt") or body["messages"][0]["content"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    server: FakeAPI
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole(200, json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.paths.append(self.path)
            self.server.keys.append(self.headers["Authorization"])
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            failure = self.server.failures.pop(0) if self.server.failures else ""
        if failure.isdigit():
            self._whole(int(failure), b'{"error": {"message": "busy"}}')
        else:
            self._stream(body, failure)
        with self.server.lock:
            self.server.now -= 1

    def _stream(self, body: dict[str, Any], failure: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in self._events(body, failure))
        if failure == "garbage":
            text += "data: {'no': 'json'}\n\n"
        data = (text + ("" if failure == "cut" else "data: [DONE]\n\n")).encode()
        for start in range(0, len(data), 37):  # events are cut anywhere
            piece = data[start : start + 37]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, body: dict[str, Any], failure: str) -> list[Any]:
        count = body["max_tokens"]
        word: dict[str, Any] = {"delta": {"content": "w"}} if "messages" in body else {"text": "w"}
        events: list[Any] = [{"choices": [word]} for _ in range(0 if failure == "silent" else count)]
        if failure == "error":
            events[1] = {"error": {"message": "the engine died"}}
        prompt = body.get("prompt") or body["messages"][0]["content"]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count}
        return [*events, {"choices": [], "usage": usage}] if self.server.tells_usage else events

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def fake_api() -> Iterator[FakeAPI]:
    with FakeAPI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
