"""`octavo chat` and `octavo complete` against a server of a few lines."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octavo.cli import main


class FakeAPI(ThreadingHTTPServer):
    """Streams the words of `reply`; remembers every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply = ["Hel", "lo", "!"]
        self.refusal: tuple[int, bytes] | None = None
        self.error_in_stream = False


class _Handler(BaseHTTPRequestHandler):
    server: FakeAPI

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.refusal is not None:
            self._send(*self.server.refusal)
            return
        chat = self.path.endswith("/chat/completions")
        events: list[Any] = [{"choices": [{"delta": {"role": "assistant"}} if chat else {"text": ""}]}]
        events += [{"choices": [{"delta": {"content": w}} if chat else {"text": w}]} for w in self.server.reply]
        if self.server.error_in_stream:
            events.append({"error": {"message": "the engine died"}})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self._send(200, "".join([*lines, "data: [DONE]\n\n"]).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    with FakeAPI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_one_question_prints_the_reply(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["chat", "--url", api.url, "-q", "Hi?", "--system-prompt", "Be brief.", "--max-tokens", "7"])
    assert (code, capsys.readouterr().out) == (0, "Hello!\n")
    (request,) = api.requests
    assert request["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    assert (request["model"], request["max_tokens"], request["stream"]) == ("first", 7, True)
    assert "temperature" not in request


def test_a_conversation_is_sent_whole_each_time(
    api: FakeAPI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert main(["chat", "--url", api.url, "--model-name", "second"]) == 0
    assert [[m["content"] for m in r["messages"]] for r in api.requests] == [["one"], ["one", "Hello!", "two"]]
    assert {r["model"] for r in api.requests} == {"second"}
    assert capsys.readouterr().out.count("Hello!") == 2


def test_a_text_is_continued(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--url", api.url + "/", "--quick=Once", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Hello!\n"
    assert (api.requests[0]["prompt"], api.requests[0]["temperature"]) == ("Once", 0.0)


def test_the_key_comes_from_the_flag_then_the_environment(api: FakeAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for key, words in (("EMPTY", []), ("flag", ["--api-key", "flag"])):
        main(["complete", "--url", api.url, "-q", "x", *words])
        assert api.keys[-1] == f"Bearer {key}"
    monkeypatch.setenv("OPENAI_API_KEY", "env")
    main(["complete", "--url", api.url, "-q", "x"])
    assert api.keys[-1] == "Bearer env"


def test_errors_are_one_line(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.error_in_stream = True
    assert main(["chat", "--url", api.url, "-q", "x"]) == 1
    assert capsys.readouterr().err == "octavo chat: error: the engine died\n"
    api.refusal = (401, b'{"error": {"message": "no such key"}}')
    assert main(["chat", "--url", api.url, "-q", "x"]) == 1
    assert capsys.readouterr().err == "octavo chat: error: the server refused (401): no such key\n"
    api.refusal = (502, b"<html>")
    assert main(["chat", "--url", api.url, "-q", "x"]) == 1
    assert "(502): <html>" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    assert main(["chat", "--url", f"http://127.0.0.1:{port}/v1", "-q", "x"]) == 1
    assert f"no answer from http://127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["chat", "--url", "ftp://x", "-q", "x"]) == 2
    assert main(["chat", "--rul", "x"]) == 2
    assert "did you mean --url?" in capsys.readouterr().err
