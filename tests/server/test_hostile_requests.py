"""Requests that mean harm, class by class: what elsewhere stopped a server is a clean answer here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.base.log import setup_logging
from octavo.server.http.exchange import InvalidRequest, decode_json
from support.server_fakes import CONTEXT, VOCAB, Server, answer, call, make_server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = '"messages": [{"role": "user", "content": "a"}]'


def post(server: Server, path: str, fields: str) -> Any:
    """A body of JSON text, because what is sent here is nothing that Python would write."""
    start = USER if path == CHAT else '"prompt": "a"'
    return server.post(path, f"{{{start}, {fields}}}".encode())


# ---------------------------------------------------------------- fan-out
FAN_OUT: list[tuple[dict[str, Any], str]] = [
    ({"n": 10**9}, "n"),
    ({"n": 2**63 - 1}, "n"),
    ({"n": 129}, "n"),
    ({"best_of": 10**9}, "best_of"),
    ({"n": 2, "best_of": 129}, "best_of"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": [[1]] * 65}, "prompt"),
    ({"prompt": ["a"] * 33, "n": 2}, "prompt"),
    ({"prompt": ["a"] * 33, "best_of": 2}, "prompt"),
    ({"prompt": ["a"] * 22, "n": 2, "best_of": 3}, "prompt"),
    ({"prompt": ["a"] * 33, "use_beam_search": True, "best_of": 2}, "prompt"),
    ({"prompt": ["a"] * 17, "use_beam_search": True, "n": 4}, "prompt"),
    ({"prompt": ["a"] * 2, "use_beam_search": True, "best_of": 33}, "prompt"),
    ({"use_beam_search": True, "best_of": 10**9}, "best_of"),
    ({"prompt": ["a"] * 100_000}, "prompt"),
]


@pytest.mark.parametrize("row", FAN_OUT, ids=lambda row: str(row[0])[:70])
def test_a_request_of_too_many_sequences_is_refused_and_starts_none(row: Any) -> None:
    """S9, S10, S21: prompts times samples or beams, all counted."""
    fields, param = row
    server = make_server(max_fanout=64)
    reply = server.post(TEXT, {"prompt": "a", **fields})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert server.engine.requests == []


# ---------------------------------------------------------------- numbers
FLOATS = [
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty",
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "nan", "+1", "01", ".5", "0x1"])
def test_what_is_no_number_of_json_is_a_400_in_every_field(path: str, value: str) -> None:
    server = make_server()
    places = [(f'"{name}": {value}', name) for name in (*FLOATS, "n", "seed", "logprobs")]
    places.append((f'"logit_bias": {{"1": {value}}}', "logit_bias.1"))
    places.append((f'"guided_json": {{"minimum": {value}}}', "guided_json.minimum"))
    places.append((f'"metadata": [{value}]', "metadata.0"))
    for text, param in places:
        reply = post(server, path, text)
        assert (reply.status, reply.error["param"]) == (400, param), text
        assert reply.error["message"].startswith("The body is not valid JSON: "), text
    assert server.engine.requests == []


HUGE = [2**63, -(2**63) - 1, 2**64, 10**30, 10**300]


@pytest.mark.parametrize("text", [*map(str, HUGE), "1" + "0" * 5000, "-" + "9" * 100_000], ids=lambda text: text[:20])
def test_integers_of_any_length_are_refused_without_an_echo(text: str) -> None:
    server = make_server()
    for name in ("n", "seed", "max_tokens", "top_k", "priority"):
        reply = post(server, CHAT, f'"{name}": {text}')
        assert reply.status == 400 and len(reply.body) < 500, name
    assert post(server, TEXT, f'"stop_token_ids": [{text}]').status == 400
    assert server.post(TEXT, f'{{"prompt": [{text}]}}'.encode()).status == 400


# ---------------------------------------------------------------- ids
@pytest.mark.parametrize("token_id", [-1, VOCAB, VOCAB + 1, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)])
def test_ids_outside_the_logits_never_reach_the_engine(token_id: int) -> None:
    server = make_server()
    bodies: list[tuple[str, dict[str, Any], str]] = [
        (TEXT, {"prompt": [token_id]}, "prompt"),
        (TEXT, {"prompt": [[1], [1, token_id]]}, "prompt.1"),
        (TEXT, {"prompt": "a", "stop_token_ids": [token_id]}, "stop_token_ids"),
        (TEXT, {"prompt": "a", "stop_token_ids": [token_id], "min_tokens": 3}, "stop_token_ids"),
        (TEXT, {"prompt": "a", "allowed_token_ids": [1, token_id]}, "allowed_token_ids"),
        (TEXT, {"prompt": "a", "logit_bias": {str(token_id): 1}}, "logit_bias"),
        ("/detokenize", {"tokens": [token_id]}, "tokens"),
    ]
    for path, body, param in bodies:
        reply = server.post(path, body)
        assert (reply.status, reply.error["param"]) == (400, param), body
    assert server.engine.requests == []


EMPTY: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [""]}, "prompt"),
    (TEXT, {"prompt": ["a", ""]}, "prompt.1"),
    (TEXT, {"prompt": [[1], []]}, "prompt"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": "", "echo": True, "max_tokens": 0}, "prompt"),
    (TEXT, {"prompt": [], "echo": True, "logprobs": 1}, "prompt"),
    (TEXT, {"prompt": "", "truncate_prompt_tokens": 1}, "prompt"),
    (CHAT, {"messages": []}, "messages"),
]


@pytest.mark.parametrize("row", EMPTY, ids=str)
def test_e9_an_empty_prompt_is_a_400(row: Any) -> None:
    path, body, param = row
    server = make_server()
    assert (server.post(path, body).status, server.post(path, body).error["param"]) == (400, param)
    assert server.engine.requests == []


# ---------------------------------------------------------------- the edge of the context (W29)
@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "is_taken"),
    [
        (CONTEXT - 10, 9, True),  # one less than the context
        (CONTEXT - 10, 10, True),
        (CONTEXT - 10, 11, False),
        (CONTEXT - 1, 1, True),
        (CONTEXT - 1, 2, False),
        (CONTEXT - 1, None, True),
        (CONTEXT, 1, False),
        (CONTEXT, None, False),
        (CONTEXT + 1, None, False),
        (1, CONTEXT - 1, True),
        (1, CONTEXT, False),
        (1, 2**63 - 1, False),
    ],
)
def test_e8_w29_the_context_is_filled_to_its_last_token_and_no_further(
    num_prompt: int, max_tokens: int | None, is_taken: bool
) -> None:
    server = make_server()
    num_role = len("user:")
    text = server.complete([1] * num_prompt, max_tokens=max_tokens)
    chat = server.chat("x" * (num_prompt - num_role), max_tokens=max_tokens) if num_prompt > num_role else None
    for reply in filter(None, (text, chat)):
        assert reply.status == (200 if is_taken else 400)
        if not is_taken:
            assert reply.error["code"] == "context_length_exceeded"
            assert str(CONTEXT) in reply.error["message"] and f"prompt has {num_prompt}" in reply.error["message"]
    for request in server.engine.requests:
        assert len(request.prompt_token_ids) + (request.params.max_tokens or 0) <= CONTEXT


# ---------------------------------------------------------------- depth and keys
def _deep(depth: int, pattern: str) -> bytes:
    """JSON of `depth` brackets, inner ones by the pattern: a for arrays, o for objects, in turn."""
    kinds = [pattern[i % len(pattern)] for i in range(depth)]
    return (
        "".join("[" if kind == "a" else '{"k":' for kind in kinds)
        + "1"
        + "".join("]" if kind == "a" else "}" for kind in reversed(kinds))
    ).encode()


@pytest.mark.parametrize("pattern", ["a", "o", "ao", "oa", "aao"])
@pytest.mark.parametrize(("depth", "is_read"), [(63, True), (64, True), (65, False), (1000, False), (200_000, False)])
def test_depth_is_counted_in_arrays_and_objects_alike(pattern: str, depth: int, is_read: bool) -> None:
    data = _deep(depth, pattern)
    if is_read:
        assert decode_json(data) == json.loads(data)
    else:
        with pytest.raises(InvalidRequest, match="nested deeper than 64"):
            decode_json(data)


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
@pytest.mark.parametrize("pattern", ["a", "o", "oa"])
def test_a_deep_body_is_a_400_on_every_route(path: str, pattern: str) -> None:
    reply = make_server().post(path, b'{"metadata": ' + _deep(100_000, pattern) + b"}")
    assert (reply.status, reply.error["param"]) == (400, None)


LAST_WINS: list[tuple[str, str, Any]] = [
    ('"n": 2, "n": 1', "n", 1),
    ('"temperature": 9, "temperature": 0.5', "temperature", 0.5),
    ('"max_tokens": 9, "max_tokens": 3', "max_tokens", 3),
    ('"seed": "x", "seed": 3', "seed", 3),
    ('"stop": 5, "stop": ["x"]', "stop", ("x",)),
    ('"logit_bias": {"1": 5, "1": 7}', "logit_bias", {1: 7.0}),
    ('"logit_bias": {"900": 5}, "logit_bias": null', "logit_bias", None),
    ('"top_p": 0.5, "top_p": null', "top_p", 1.0),
    ('"stop_token_ids": [900], "stop_token_ids": []', "stop_token_ids", ()),
    ('"guided_regex": "refused", "guided_regex": null', "grammar", None),
    ('"guided_regex": null, "guided_regex": "a"', "grammar", "regex a"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("row", LAST_WINS, ids=str)
def test_of_two_equal_keys_the_last_counts_for_the_check_and_for_the_use(path: str, row: Any) -> None:
    fields, name, expected = row
    server = make_server(lambda request: answer("Hi", n=request.params.n))
    assert post(server, path, fields).status == 200
    assert getattr(server.engine.requests[0].params, name) == expected


def test_the_last_of_two_prompts_is_the_one_that_is_checked_and_used() -> None:
    server = make_server()
    server.post(TEXT, b'{"prompt": [900], "prompt": "b"}')
    server.post(CHAT, b'{"messages": 5, "messages": [{"role": "x", "role": "user", "content": "a", "content": "c"}]}')
    assert [request.prompt_token_ids for request in server.engine.requests] == [list(b"b"), list(b"user:c")]
    assert server.post(TEXT, b'{"prompt": "b", "prompt": [900]}').status == 400


# ---------------------------------------------------------------- keys of the API
KEY = "correct-horse"


@pytest.mark.parametrize("guess", [*(KEY[:i] for i in range(len(KEY))), KEY + "x", KEY.upper(), KEY[::-1], "\xff" * 13])
def test_w17_every_wrong_guess_is_compared_whole_and_refused_alike(guess: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    reply = make_server(api_key=[KEY, "other"]).get("/v1/models", {"authorization": f"Bearer {guess}"})
    assert (reply.status, reply.error["message"]) == (401, "Incorrect API key.")
    assert compared == [(32, 32)] * 2


PATHS = [
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/",
    "/metrics",
    "/version",
    "/docs",
    "/openapi.json",
    "/tokenize",
    "/x",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "ODD"])
def test_e2_d12_no_method_gets_around_the_key(method: str, path: str) -> None:
    assert call(make_server(api_key=[KEY]).app, method, path).status == 401


# ---------------------------------------------------------------- the log (W27)
EVIL = "x\r\n2026-01-01 ERROR octavo: forged \x1b[2J\u202e\u2028\x00"


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "octavo", "uvicorn")}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


LOGGED: list[tuple[str, Any]] = [
    (CHAT, {"model": EVIL}),
    (CHAT, {"user": EVIL}),
    (CHAT, {"stop": [EVIL]}),
    (CHAT, {"messages": [{"role": "user", "content": EVIL}]}),
    (CHAT, {"messages": [{"role": EVIL, "content": "a"}]}),
    (CHAT, {"request_id": EVIL}),
    (CHAT, {"cache_salt": EVIL}),
    (CHAT, {"response_format": {"type": EVIL}}),
    (CHAT, {"guided_regex": EVIL}),
    (CHAT, {"guided_choice": [EVIL]}),
    (CHAT, {EVIL: 1}),
    (TEXT, {"prompt": EVIL}),
    (TEXT, {"prompt": "a", "suffix": EVIL}),
    (f"/v1/models/{EVIL}", None),
    (f"/{EVIL}", None),
]


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("row", LOGGED, ids=lambda row: f"{row[0]!r} {row[1]}"[:60])
def test_w27_nothing_that_a_client_writes_begins_a_line_of_the_log(
    row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("debug")
    path, body = row
    server = make_server(disable_log_requests=False)
    if body is None:
        server.get(path)
    else:
        server.post(path, {"messages": [{"role": "user", "content": "a"}], **body} if path == CHAT else body)
    for failure in (KeyError(EVIL), RuntimeError(EVIL)):
        server.engine.refusal = failure
        server.chat(user=EVIL)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 10 and not [line for line in lines if line.startswith(("2026", "x"))]
    assert all(line.isprintable() for line in lines)


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(
    "header", ["x-request-id", "authorization", "user-agent", "x-session-id", "traceparent", "host"]
)
def test_w27_nor_does_a_header(header: str, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("debug")
    server = make_server(disable_log_requests=False, api_key=[KEY])
    value = "secret\x1b[2J\x85forged"
    server.post(TEXT, {"prompt": "a"}, {"authorization": f"Bearer {KEY}", header: value})
    text = capsys.readouterr().err
    assert text and "\x1b" not in text and "\x85" not in text and KEY not in text


# ---------------------------------------------------------------- metrics (W28)
VARIED: list[tuple[str, Any]] = [
    ("path", lambda server, i: server.get(f"/nowhere/{i}")),
    ("path under a route", lambda server, i: server.get(f"/v1/models/{i}")),
    ("path with a query", lambda server, i: server.get(f"/health?x={i}")),
    ("method", lambda server, i: call(server.app, f"ODD{i}", "/v1/models")),
    ("model", lambda server, i: server.chat(model=f"m{i}")),
    ("user", lambda server, i: server.chat(user=f"u{i}")),
    ("request id", lambda server, i: server.chat(request_id=f"r{i}")),
    ("header", lambda server, i: server.post(TEXT, {"prompt": "a"}, {"x-request-id": f"h{i}", "user-agent": f"a{i}"})),
    ("stop", lambda server, i: server.chat(stop=f"s{i}")),
    ("unknown field", lambda server, i: server.chat(**{f"field{i}": 1})),
    ("salt and priority", lambda server, i: server.chat(cache_salt=f"c{i}", priority=i)),
    ("schema", lambda server, i: server.chat(guided_regex=f"a{{{i + 1}}}")),
]


@pytest.mark.parametrize("row", VARIED, ids=lambda row: row[0])
def test_w28_no_value_of_a_client_becomes_a_label(row: Any) -> None:
    _, send = row
    server = make_server()
    send(server, 1000)
    server.get("/metrics")
    before = server.get("/metrics").body.count(b"\n")
    for i in range(20):
        send(server, i)
    assert server.get("/metrics").body.count(b"\n") - before <= 2


# ---------------------------------------------------------------- details of the replies
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["tiny", "alias", None, ""])
def test_d11_a_reply_names_the_model_as_it_was_asked_for(name: str | None, stream: bool) -> None:
    server = make_server()
    for reply in (server.chat(model=name, stream=stream), server.complete(model=name, stream=stream)):
        bodies = reply.events() if stream else [reply.json()]
        assert {body["model"] for body in bodies} == {name or "tiny"}


def test_d6_d7_what_asks_for_nothing_is_accepted() -> None:
    server = make_server()
    assert server.chat(tool_choice="none").status == 200
    assert server.chat(top_logprobs=0).status == 200
    assert server.chat(top_logprobs=0, logprobs=False).status == 200


def test_d1_errors_in_a_stream_have_the_form_of_all_errors() -> None:
    server = make_server(lambda _: [*answer("Hi")[:1], RuntimeError("x")])
    for reply in (server.chat(stream=True), server.complete(stream=True)):
        error = reply.events()[-1]["error"]
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["outlines", "lm-format-enforcer", "xgrammar", "guidance", "auto"])
def test_g5_g22_a_request_may_name_any_backend(name: str) -> None:
    assert make_server().chat(guided_regex="a", guided_decoding_backend=name).status == 200


@pytest.mark.parametrize("field", ["regex", "ebnf", "grammar", "json_schema", "logits_processors", "logprob_token_ids"])
def test_g23_s29_other_servers_fields_are_refused_by_name_and_never_dropped(field: str) -> None:
    for reply in (make_server().chat(**{field: "a"}), make_server().complete(**{field: "a"})):
        assert (reply.status, reply.error["param"]) == (400, field)


def test_a_prompt_s_log_probabilities_are_counted_in_whole_numbers() -> None:
    for value in (1.5, "1", True, [1]):
        error = make_server().chat(prompt_logprobs=value).error
        assert (error["type"], error["param"]) == ("BadRequestError", "prompt_logprobs")


def test_the_request_id_is_in_the_header_and_in_the_body() -> None:
    for reply in (make_server().chat(request_id="mine"), make_server().complete(request_id="mine")):
        assert reply.headers["x-request-id"] == "mine" and reply.json()["id"].endswith("-mine")
