"""The whole server and bad requests: every row of the table, broken HTTP, and that it goes on afterwards."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.error_table import bad_requests
from support.server_process import ServerProcess

VOCAB = 49152
QUEUE = 64
FLAGS = (
    "--served-model-name", "smol", "--max-model-len", "512", "--num-kv-blocks-override", "64",
    "--max-num-queued-reqs", str(QUEUE),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2_gguf, *FLAGS) as process:
        yield process.wait_ready(180)


@pytest.fixture(autouse=True)
def goes_on(server: ServerProcess) -> Iterator[None]:
    """After every test of this file the server answers as before."""
    yield
    reply = server.complete("The capital of France is", max_tokens=4, temperature=0)
    assert reply.status == 200 and "Paris" in reply.json["choices"][0]["text"]


def post_raw(server: ServerProcess, path: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_every_row_of_the_table(server: ServerProcess) -> None:
    wrong = []
    for (path, body), param in bad_requests(VOCAB, QUEUE):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, reply = post_raw(server, path, data)
        error = reply.get("error", {})
        got = (status, error.get("type"), error.get("param"), error.get("code"))
        if got != (400, "BadRequestError", param, None):
            wrong.append((path, data[:200], got))
    assert wrong == []


MISSING = {"type": "NotFoundError", "param": "model", "code": "model_not_found"}
NO_ROUTE = {"type": "NotFoundError", "param": None, "code": "route_not_found"}
NO_METHOD = {"type": "MethodNotAllowedError", "param": None, "code": "method_not_allowed"}
TOO_LONG = {"type": "BadRequestError", "code": "context_length_exceeded"}
USER = [{"role": "user", "content": "Hello"}]

#: method, path, body, and status and error of the answer.
OTHERS: list[tuple[str, str, Any, int, dict[str, Any]]] = [
    ("POST", "/v1/chat/completions", {"messages": USER, "model": "other"}, 404, MISSING),
    ("POST", "/v1/completions", {"prompt": "a", "model": "other"}, 404, MISSING),
    ("POST", "/tokenize", {"prompt": "a", "model": "other"}, 404, MISSING),
    ("POST", "/detokenize", {"tokens": [1], "model": "other"}, 404, MISSING),
    ("GET", "/v1/models/other", None, 404, {"type": "NotFoundError", "code": "model_not_found"}),
    ("GET", "/nowhere", None, 404, NO_ROUTE),
    ("GET", "/v1", None, 404, NO_ROUTE),
    ("POST", "/v1/embeddings", {"input": "a"}, 400, {"type": "BadRequestError", "param": "model"}),
    ("POST", "/v1/files", {}, 404, {"type": "NotFoundError", "code": "route_not_served"}),
    ("POST", "/v1/nothing", {}, 404, NO_ROUTE),
    ("GET", "/docs/../etc/passwd", None, 404, NO_ROUTE),
    ("GET", "/v1/chat/completions", None, 405, NO_METHOD),
    ("PUT", "/v1/completions", {}, 405, NO_METHOD),
    ("DELETE", "/v1/models", None, 405, NO_METHOD),
    ("POST", "/health", {}, 405, NO_METHOD),
    ("POST", "/openapi.json", {}, 405, NO_METHOD),
    ("POST", "/v1/completions", {"prompt": [1] * 512}, 400, {**TOO_LONG, "param": "prompt"}),
    ("POST", "/v1/completions", {"prompt": [1] * 500, "max_tokens": 20}, 400, {**TOO_LONG, "param": "max_tokens"}),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 512}, 400, {**TOO_LONG, "param": "max_tokens"}),
    ("POST", "/v1/completions", {"prompt": ["a", [1] * 600]}, 400, {"type": "BadRequestError"}),
    ("POST", "/v1/completions", {"prompt": [[1], [1] * 600]}, 400, {**TOO_LONG, "param": "prompt.1"}),
    ("POST", "/v1/chat/completions", {"messages": USER, "max_tokens": 512}, 400, {**TOO_LONG, "param": "max_tokens"}),
    (
        "POST", "/v1/completions", {"prompt": [1] * 500, "max_tokens": 20, "use_beam_search": True, "best_of": 2}, 400,
        {**TOO_LONG, "param": "max_tokens"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: f"{row[0]} {row[1]} {row[3]} {str(row[2])[:40]}")
def test_the_other_errors(server: ServerProcess, row: Any) -> None:
    method, path, body, status, expected = row
    reply = server.request(method, path, body)
    assert reply.status == status, reply.body[:300]
    assert {**reply.json["error"], **expected} == reply.json["error"]
    assert len(reply.headers["x-request-id"]) == 32


def test_the_table_is_long_enough() -> None:
    rows = {json.dumps([path, str(body)[:300]]) for (path, body), _ in bad_requests(VOCAB, QUEUE)}
    assert len(rows) + len(OTHERS) >= 230


LEAKS = ("Traceback", "site-packages", ".py", "0x", "pydantic", "msgspec", "octavo/")


def test_no_error_tells_of_the_inside(server: ServerProcess) -> None:
    for (path, body), _ in bad_requests(VOCAB, QUEUE):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = post_raw(server, path, data)[1]["error"]["message"]
        assert not [leak for leak in LEAKS if leak in message], message


def test_bad_requests_in_company_disturb_nobody(server: ServerProcess) -> None:
    alone = server.complete("Once upon a time", max_tokens=24, temperature=0).json["choices"][0]["text"]
    rows = bad_requests(VOCAB, QUEUE)[::4]

    def bad(row: Any) -> int:
        (path, body), _ = row
        return post_raw(server, path, body if isinstance(body, bytes) else json.dumps(body).encode())[0]

    def good(_: int) -> str:
        text: str = server.complete("Once upon a time", max_tokens=24, temperature=0).json["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(8) as pool:
        goods = [pool.submit(good, i) for i in range(4)]
        bads = [pool.submit(bad, row) for row in rows]
        assert {future.result() for future in goods} == {alone}
        assert {future.result() for future in bads} == {400}


def talk(server: ServerProcess, data: bytes) -> bytes:
    """All that the server says to `data`, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
        return answer


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

BROKEN = [
    b"",
    b"\x00\x01\x02\x03",
    b"nonsense\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    HEAD + b"Content-Length: 10\r\n\r\n{",
    HEAD + b"Content-Length: -1\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 99999999999999\r\n\r\n{",
    HEAD + b"".join(b"X-%d: y\r\n" % i for i in range(5000)) + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:60]))
def test_broken_http_is_refused_and_forgotten(server: ServerProcess, data: bytes) -> None:
    answer = talk(server, data)
    assert not answer.startswith(b"HTTP/1.1 2") and b"Traceback" not in answer
    if answer:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] != "InternalServerError"


def test_413_comes_at_once(server: ServerProcess) -> None:
    answer = talk(server, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and b"RequestTooLargeError" in answer


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(server: ServerProcess) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"prompt":')
    assert "Traceback" not in server.stderr


def test_prompts_that_do_not_fit_are_refused_without_delay_to_others(server: ServerProcess) -> None:
    for prompt in ("word " * 600, "a" * 1_000_000, "x" * 10_000_000):
        reply = server.complete(prompt)
        assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
        assert reply.json["error"]["param"] == "prompt"


def test_the_log_has_no_traceback(server: ServerProcess) -> None:
    assert "Traceback" not in server.stderr
