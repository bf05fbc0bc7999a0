"""HTTP as old clients and proxies speak it, byte by byte, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from octavo.base.config import ServerConfig
from octavo.launch import http_server
from octavo.launch.http_server import http_config
from support.http_wire import Served, WireReply, served
from support.server_fakes import answer, make_server

HOST = "Host: localhost\r\n"
BODY = '{"prompt":"a"}'
STREAM = '{"prompt":"a","stream":true}'
JSON = f"{HOST}Content-Type: application/json\r\n"
POST = f"POST /v1/completions HTTP/1.1\r\n{JSON}"
GET = f"GET /version HTTP/1.1\r\n{HOST}\r\n"


def length(body: str) -> str:
    return f"Content-Length: {len(body)}\r\n\r\n{body}"


def run(test: Callable[[Served], Coroutine[Any, Any, Any]], **config: Any) -> Any:
    async def main() -> Any:
        async with served(**config) as server:
            return await asyncio.wait_for(test(server), 30)

    return asyncio.run(main())


def ask(data: str | bytes, has_body: bool = True, **config: Any) -> WireReply:
    return run(lambda server: server.ask(data, has_body), **config)


# ---------------------------------------------------------------- connections that idle
def test_an_idle_connection_outlives_those_of_proxies_and_may_be_set() -> None:
    async def app(*_: Any) -> None: ...

    assert http_config(app, ServerConfig()).timeout_keep_alive == 120
    assert http_config(app, ServerConfig(timeout_keep_alive=2.5)).timeout_keep_alive == 2.5


@pytest.mark.parametrize("sent", ["", GET, "\r\n", GET + "\r\n"])
def test_a_connection_that_asks_nothing_more_is_closed_after_its_time(sent: str) -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(sent)
        if GET in sent:
            assert (await wire.reply()).status == 200
        assert await wire.is_closed()

    run(test, timeout_keep_alive=0.05)


def test_a_stream_is_not_idle() -> None:
    gate = asyncio.Event()
    server = make_server(lambda _: [answer("Hi")[0], gate, answer("Hi")[1]], timeout_keep_alive=0.05)

    async def main() -> None:
        async with served(server, timeout_keep_alive=0.05) as s:
            wire = await s.connect()
            wire.send(POST + length(STREAM))
            reply = asyncio.create_task(wire.reply())
            other = await s.connect()  # closed for idling: so much time has gone by
            assert await other.is_closed()
            gate.set()
            assert (await reply).body.endswith(b"data: [DONE]\n\n")

    asyncio.run(main())


def test_a_head_that_does_not_come_to_its_end_is_answered_with_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.05)
    reply = ask("GET /version HTTP/1.1\r\nHost: loc")
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert "head" in json.loads(reply.body)["error"]["message"]


def test_draining_ends_idle_connections_at_once_and_the_others_with_their_reply() -> None:
    gate = asyncio.Event()
    server = make_server(lambda _: [answer("Hi")[0], gate, answer("Hi")[1]])

    async def main() -> None:
        async with served(server) as s:
            idle, busy, fresh = [await s.connect() for _ in range(3)]
            idle.send(GET)
            await idle.reply()
            busy.send(POST + length(STREAM))
            await busy.reader.readuntil(b"data: ")
            s.http.start_draining()
            assert await idle.is_closed()
            fresh.send(GET)  # was open and had asked nothing: it is still answered
            late = await s.ask(GET)
            for reply in (await fresh.reply(), late):
                assert (reply.status, reply.headers["connection"]) == (200, "close")
            gate.set()
            assert (await busy.reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")  # and then its end

    asyncio.run(asyncio.wait_for(main(), 30))


# ---------------------------------------------------------------- HTTP/1.0
@pytest.mark.parametrize(("asked", "connection"), [(None, "close"), ("keep-alive", "keep-alive"), ("close", "close")])
def test_http_1_0_ends_the_connection_unless_asked_to_keep_it(asked: str | None, connection: str) -> None:
    headers = f"Connection: {asked}\r\n" if asked else ""

    async def test(server: Served) -> None:
        wire = await server.connect()
        for _ in range(2 if connection == "keep-alive" else 1):
            wire.send(f"GET /version HTTP/1.0\r\n{headers}\r\n")
            reply = await wire.reply()
            assert (reply.status, reply.headers["connection"]) == (200, connection)
            assert "transfer-encoding" not in reply.headers and b"version" in reply.body
        assert connection == "keep-alive" or await wire.is_closed()

    run(test)


@pytest.mark.parametrize("headers", ["", "Connection: keep-alive\r\n"])
def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_the_connection(headers: str) -> None:
    reply = ask(f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n{headers}{length(STREAM)}")
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert not {"transfer-encoding", "content-length"} & reply.headers.keys()
    assert reply.body.startswith(b"data: {") and reply.body.endswith(b"data: [DONE]\n\n")


def test_http_1_0_gets_no_100() -> None:
    reply = ask(
        f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n{length(BODY)}"
    )
    assert reply.status == 200


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    line = "GET /version" if version == "0.9" else f"GET /version HTTP/{version}"
    reply = ask(f"{line}\r\n\r\n")
    assert (reply.status, reply.headers["connection"]) == (505, "close")


# ---------------------------------------------------------------- Expect: 100-continue
def test_a_client_that_asks_before_it_sends_is_told_to_go_on() -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + f"Expect: 100-Continue\r\nContent-Length: {len(BODY)}\r\n\r\n")
        assert (await wire.reply()).status == 100
        wire.send(BODY)
        assert (await wire.reply()).status == 200
        wire.send(GET)
        assert (await wire.reply()).status == 200

    run(test)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + "Content-Length: 99999999\r\n", 413),
        (POST.replace("/v1/completions", "/nowhere") + "Content-Length: 9\r\n", 404),
        (POST.replace("POST", "PUT") + "Content-Length: 9\r\n", 405),
        (POST.replace("application/json", "text/plain") + "Content-Length: 9\r\n", 400),
        (POST + "Content-Length: 9\r\nContent-Encoding: gzip\r\n", 415),
    ],
    ids=["413", "404", "405", "400", "415"],
)
def test_a_body_that_is_refused_by_its_head_gets_the_error_in_place_of_100(head: str, status: int) -> None:
    """And the end of the connection: whether the body comes nevertheless is not known."""

    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(head + "Expect: 100-continue\r\n\r\n")
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert await wire.is_closed()

    run(test)


def test_one_close_is_enough() -> None:
    reply = ask(POST + "Transfer-Encoding: gzip, chunked\r\nExpect: 100-continue\r\n\r\n")  # checks for doubled headers
    assert (reply.status, reply.headers["connection"]) == (400, "close")


def test_other_expectations_are_refused() -> None:
    reply = ask(POST + f"Expect: 200-ok\r\n{length(BODY)}")
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (417, "ExpectationFailedError")


def test_a_refused_body_is_read_to_its_end_so_that_the_error_arrives() -> None:
    """A connection that is closed with bytes unread is reset, and the client never sees why."""

    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + "Content-Length: 8000000\r\n\r\n")
        for _ in range(80):
            wire.send(b" " * 100_000)
            await wire.writer.drain()
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert await wire.is_closed()

    run(test, max_body_bytes=1_000_000)


def test_a_refused_body_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LINGER_SECONDS", 0.05)

    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + "Content-Length: 8000000\r\n\r\n" + " " * 1000)
        assert (await wire.reply()).status == 413
        while server.http.server_state.connections:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.01)

    run(test, max_body_bytes=1000)


# ---------------------------------------------------------------- hosts and targets
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]", "[::1]:8000", "a.example.", "x_y", "h:", "", "é"]
)
def test_every_form_of_a_host_is_taken(host: str) -> None:
    assert ask(f"GET /version HTTP/1.1\r\nHost: {host}\r\n\r\n").status == 200


@pytest.mark.parametrize(
    ("hosts", "what"),
    [
        ([], "no Host header"),
        (["localhost", "localhost"], "more than one Host"),
        (["a b"], "not a host name"),
        (["user@a"], "not a host name"),
        (["a:b"], "not a host name"),
        (["http://a"], "not a host name"),
        (["[::1"], "not a host name"),
        (["a, b"], "not a host name"),
    ],
)
def test_a_request_names_one_host(hosts: list[str], what: str) -> None:
    reply = ask("GET /version HTTP/1.1\r\n" + "".join(f"Host: {host}\r\n" for host in hosts) + "\r\n")
    assert reply.status == 400 and what in json.loads(reply.body)["error"]["message"]


def test_http_1_0_needs_no_host() -> None:
    assert ask("GET /version HTTP/1.0\r\n\r\n").status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/version", "/version/", "/version?a=b", "/version#x", "/%76ersion", "//version", "http://localhost/version",
        "HTTP://localhost:80/version?x=http://y/z", "http://localhost//version",
    ],
)  # fmt: skip
def test_a_target_may_be_absolute_encoded_and_with_a_query(target: str) -> None:
    assert ask(f"GET {target} HTTP/1.1\r\n{HOST}\r\n").status == 200


def test_the_host_of_an_absolute_target_is_the_one_that_counts() -> None:
    evil = f"GET http://evil.example/version HTTP/1.1\r\n{HOST}\r\n"
    assert ask(evil, allowed_hosts=["localhost"]).status == 403
    good = "GET http://localhost/version HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert ask(good, allowed_hosts=["localhost"]).status == 200


@pytest.mark.parametrize("target", ["*", "http://localhost", "/%zz", "/%ff%00", "/a\\b"])
def test_a_target_that_leads_nowhere_is_a_404(target: str) -> None:
    assert ask(f"OPTIONS {target} HTTP/1.1\r\n{HOST}\r\n", disable_ui=True).status == 404


def test_a_tunnel_is_not_made() -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(f"CONNECT localhost:80 HTTP/1.1\r\n{HOST}\r\n{GET}")
        assert (await wire.reply()).status == 404
        assert await wire.is_closed()

    run(test, disable_ui=True)


# ---------------------------------------------------------------- methods
@pytest.mark.parametrize(
    ("line", "status"), [("HEAD /version", 200), ("HEAD /nowhere", 404), ("HEAD /v1/completions", 405)]
)
def test_head_has_the_head_of_get_and_no_body(line: str, status: int) -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(f"{line} HTTP/1.1\r\n{HOST}\r\n{GET}")
        reply = await wire.reply(has_body=False)
        assert reply.status == status and int(reply.headers["content-length"]) > 0
        assert (await wire.reply()).status == 200  # what follows the head is the next reply

    run(test)


@pytest.mark.parametrize("line", ["get /version", "Get /version", "BREW /version"])
def test_methods_are_written_in_capitals(line: str) -> None:
    reply = ask(f"{line} HTTP/1.1\r\n{HOST}\r\n")
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert "method" in json.loads(reply.body)["error"]["message"]


# ---------------------------------------------------------------- where a request ends
CHUNKED = f"e\r\n{BODY}\r\n0\r\n\r\n"
FRAMED = [
    length(BODY),
    f"Transfer-Encoding: chunked\r\n\r\n{CHUNKED}",
    f"transfer-encoding: Chunked\r\n\r\ne;ext=1\r\n{BODY}\r\n0\r\nTrailer: x\r\n\r\n",
]
SMUGGLED = [
    f"Content-Length: {len(BODY)}\r\n{length(BODY)}",
    f"Content-Length: 5\r\n{length(BODY)}",
    f"Content-Length: 14, 14\r\n\r\n{BODY}",
    f"Content-Length: +14\r\n\r\n{BODY}",
    f"Content-Length: -1\r\n\r\n{BODY}",
    f"Content-Length: 0x0e\r\n\r\n{BODY}",
    f"Content-Length: \r\n\r\n{BODY}",
    f"Content-Length : 14\r\n\r\n{BODY}",
    f"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: chunked\r\nContent-Length: 14\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: chunked, identity\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: identity, chunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: gzip, chunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: xchunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding:\x0bchunked\r\n\r\n{CHUNKED}",
    f"Transfer-Encoding: chunked\r\n\r\n0xe\r\n{BODY}\r\n0\r\n\r\n",
    f"Transfer-Encoding: chunked\r\n\r\ne\n{BODY}\r\n0\r\n\r\n",
    f"X: a\r\n Content-Length: 14\r\n\r\n{BODY}",
    f"X: a\rContent-Length: 14\r\n\r\n{BODY}",
    f"X: a\nContent-Length: 14\r\n\r\n{BODY}",
    f"X: a\0b\r\n{length(BODY)}",
]


@pytest.mark.parametrize("framed", FRAMED)
def test_a_body_has_a_length_or_chunks(framed: str) -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        for _ in range(2):
            wire.send(POST + framed)
            assert (await wire.reply()).status == 200

    run(test)


@pytest.mark.parametrize("framed", SMUGGLED)
def test_a_body_whose_end_is_in_doubt_is_refused_and_ends_the_connection(framed: str) -> None:
    """What a proxy takes for a body must not be another request here."""

    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + framed + GET)
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert json.loads(reply.body)["error"]["type"] == "BadRequestError"
        assert await wire.is_closed()
        assert server.server.engine.requests == []

    run(test)


def test_chunks_are_for_http_1_1() -> None:
    reply = ask(f"POST /v1/completions HTTP/1.0\r\n{JSON}Connection: keep-alive\r\n{FRAMED[1]}")
    assert (reply.status, reply.headers["connection"]) == (400, "close")


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + length(STREAM) + GET + POST + length(BODY) + GET)
        stream, version, whole, last = [await wire.reply() for _ in range(4)]
        assert stream.body.endswith(b"[DONE]\n\n") and b"version" in version.body and b"version" in last.body
        assert json.loads(whole.body)["choices"][0]["text"] == "Hi!"

    run(test)


def test_what_is_no_request_behind_one_does_not_break_into_its_reply() -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(POST + length(STREAM) + "nonsense\r\n\r\n")
        assert (await wire.reply()).body.endswith(b"[DONE]\n\n")
        assert await wire.is_closed()

    run(test)


# ---------------------------------------------------------------- offers to speak something else
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("offer", [H2C, "Connection: upgrade\r\nUpgrade: websocket\r\n", "Upgrade: h2c\r\n"])
@pytest.mark.parametrize("cut", [0, 3, len(BODY)])
def test_an_offer_to_upgrade_is_not_taken_up_and_the_body_is_read(offer: str, cut: int) -> None:
    """Java's client offers HTTP/2 with its first request."""

    async def test(server: Served) -> None:
        wire = await server.connect()
        head = POST + offer + length(BODY)
        wire.send(head[: len(head) - cut])
        await wire.writer.drain()
        wire.send(head[len(head) - cut :] + GET)
        reply = await wire.reply()
        assert reply.status == 200 and "upgrade" not in reply.headers
        assert (await wire.reply()).status == 200

    run(test)


def test_an_offer_with_close_still_closes() -> None:
    async def test(server: Served) -> None:
        wire = await server.connect()
        wire.send(f"GET /version HTTP/1.1\r\n{HOST}Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert (await wire.reply()).headers["connection"] == "close"
        assert await wire.is_closed()

    run(test)


def test_tls_on_a_plain_port_is_named(caplog: pytest.LogCaptureFixture) -> None:
    reply = ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert reply.status == 400 and "TLS" in json.loads(reply.body)["error"]["message"]
    assert "TLS" in caplog.text
