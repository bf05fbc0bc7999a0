"""What is refused, how, and what is not: each row is a request and the status, type, param and code of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.error_table import CHAT, USER, bad_requests, chat, messages, nested, row_id, text
from support.server_fakes import CONTEXT, VOCAB, Server, make_server

BAD = "BadRequestError"


@pytest.fixture(scope="module")
def server() -> Server:
    return make_server()


@pytest.mark.parametrize("row", bad_requests(VOCAB, 64), ids=row_id)
def test_e5_e11_d1_a_bad_request_is_a_400_that_names_the_field(server: Server, row: Any) -> None:
    (path, body), param = row
    reply = server.post(path, body)
    assert reply.status == 400, reply.body[:300]
    error = reply.error
    assert (error["type"], error["param"], error["code"]) == (BAD, param, None), error
    assert 0 < len(error["message"]) < 5000
    assert reply.headers["content-type"] == "application/json"


def test_a_bad_request_never_reaches_the_engine() -> None:
    server = make_server()
    for (path, body), _ in bad_requests(VOCAB, 64):
        server.post(path, body)
    assert server.engine.requests == []


#: (path, body), then status, type, param, code.
OTHER_ERRORS: list[tuple[tuple[str, Any], tuple[int, str, str | None, str | None]]] = [
    (chat(model="other"), (404, "NotFoundError", "model", "model_not_found")),
    (text(model="other"), (404, "NotFoundError", "model", "model_not_found")),
    (("/tokenize", {"model": "other", "prompt": "a"}), (404, "NotFoundError", "model", "model_not_found")),
    (("/detokenize", {"model": "other", "tokens": []}), (404, "NotFoundError", "model", "model_not_found")),
    (("/v1/files", {}), (404, "NotFoundError", None, "route_not_served")),
    (("/v1/embeddings", {"input": "a"}), (400, "BadRequestError", "model", None)),
    (("/", {}), (405, "MethodNotAllowedError", None, "method_not_allowed")),
    (("/v1", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/v1/tokenize", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/v1/models", {}), (405, "MethodNotAllowedError", None, "method_not_allowed")),
    (("/health", {}), (405, "MethodNotAllowedError", None, "method_not_allowed")),
    (text(prompt=[1] * CONTEXT), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt=[1] * (CONTEXT - 9), max_tokens=10), (400, BAD, "max_tokens", "context_length_exceeded")),
    (text(prompt=[1], max_tokens=CONTEXT), (400, BAD, "max_tokens", "context_length_exceeded")),
    (text(prompt="x" * 200_000), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt="x" * 600), (400, BAD, "prompt", "context_length_exceeded")),
    (text(max_tokens=None, min_tokens=CONTEXT), (400, BAD, "min_tokens", "context_length_exceeded")),
    (text(prompt=["a", "x" * 600]), (400, BAD, "prompt.1", "context_length_exceeded")),
    (messages({"role": "user", "content": "x" * 600}), (400, BAD, "messages", "context_length_exceeded")),
    (messages({"role": "user", "content": "x" * 200_000}), (400, BAD, "messages", "context_length_exceeded")),
    (text(prompt=[1] * CONTEXT, max_tokens=CONTEXT), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt=["a", "x" * 500], max_tokens=50), (400, BAD, "max_tokens", "context_length_exceeded")),
    (chat(max_tokens=CONTEXT), (400, BAD, "max_tokens", "context_length_exceeded")),
    (chat(max_completion_tokens=CONTEXT), (400, BAD, "max_completion_tokens", "context_length_exceeded")),
    (
        chat(max_tokens=1, max_completion_tokens=CONTEXT),
        (400, BAD, "max_completion_tokens", "context_length_exceeded"),
    ),
    (
        (CHAT, {"messages": [{"role": "user", "content": "x" * 600}], "max_completion_tokens": CONTEXT}),
        (400, BAD, "messages", "context_length_exceeded"),
    ),
]


@pytest.mark.parametrize("row", OTHER_ERRORS, ids=lambda row: f"{row[0][0]} {row[1]} {json.dumps(row[0][1])}"[:100])
def test_e9_e12_other_errors(server: Server, row: Any) -> None:
    (path, body), (status, kind, param, code) = row
    reply = server.post(path, body)
    error = reply.error
    assert (reply.status, error["type"], error["param"], error["code"]) == (status, kind, param, code), error


#: What asks for nothing, or for what happens anyway, is accepted (null wherever OpenAI allows it).
ACCEPTED: list[tuple[str, Any]] = [
    chat(),
    chat(model=None),
    chat(model=""),
    chat(model="alias"),
    chat(
        n=None, temperature=None, top_p=None, max_tokens=None, stop=None, seed=None, logit_bias=None, logprobs=None,
        top_logprobs=None, stream=None, stream_options=None, tools=None, tool_choice=None, response_format=None,
        presence_penalty=None, frequency_penalty=None, max_completion_tokens=None, user=None, functions=None,
    ),
    chat(tool_choice="none"),
    chat(tool_choice="auto"),
    chat(top_logprobs=0),
    chat(logprobs=True, top_logprobs=20),
    chat(response_format={"type": "text"}),
    chat(response_format={"type": "json_object"}),
    chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
    chat(guided_json={}, guided_decoding_backend="outlines", guided_whitespace_pattern=" ?"),
    chat(guided_json=None, guided_regex="a+"),
    chat(guided_choice=["a"]),
    chat(guided_grammar="root"),
    chat(structured_outputs={"json": {}}, stream=False),
    chat(best_of=1),
    chat(best_of=1, temperature=0),
    chat(n=2, best_of=2),
    chat(return_token_ids=False, return_tokens_as_token_ids=False, request_id=None),
    chat(use_beam_search=False, length_penalty=1.0, early_stopping=False, echo=False, bad_words=[]),
    chat(parallel_tool_calls=True),
    chat(modalities=["text"]),
    chat(seed=-1),
    chat(seed=-(2**63)),
    chat(top_k=-1),
    chat(top_k=0),
    chat(temperature=0),
    chat(temperature=2),
    chat(stop=["a", "b", "c", "d"]),
    chat(stop=[]),
    chat(logit_bias={}),
    chat(spaces_between_special_tokens=False),
    chat(truncation_side="left"),
    chat(allowed_token_ids=[0, VOCAB - 1, 0]),
    text(bad_words=["a", "b"]),
    chat(logit_bias={"5": 500}),
    chat(metadata={"a": "b"}, user="me"),
    chat(metadata=nested(60)),
    chat(continue_final_message=True),
    messages({"role": "user", "content": None}),
    messages({"role": "user", "content": []}),
    messages({"role": "user", "content": [{"type": "text", "text": "a"}]}),
    messages({"role": "narrator", "content": "x", "name": None}),
    messages({"role": "assistant", "content": None, "tool_calls": [], "reasoning_content": "hm"}, USER[0]),
    text(suffix=None),
    text(suffix=""),
    text(prompt=[0, VOCAB - 1]),
    text(prompt=[1] * (CONTEXT - 10), max_tokens=10),
    text(prompt=[1] * (CONTEXT - 1), max_tokens=None),
    text(prompt=["a"] * 64),
    ("/tokenize", {"prompt": ""}),
    ("/detokenize", {"tokens": []}),
]  # fmt: skip


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: f"{row[0]} {json.dumps(row[1])}"[:100])
def test_what_asks_for_nothing_more_is_accepted(server: Server, row: Any) -> None:
    reply = server.post(*row)
    assert reply.status == 200, reply.body[:300]
    assert "x-octavo-ignored-fields" not in reply.headers


def test_e8_the_message_names_limit_prompt_and_requested_tokens() -> None:
    message = make_server().complete([1] * 500, max_tokens=20).error["message"]
    assert all(number in message for number in ("512", "500", "20"))


def test_e13_ten_errors_at_most_and_input_clipped() -> None:
    bad = [{"role": "user", "content": 1, "name": "x" * 1000, "tool_call_id": 5}] * 400
    error = make_server().post(CHAT, {"messages": bad, "n": "9" * 1000}).error
    assert len(error["message"]) < 10 * 300
    assert "and " in error["message"] and error["message"].endswith("more")


def test_e7_the_message_quotes_at_most_200_characters_of_the_name() -> None:
    assert len(make_server().chat(model="x" * 10_000).error["message"]) < 300
    served = "The model `other` does not exist. This server has `tiny`, `alias`."
    assert make_server().chat(model="other").error["message"] == served


@pytest.mark.parametrize(
    ("asked", "meant"), [("tin", "tiny"), ("Alias", "alias"), ("org/tiny", "tiny"), ("gpt-4o", None), ("tinq2", None)]
)
def test_e7_a_model_that_is_not_there_is_answered_with_those_that_are(asked: str, meant: str | None) -> None:
    server = make_server()
    hint = f"; did you mean `{meant}`?" if meant else "."
    message = f"The model `{asked}` does not exist. This server has `tiny`, `alias`{hint}"
    for reply in (server.chat(model=asked), server.complete(model=asked), server.get(f"/v1/models/{asked}")):
        assert (reply.status, reply.error["message"], reply.error["code"]) == (404, message, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_u20_unknown_fields_are_ignored_and_named(stream: bool) -> None:
    reply = make_server().chat(stream=stream, zeta=1, alpha={"b": 1}, **{"bad\r\nname: x": 1})
    assert reply.status == 200
    assert reply.headers["x-octavo-ignored-fields"] == "alpha, bad??name??x, zeta"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
def test_d10_strict_requests_are_refused_for_unknown_fields(path: str) -> None:
    bodies: dict[str, Any] = {
        CHAT: {"messages": USER}, "/v1/completions": {"prompt": "a"}, "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": []},
    }  # fmt: skip
    server = make_server(strict_requests=True)
    assert server.post(path, bodies[path]).status == 200
    error = server.post(path, {**bodies[path], "modle": "x" * 1000, "zeta": 1}).error
    assert (error["param"], error["message"]) == ("modle", "There is no field `modle`; did you mean model?")


def test_d10_what_is_known_and_what_is_the_callers_own_is_not_unknown() -> None:
    server = make_server(strict_requests=True)
    assert server.chat(user="me", metadata={}, tools=None, guided_json=None).status == 200
    assert server.chat(tools=[]).error["param"] == "tools"
    error = server.chat(**{"x" * 1000: 1}).error
    assert len(error["param"]) == 64 and len(error["message"]) < 200


def test_a_500_says_nothing_of_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    server.engine.refusal = KeyError("secret path /home/me")
    reply = server.chat()
    assert (reply.status, reply.error["type"]) == (500, "InternalServerError")
    assert b"secret" not in reply.body and b"KeyError" not in reply.body
    assert "secret path" in caplog.text  # the traceback is for the log


def test_a_value_error_is_never_a_400() -> None:
    server = make_server()
    server.engine.refusal = ValueError("a bug")
    assert server.complete().status == 500
