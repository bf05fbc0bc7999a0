"""The load generator counts what it saw: a benchmark that miscounts is worse than none."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def load() -> ModuleType:
    file = Path(__file__).parents[2] / "bench" / "load.py"
    spec = importlib.util.spec_from_file_location("bench_load", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class FakeAPI(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prompts: list[str] = []
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.failure = ""


class _Handler(BaseHTTPRequestHandler):
    server: FakeAPI
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole(200, json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.prompts.append(body["prompt"])
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        if self.server.failure == "status":
            self._whole(429, b"busy")
        else:
            self._stream(body)
        with self.server.lock:
            self.server.now -= 1

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events: list[Any] = [{"choices": [{"text": "w"}]} for _ in range(body["max_tokens"])]
        if self.server.failure == "stream":
            events[1] = {"error": {"message": "the engine died"}}
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
        text = "".join(f"data: {json.dumps(e)}\n\n" for e in [*events, {"choices": [], "usage": usage}])
        data = (text + "data: [DONE]\n\n").encode()
        for start in range(0, len(data), 37):  # events are cut anywhere
            piece = data[start : start + 37]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    with FakeAPI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def measure(load: ModuleType, api: FakeAPI, *shapes: Any) -> Any:
    return asyncio.run(load.measure(f"http://127.0.0.1:{api.server_address[1]}", shapes))


def test_every_token_is_counted_once(load: ModuleType, api: FakeAPI) -> None:
    result = measure(load, api, load.Shape(1, 3, 5, 4), load.Shape(4, 8, 6, 3))
    one, four = result["levels"]
    assert result["model"] == "tiny"
    assert (one["prompt_tokens"], one["output_tokens"]) == (15, 12)
    assert (four["prompt_tokens"], four["output_tokens"]) == (48, 24)
    assert 1 <= api.most <= 4
    measured = api.prompts[2:]  # after the two that warm up
    assert len(set(measured)) == len(measured) == 11
    assert load.table(result["levels"]).count("\n") == 2


def test_rates_and_times_come_from_the_stamps(load: ModuleType) -> None:
    replies = [load.Reply(start, [start + 1, start + 1.5, start + 2], start + 2, 10, 3) for start in (0.0, 5.0)]
    found = load.summary(load.Shape(2, 2, 10, 3), replies, wall=4.0)
    assert (found["output_tok_s"], found["total_tok_s"]) == (1.5, 6.5)
    assert found["ttft_ms"]["p50"] == 1000
    assert found["itl_ms"]["p99"] == found["tpot_ms"]["mean"] == 500


@pytest.mark.parametrize("failure", ["status", "stream"])
def test_a_failed_request_ends_the_measurement(load: ModuleType, api: FakeAPI, failure: str) -> None:
    api.failure = failure
    with pytest.raises(load.LoadError, match="429.*busy|the engine died"):
        measure(load, api, load.Shape(1, 1, 5, 4))


def test_percentiles_are_nearest_ranks_in_milliseconds(load: ModuleType) -> None:
    values = [i / 1000 for i in range(1, 101)]
    assert (load.percentile(values, 0.5), load.percentile(values, 0.99), load.percentile([], 0.5)) == (51, 100, None)
