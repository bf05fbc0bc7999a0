"""Limits and habits of the server that are its settings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.base.errors import ServerError
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.server.http.framing import KEEP_ALIVE
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import Server, answer, drive, make_server, with_logprobs

PATHS = ["/v1/chat/completions", "/v1/completions"]


def ask(server: Server, path: str, **fields: Any) -> Any:
    return server.complete(**fields) if path == PATHS[1] else server.chat(**fields)


# ---------------------------------------------------------------- limits
LIMITS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"max_n": 3}, {"n": 3}, {"n": 4}, "n"),
    ({"max_stop_strings": 2}, {"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}, "stop"),
    ({"max_stop_strings": 0}, {"stop": []}, {"stop": "a"}, "stop"),
    ({"max_logit_bias": 1}, {"logit_bias": {"1": 1}}, {"logit_bias": {"1": 1, "2": 1}}, "logit_bias"),
    ({"max_logprobs": 2}, {"logprobs": 2}, {"logprobs": 3}, "logprobs"),
    ({"max_prompts": 2}, {"prompt": ["a", "b"]}, {"prompt": ["a", "b", "c"]}, "prompt"),
    ({}, {"stream": True, "stream_interval": 1}, {"stream": True, "stream_interval": 0}, "stream_interval"),
    ({}, {"stream": False}, {"stream_interval": 5}, "stream_interval"),
]


@pytest.mark.parametrize("row", LIMITS, ids=str)
def test_the_limit_is_allowed_and_one_more_is_refused_by_name(row: Any) -> None:
    config, allowed, refused, param = row
    server = make_server(lambda request: answer("Hi", n=request.params.n), **config)
    if "logprobs" not in allowed:
        assert server.complete(**allowed).status == 200
    reply = server.complete(**refused)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert len(server.engine.requests) <= 2


def test_the_depth_of_a_body_is_a_setting() -> None:
    server = make_server(max_json_depth=5)
    assert server.chat(metadata={"a": {"b": {"c": {}}}}).status == 200
    reply = server.chat(metadata={"a": {"b": {"c": {"d": {}}}}})
    assert reply.status == 400 and "deeper than 5" in reply.error["message"]


# ---------------------------------------------------------------- host names
HOSTS = [
    ("127.0.0.1", "localhost:8000", 200),
    ("127.0.0.1", "LOCALHOST", 200),
    ("127.0.0.1", "127.0.0.1:1", 200),
    ("127.0.0.1", "127.9.9.9", 200),
    ("localhost", "[::1]:8000", 200),
    ("::1", "[::1]", 200),
    ("localhost", "app.localhost:80", 200),
    ("localhost", "localhost.", 200),
    ("127.0.0.1", "evil.example", 403),
    ("127.0.0.1", "evil.example:8000", 403),
    ("127.0.0.1", "localhost.evil.example", 403),
    ("127.0.0.1", "127.0.0.1.evil.example", 403),
    ("127.0.0.1", "10.0.0.1", 403),
    ("localhost", "evil@localhost.example", 400),
    ("::1", "[::2]", 403),
    (None, "anything.example", 200),
    ("0.0.0.0", "anything.example", 200),
]


@pytest.mark.parametrize(("bound", "host", "status"), HOSTS)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
def test_h19_a_loopback_server_answers_to_loopback_names_only(bound: str, host: str, status: int, path: str) -> None:
    reply = make_server(host=bound).get(path, {"host": host})
    assert reply.status == status
    if status == 403:
        assert reply.error["code"] == "host_not_allowed" and "evil" not in reply.error["message"]


def test_h19_allowed_hosts() -> None:
    server = make_server(host="127.0.0.1", allowed_hosts=["Models.example"])
    assert [server.get("/health", {"host": h}).status for h in ("models.example:443", "localhost", "other")] == [
        200, 200, 403,
    ]  # fmt: skip
    assert make_server(host="0.0.0.0", allowed_hosts=["a.example"]).get("/health", {"host": "b"}).status == 403
    assert make_server(host="127.0.0.1", allowed_hosts=["*"]).get("/health", {"host": "b"}).status == 200
    assert make_server(host="127.0.0.1").get("/health").status == 200  # no Host header: no browser
    assert make_server(uds="/x").get("/health", {"host": "b"}).status == 200


def test_h19_the_host_is_looked_at_before_the_key() -> None:
    assert make_server(host="127.0.0.1", api_key=["k"]).get("/v1/models", {"host": "evil"}).status == 403


# ---------------------------------------------------------------- usage of streams
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("options", "final", "running"),
    [
        (None, True, False),
        ({"include_usage": False}, True, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
def test_enable_force_include_usage(path: str, options: Any, final: bool, running: bool) -> None:
    server = make_server(enable_force_include_usage=True)
    events = ask(server, path, stream=True, stream_options=options).events()
    assert (events[-1]["choices"] == []) == final and events[-1]["usage"]["completion_tokens"] == 3
    assert all(bool(e["usage"]) == running for e in events[:-1])
    whole = ask(make_server(), path, stream=True).events()
    assert all("usage" not in e for e in whole)


# ---------------------------------------------------------------- stream_interval (E60)
def texts(events: list[Any], path: str) -> list[str]:
    found = []
    for event in events:
        for choice in event["choices"]:
            text = choice["text"] if path == PATHS[1] else choice["delta"].get("content", "")
            if text or choice["finish_reason"]:
                found.append(text)
    return found


@pytest.mark.parametrize("path", PATHS)
def test_e60_tokens_gather_but_the_first_and_the_last_do_not_wait(path: str) -> None:
    server = make_server(lambda _: answer("abcdefgh"), stream_interval=3)
    assert texts(ask(server, path, stream=True).events(), path) == ["a", "bcd", "efg", "h"]
    assert texts(ask(server, path, stream=True, stream_interval=1).events(), path) == list("abcdefgh")
    assert texts(ask(server, path, stream=True, stream_interval=100).events(), path) == ["a", "bcdefgh"]


def test_e60_choices_are_counted_apart_and_usage_is_of_all() -> None:
    server = make_server(lambda _: answer("abcde", n=2))
    fields = {"stream": True, "n": 2, "stream_interval": 2, "stream_options": {"include_usage": True}}
    events = server.complete(**fields).events()
    for index in (0, 1):
        mine = [e["choices"][0]["text"] for e in events[:-1] if e["choices"][0]["index"] == index]
        assert mine == ["a", "bc", "de"]
    assert events[-1]["usage"]["completion_tokens"] == 10


def test_e60_logprobs_gather_too() -> None:
    entries = [TokenLogprobs(-float(i), 1, [97], [-float(i)]) for i in range(5)]
    server = make_server(lambda _: with_logprobs(answer("abcde"), entries))
    events = server.complete(stream=True, stream_interval=2, logprobs=1).events()
    assert [e["choices"][0]["logprobs"]["token_logprobs"] for e in events] == [[0.0], [-1.0, -2.0], [-3.0, -4.0]]
    assert events[1]["choices"][0]["logprobs"]["text_offset"] == [1, 2]


def test_e60_what_was_held_comes_before_an_error() -> None:
    server = make_server(lambda _: [*answer("abcd")[:3], ServerError("broken")])
    events = server.complete(stream=True, stream_interval=50).events()
    assert [e["choices"][0]["text"] for e in events[:-1]] == ["a", "bc"]
    assert events[-1]["error"]["message"] == "broken"


def test_e60_a_held_start_of_a_character_is_no_first_chunk() -> None:
    deltas = [
        GenerationDelta([CompletionDelta(0, "", [1])], 1, 0, 1, False),
        GenerationDelta([CompletionDelta(0, "é", [2])], 1, 0, 2, False),
        GenerationDelta([CompletionDelta(0, "x", [3], None, "stop")], 1, 0, 3, True),
    ]
    events = make_server(lambda _: deltas).complete(stream=True, stream_interval=9).events()
    assert [e["choices"][0]["text"] for e in events] == ["é", "x"]


# ---------------------------------------------------------------- keep-alive (E58)
@pytest.mark.parametrize("path", PATHS)
def test_e58_a_silent_stream_gets_comments_before_and_between_its_events(path: str) -> None:
    async def run() -> bytes:
        silences = [asyncio.Event(), asyncio.Event()]
        first, *rest = answer("ab")
        server = make_server(lambda _: [silences[0], first, silences[1], *rest], sse_keep_alive_interval=0.001)
        count = 0

        def on_write(data: bytes) -> None:
            nonlocal count
            count = count + 1 if data == KEEP_ALIVE else 0
            if count == 3:
                next(s for s in silences if not s.is_set()).set()

        body: Any = {"prompt": "a"} if path == PATHS[1] else {"messages": [{"role": "user", "content": "a"}]}
        reply = await drive(server.app, "POST", path, {**body, "stream": True}, on_write=on_write)
        assert reply.status == 200 and server.engine.num_open == 0
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return reply.body

    body = asyncio.run(run())
    assert body.startswith(KEEP_ALIVE * 3 + b"data: ")
    assert body.count(KEEP_ALIVE * 3) == 2
    assert body.endswith(b"data: [DONE]\n\n")


def test_e58_an_error_after_a_comment_is_an_event_and_before_it_a_status() -> None:
    async def run(silence: bool) -> Any:
        wait = asyncio.Event()
        steps: list[Any] = [wait, ServerError("broken")] if silence else [ServerError("broken")]
        server = make_server(lambda _: steps, sse_keep_alive_interval=0.001 if silence else 60)
        return await drive(server.app, "POST", PATHS[1], {"prompt": "a", "stream": True}, on_write=lambda _: wait.set())

    late = asyncio.run(run(True))
    assert late.status == 200 and late.body.startswith(KEEP_ALIVE)
    assert b"broken" in late.body and late.body.endswith(b"data: [DONE]\n\n")
    early = asyncio.run(run(False))
    assert early.status == 500 and early.error["message"] == "broken"


def test_e58_a_client_that_leaves_a_silent_stream_aborts_it() -> None:
    async def run() -> None:
        gone = asyncio.Event()
        server = make_server(lambda _: [asyncio.Event()], sse_keep_alive_interval=0.001)
        await drive(
            server.app,
            "POST",
            PATHS[1],
            {"prompt": "a", "stream": True},
            disconnect=gone,
            on_write=lambda _: gone.set(),
        )
        assert (server.engine.num_open, server.engine.num_closed) == (0, 1)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
