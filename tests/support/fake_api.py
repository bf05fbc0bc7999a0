"""A server of a few lines that speaks the OpenAI API, for the tests of its clients in the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeAPI(ThreadingHTTPServer):
    """Streams the pieces of `reply`; remembers every request. The other fields say what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.address}/v1"
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.thoughts: list[str] = []
        self.reply = ["Hel", "lo", "!"]
        self.finish_reason = "stop"
        self.models: tuple[int, str, bytes] | None = None  # what /models gives: status, content type, body
        self.refusal: tuple[int, bytes] | None = None
        self.error_in_stream = False
        self.ends_early = False
        self.never_ends = False  # the reply stays open until the client goes away
        self.client_left = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: FakeAPI

    def do_GET(self) -> None:
        api = self.server
        api.paths.append(self.path)
        api.keys.append(self.headers["Authorization"])
        if api.models is not None:
            self._send(*api.models)
        elif self.path != "/v1/models":
            self._send(404, "text/html", b"<html>nothing here</html>")
        else:
            self._send(200, "application/json", json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        api = self.server
        api.paths.append(self.path)
        api.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        api.keys.append(self.headers["Authorization"])
        if api.refusal is not None:
            self._send(api.refusal[0], "application/json", api.refusal[1])
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in self._events(is_chat=self.path.endswith("/chat/completions")):
                self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
            is_left = api.never_ends and self.connection.recv(1) == b""
        except ConnectionError:
            is_left = True
        if is_left:
            api.client_left.set()

    def _events(self, is_chat: bool) -> Iterator[Any]:
        api = self.server
        if is_chat:
            yield _choice({"role": "assistant"})
        for text in api.thoughts:
            yield _choice({"reasoning_content": text})
        for text in api.reply:
            yield _choice({"content": text}) if is_chat else {"choices": [{"text": text}]}
        if api.error_in_stream:
            yield {"error": {"message": "the engine died"}}
        elif not (api.ends_early or api.never_ends):
            yield {"choices": [{"delta": {}, "text": "", "finish_reason": api.finish_reason}]}
            details = {"cached_tokens": 4}
            usage = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": details}
            yield {"choices": [], "usage": usage}
            yield "[DONE]"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if 300 <= status < 400:
            self.send_header("Location", "https://elsewhere/v1")
        self.end_headers()
        self.wfile.write(body)


def _choice(delta: dict[str, str]) -> dict[str, Any]:
    return {"choices": [{"delta": delta}]}


@contextmanager
def serving_fake_api() -> Iterator[FakeAPI]:
    with FakeAPI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
