"""Bodies too large, too slow or cut short, and clients that go away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.server import app as app_module
from octavo.server.http import exchange
from support.server_fakes import answer, call, drive, make_server

PATHS = ["/v1/chat/completions", "/v1/completions"]


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": "a", **fields} if path == PATHS[1] else {"messages": [{"role": "user", "content": "a"}], **fields}


# ---------------------------------------------------------------- size and time of the body
def test_413_is_decided_from_the_length_before_anything_is_read() -> None:
    server = make_server()

    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"99999999999")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    asyncio.run(server.app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize("length", ["", "5", "99999999999" * 30, "-1", "x"])
def test_413_while_reading_when_the_length_is_missing_or_lies(length: str) -> None:
    server = make_server(max_body_bytes=1000)
    reply = call(server.app, "POST", "/v1/completions", None, {"content-length": length}, chunks=[b"x" * 400] * 10)
    assert (reply.status, reply.error["type"]) == (413, "RequestTooLargeError")


def test_a_body_of_the_limit_is_read() -> None:
    server = make_server(max_body_bytes=14)
    assert server.post("/tokenize", b'{"prompt":"a"}').status == 200
    reply = server.post("/tokenize", b'{"prompt":"a"} ')
    assert reply.status == 413 and "14 bytes" in reply.error["message"]


def test_a_body_in_many_chunks_is_one() -> None:
    chunks = [bytes([byte]) for byte in b'{"prompt": "abc"}']
    reply = call(make_server().app, "POST", "/tokenize", chunks=chunks)
    assert reply.json()["tokens"] == list(b"abc")


def test_a_body_that_never_comes_ends_in_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "body_limits", lambda config: exchange.BodyLimits(seconds=0.01))
    server = make_server()

    async def run() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/tokenize", "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        await server.app(scope, receive, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 408


def test_depth_64_is_read_and_65_is_not() -> None:
    for depth, expected in ((64, True), (65, False)):
        data = b"[" * depth + b"]" * depth
        if expected:
            exchange.decode_json(data)
        else:
            with pytest.raises(exchange.InvalidRequest):
                exchange.decode_json(data)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert len(exchange.decode_json(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000
    assert exchange.decode_json(b'"' + b"[" * 1000 + b'"') == "[" * 1000


# ---------------------------------------------------------------- clients that go away (E10)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_deltas", [0, 1, 3])
def test_e10_a_client_that_leaves_aborts_its_request(path: str, stream: bool, num_deltas: int) -> None:
    async def run() -> None:
        gone, never = asyncio.Event(), asyncio.Event()
        reached = asyncio.Event()

        class Reached(asyncio.Event):
            async def wait(self) -> Any:
                reached.set()
                return await never.wait()

        server = make_server(lambda _: [*answer("Hello")[:num_deltas], Reached()])
        request = asyncio.create_task(drive(server.app, "POST", path, body_for(path, stream=stream), disconnect=gone))
        await reached.wait()
        assert server.engine.num_open == 1
        gone.set()
        reply = await request
        assert (server.engine.num_open, server.engine.num_closed) == (0, 1)
        assert b"[DONE]" not in reply.body
        if not stream or num_deltas == 0:
            assert reply.status == 0  # nothing is sent to nobody

    asyncio.run(run())


def test_e10_leaving_aborts_all_prompts() -> None:
    async def run() -> None:
        gone, never = asyncio.Event(), asyncio.Event()
        server = make_server(lambda _: [answer("ab")[0], never])
        wrote = asyncio.Event()
        request = asyncio.create_task(
            drive(
                server.app, "POST", PATHS[1], {"prompt": ["a", "b", "c"], "stream": True}, disconnect=gone,
                on_write=lambda _: wrote.set(),
            )
        )  # fmt: skip
        await wrote.wait()
        gone.set()
        await request
        assert server.engine.num_open == 0

    asyncio.run(run())


def test_a_client_that_leaves_while_its_body_is_read_costs_nothing() -> None:
    server = make_server()

    async def run() -> None:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError("nobody reads")

        scope = {
            "type": "http", "method": "POST", "path": PATHS[0], "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        await server.app(scope, receive, send)

    asyncio.run(run())
    assert server.engine.requests == []


def test_a_cancellation_from_outside_goes_on_and_aborts() -> None:
    async def run() -> None:
        never = asyncio.Event()
        server = make_server(lambda _: [answer("ab")[0], never])
        wrote = asyncio.Event()
        task = asyncio.create_task(
            drive(server.app, "POST", PATHS[0], body_for(PATHS[0], stream=True), on_write=lambda _: wrote.set())
        )
        await wrote.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.engine.num_open == 0

    asyncio.run(run())


def test_no_task_is_left_behind() -> None:
    async def run() -> None:
        server = make_server()
        for stream in (False, True):
            await drive(server.app, "POST", PATHS[0], body_for(PATHS[0], stream=stream))
            await drive(server.app, "POST", PATHS[1], {"prompt": ["a", "b"], "stream": stream})
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
